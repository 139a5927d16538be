"""The checks of a run: what they find, and what they leave alone."""

import json

import pytest

from chaos.promises import check


class Story:
    """Writes the logs of a run, whose clock begins at 0."""

    def __init__(self, directory, **options):
        self.directory = directory
        self.run(0, "begin", **options)

    def write(self, log, entry):
        with (self.directory / f"{log}.log").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def run(self, t, event, **what):
        self.write("run", {"t": t, "event": event, **what})

    def node(self, t, name, event, **what):
        self.write(name, {"t": t, "node": name, "event": event, **what})

    def client(self, t, event, *what):
        self.write("clients", [t, event, *what])

    def up(self, t, label, node="n0", kind="stable"):
        self.client(t, "up", label, label.partition(".")[0], f"c-{label}", node, kind)

    def fault(self, kind, began, ended, healed, node="n0"):
        self.run(began, "fault", kind=kind, node=node, breaks_promises=True)
        self.run(ended, "fault ended", kind=kind, node=node)
        self.run(healed, "healed", kind=kind, node=node)

    def report(self):
        return check(self.directory)

    @property
    def violations(self):
        return self.report().violations


@pytest.fixture
def story(tmp_path):
    return Story(tmp_path)


def send(story, t=10, arrives=None, to="bob"):
    story.up(1, "ann.0")
    story.up(1, "bob.0", "n1")
    story.client(t, "sent", "c-ann.0", to, 1, "n0")
    if arrives is not None:
        story.client(arrives, "m", "c-bob.0", "c-ann.0", 1, "")


def test_a_run_without_faults_and_losses_is_in_order(story):
    send(story, arrives=10.1)
    report = story.report()
    assert report.violations == []
    assert report.figures["p99 in calm"] == "100 ms"


def test_a_message_that_is_missing_in_calm_is_a_violation(story):
    send(story)
    (text,) = story.violations
    assert "message 1 of ann.0 to bob.0, sent in calm at 10.00, is missing" in text


def test_a_message_to_another_node_may_be_missing_during_a_fault(story):
    send(story)
    story.fault("cut", 9, 11, 12)
    report = story.report()
    assert report.violations == []
    assert report.figures["missing during faults"] == 1


@pytest.mark.parametrize(("second", "node", "count"), [(9, "n0", 1), (11, "n0", 0), (9, "n1", 0)])
def test_a_message_that_a_node_has_kept_arrives_unless_there_is_another_fault(story, second, node, count):
    send(story)
    story.node(10, "n0", "kept", sender="c-ann.0", n=1, to="bob")
    story.fault("engine-restart", 9, 11, 14)
    story.fault("part-recv", second, 18, 19, node)
    assert len(story.violations) == count


def test_messages_twice_and_out_of_order_are_violations(story):
    send(story, arrives=10.1)
    story.client(10.2, "m", "c-bob.0", "c-ann.0", 1, "")
    (text,) = story.violations
    assert "bob.0 got m 1 of c-ann.0 after 1" in text


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([(1, "joined"), (2, "left")], 0),
        ([(1, "joined"), (5, "joined"), (9, "left"), (12, "left")], 2),
        ([(1, "joined"), (5, "joined"), (6, "left"), (7, "left")], 0),  # seen in another order
        ([(1, "joined")], 1),
        ([(1, "left")], 1),
    ],
)
def test_joined_and_left_alternate(story, events, count):
    for t, event in events:
        story.node(t, "n0", event, cid="ann", code=1000)
    assert len(story.violations) == count


def test_what_a_killed_node_had_claimed_could_not_be_avoided(story):
    story.node(1, "n0", "joined", cid="ann")
    story.node(1, "n0", "fired", of=[["sann", 1]])
    story.node(5, "n1", "claim…", of=[["sann", 2]])
    story.run(5, "killed", node="n1")
    report = story.report()
    assert report.violations == []
    assert len(report.unavoidable) == 1


@pytest.mark.parametrize(
    ("cut", "node", "kept", "count"),
    [
        ((11, 14), "n1", False, 0),
        ((20, 22), "n1", False, 1),  # it was not cut off when the register was lost
        ((11, 14), "n1", True, 1),  # the register was not lost
        ((11, 14), "n0", False, 1),  # the user was not there
    ],
)
def test_what_others_announced_while_a_node_was_cut_off_is_lost_with_the_register(tmp_path, cut, node, kept, count):
    story = Story(tmp_path, keeps_register=kept)
    story.up(1, "ann.0", "n1")
    for t, event in (1, "joined"), (12, "left"), (16, "left"):
        story.node(t, "n0", event, cid="ann")
    story.fault("engine-restart", 12, 13, 15)
    story.fault("part-pub", *cut, cut[1], node)
    report = story.report()
    assert (len(report.violations), len(report.unavoidable)) == (count, 1 - count)


def test_one_loss_of_the_register_excuses_one_event_of_a_user(story):
    story.up(1, "ann.0", "n1")
    for t, event in (1, "joined"), (12, "left"), (16, "left"), (19, "left"):
        story.node(t, "n0", event, cid="ann")
    story.fault("engine-restart", 12, 13, 15)
    story.fault("part-pub", 11, 14, 14, "n1")
    report = story.report()
    assert (len(report.violations), len(report.unavoidable)) == (1, 1)


@pytest.mark.parametrize(("kind", "node", "count"), [("stop", "n1", 0), ("stop", "n0", 1), ("cut", "n1", 1)])
def test_a_handler_whose_node_slept_may_be_cancelled(story, kind, node, count):
    story.node(20, "n1", "error", code="wse.server.handler-cancelled", cause="", message="", lost=0)
    story.fault(kind, 9, 19.9, 20.5, node)
    assert len([text for text in story.violations if "handler-cancelled" in text]) == count


def test_what_a_killed_node_had_fired_is_not_excused(story):
    story.node(1, "n1", "claim…", of=[["sann", 1]])
    story.node(1, "n1", "joined", cid="ann")
    story.node(1, "n1", "fired", of=[["sann", 1]])
    story.run(5, "killed", node="n1")
    assert len(story.violations) == 1


@pytest.mark.parametrize(("status", "told", "count"), [(503, True, 0), (200, True, 1), (503, False, 1)])
def test_a_node_that_is_cut_off_says_so(story, status, told, count):
    story.run(1, "readyz", node="n0", status=200)
    story.run(12, "readyz", node="n0", status=status)
    if told:
        story.node(13, "n0", "error", code="wse.server.broker-unavailable", cause="", message="", lost=0)
    story.fault("cut", 10, 19, 20)
    assert len(story.violations) == count


def test_errors_that_nobody_expects_are_violations(story):
    story.node(1, "n0", "error", code="wse.server.msg-processing-error", cause="KeyError()", message="m", lost=0)
    (story.directory / "n0.err").write_text("Traceback ...\nValueError: wrong\n")
    assert len(story.violations) == 2


@pytest.mark.parametrize(("node", "count"), [("n1", 0), ("n2", 1)])
def test_a_call_to_a_device_whose_node_sleeps_may_time_out(story, node, count):
    for device in ("stable0.0", "stable0.1"):
        story.up(1, device, "n1")
    story.run(15.9, "fault", kind="block", node=node, breaks_promises=False)
    story.run(24, "fault ended", kind="block", node=node)
    story.run(24, "healed", kind="block", node=node)
    story.client(20, "asked", "c-x", "stable0", "any", 16, {"error": "wse.client.rp.timeout", "took": 4.0})
    assert len([text for text in story.violations if "a call (any)" in text]) == count


@pytest.mark.parametrize(("kind", "count"), [("block", 0), ("slow", 1)])
def test_a_device_that_has_gone_while_its_node_slept_may_answer_a_call(story, kind, count):
    for number in range(3):
        story.up(1, f"stable0.{number}", f"n{number}")
    story.client(15, "down", "stable0.2", "c-stable0.2", 1006, "")
    answer = {"answer": ["stable0.0", "stable0.1", "wse.client.rp.disconnect"], "took": 0.1}
    story.client(16.1, "asked", "c-x", "stable0", "all", 16, answer)
    story.run(10, "fault", kind=kind, node="n2", breaks_promises=False)
    story.run(18, "healed", kind=kind, node="n2")
    assert len([text for text in story.violations if "a call (all)" in text]) == count


@pytest.mark.parametrize(("ended", "count"), [(18, 0), (12, 1)])
def test_devices_of_a_node_that_was_taken_for_dead_are_the_oldest(story, ended, count):
    for number in range(2):
        story.up(1 + 2 * number, f"stable0.{number}", f"n{number}")
    story.client(30, "asked", "c-x", "stable0", "any", 30, {"answer": "stable0.0", "took": 0.1})
    story.fault("block", 10, ended, ended, "n1")
    assert len(story.violations) == count
