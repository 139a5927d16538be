"""WIRE.md section 7, `calls`, frame by frame, against peers that do not behave."""

from __future__ import annotations

import pytest

from support.core import ClientSide, ServerSide
from support.streams import OFFER, join, join_server, nothing_is_left, stream
from wse import ErrorCode, Limits, WseError, current_call
from wse.core.resume import Resume


@pytest.fixture
def side():
    return ServerSide()


@pytest.fixture
def log(side):
    """What the procedures of the side have noted."""
    log = []

    async def numbers(conn, payload):
        try:
            for n in range(payload):
                log.append(n)
                yield n
        finally:
            log.append("closed")

    async def waits(conn, payload):
        try:
            await side.scheduler.create_future()
        finally:
            log.append("ended")

    async def takes(conn, payload, items):
        log.extend([item async for item in items])
        return "all"

    side.endpoint.procedures.register("numbers", numbers)
    side.endpoint.procedures.register("waits", waits, cancel=True)
    side.endpoint.procedures.register("stays", waits)
    side.endpoint.procedures.register("takes", takes, upload=True)
    return log


@pytest.mark.parametrize(
    "params",
    [
        5,
        None,
        [],
        {"timeout": -1},
        {"timeout": "1"},
        {"timeout": True},
        {"timeout": 10**400},
        {"window": 0},
    ],
)
def test_an_offer_that_makes_no_sense_is_declined(side, params):
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {"calls": params}})
    side.scheduler.run()
    assert [kind for kind, _, _ in peer.heard] == ["~wse:welcome"]
    assert peer.session.terms is None


def test_the_frames_of_a_stream(side, log):
    peer = join(side)
    stream(peer, "numbers", 3, "a", 2)
    assert peer.heard == [("~wse:item", 0, "a"), ("~wse:item", 1, "a")]
    peer.say("~wse:more", 2, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:item", 2, "a"), ("~wse:response", None, "a")]
    assert log == [0, 1, 2, "closed"]
    assert nothing_is_left(peer.session)


def test_credit_of_any_size_is_bounded_by_the_window(log, side):
    peer = join(side)
    stream(peer, "numbers", 10, "a", 2**31)
    assert len(peer.heard) == 11
    peer.session.writable(False)
    stream(peer, "numbers", 10**9, "b", 2**63)
    call = peer.session._serving.calls["b"]
    peer.say("~wse:more", 2**31, "b")
    assert call.outflow.credit <= side.endpoint.limits.stream_window
    assert not peer.heard


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "9", [], {}])
def test_credit_that_makes_no_sense_is_ignored(side, log, count):
    peer = join(side)
    stream(peer, "numbers", 3, "a", 1)
    peer.say("~wse:more", count, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:item", 0, "a")]
    assert peer.closed_with is None


@pytest.mark.parametrize("kind", ["more", "put", "end", "cancel", "item", "want", "progress"])
@pytest.mark.parametrize("stamp", ["unknown", 7, [1], {"a": 1}, None, 0])
def test_frames_of_unknown_calls_are_ignored(side, log, kind, stamp):
    peer = join(side)
    peer.say(f"~wse:{kind}", 1, stamp)  # before there was any call, and beside one
    stream(peer, "numbers", 3, "a", 1)
    peer.say(f"~wse:{kind}", 1, stamp)
    side.scheduler.run()
    assert peer.closed_with is None
    assert peer.heard == [("~wse:item", 0, "a")]
    assert side.errors == []


@pytest.mark.parametrize(
    ("payload", "stamp"),
    [
        (None, "a"),
        ([], "a"),
        (["numbers", 1], "a"),
        (["numbers", 1, None], "a"),
        (["numbers", 1, {"n": 0}], "a"),
        (["numbers", 1, {"n": "1"}], "a"),
        (["numbers", 1, {"n": 1, "t": -1}], "a"),
        (["numbers", 1, {"n": 1, "t": 10**400}], "a"),
        (["waits", 1, {"t": 10**400}], "a"),
        ([["numbers"], 1, {"n": 1}], "a"),
        (["numbers", 1, {"n": 1}], ["a"]),
        (["numbers", 1, {"n": 1}], None),
        (["numbers", 1, {"n": 1}], "running"),
    ],
)
def test_a_malformed_call_with_options_closes_the_connection(side, log, payload, stamp):
    peer = join(side)
    stream(peer, "numbers", 3, "running", 1)
    peer.say("~wse:call", payload, stamp)
    side.scheduler.run()
    assert peer.closed_with == (1000, "wse.protocol-error")
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert log == [0, "closed"]
    assert nothing_is_left(peer.session)


def test_a_cancelled_stream_is_closed_without_an_answer(side, log):
    peer = join(side)
    stream(peer, "numbers", 10, "a", 2)
    peer.say("~wse:cancel", None, "a")
    peer.say("~wse:more", 5, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:item", 0, "a"), ("~wse:item", 1, "a")]
    assert log == [0, 1, "closed"]
    assert nothing_is_left(peer.session)


def test_a_call_that_is_cancelled_before_its_first_step_does_not_run(side, log):
    peer = join(side)
    peer.say("~wse:call", ["numbers", 3, {"n": 3}], "a")
    peer.say("~wse:cancel", None, "a")
    side.scheduler.run()
    assert peer.closed_with is None
    assert nothing_is_left(peer.session)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("name", ["waits", "stays"])
def test_a_call_that_is_cancelled_at_once_runs_unless_it_wants_to_be_cancelled(side, log, name, is_given):
    async def begins(conn, payload):
        log.append("begun")

    side.endpoint.procedures.unregister(name)
    side.endpoint.procedures.register(name, begins, cancel=name == "waits")
    peer = join(side)

    async def say_both_in_one_turn():
        if is_given:
            peer.say("~wse:call", [name, None, {"t": 5}], "a")
        else:
            peer.say(name, None, "a")
        peer.say("~wse:cancel", None, "a")

    side.scheduler.start(say_both_in_one_turn())
    side.scheduler.run()
    assert log == (["begun"] if name == "stays" else [])
    assert peer.heard == []
    assert nothing_is_left(peer.session)


@pytest.mark.parametrize("name", ["waits", "stays"])
def test_a_cancelled_call_gets_no_answer(side, log, name):
    peer = join(side)
    peer.say(name, None, "a")
    side.scheduler.run()
    peer.say("~wse:cancel", None, "a")
    side.scheduler.run()
    assert peer.heard == []
    assert log == (["ended"] if name == "waits" else [])


def test_deadlines_announced_and_given_cancel_what_can_be_cancelled(side, log):
    peer = join(side)
    peer.say("waits", None, "a")
    peer.say("~wse:call", ["waits", None, {"t": 5}], "b")
    peer.say("~wse:call", ["waits", None, {"t": 0}], "c")
    side.scheduler.run()
    side.scheduler.advance(5)
    assert log == ["ended"]
    side.scheduler.advance(15)
    assert log == ["ended", "ended"]
    side.scheduler.advance(10_000)
    assert list(peer.session._serving.calls) == ["c"]
    assert peer.heard == []


def test_a_generator_that_ignores_its_cancellation_is_reported_and_abandoned():
    side = ServerSide(limits=Limits(handler_linger=3.0))

    async def stubborn(conn, payload):
        while True:
            try:
                await side.scheduler.create_future()
            except BaseException:
                if payload == "once":
                    raise
                payload = "once"
        yield 1

    side.endpoint.procedures.register("stubborn", stubborn)
    peer = join(side)
    stream(peer, "stubborn", None, "a", 1)
    peer.say("~wse:cancel", None, "a")
    side.scheduler.advance(2)
    assert peer.session.running_handlers == 1
    side.scheduler.advance(2)
    assert side.error.code == ErrorCode.HANDLER_CANCELLED
    assert nothing_is_left(peer.session)
    assert side.scheduler.unfinished == []


def test_a_generator_that_yields_after_its_cancellation_is_ended(side):
    async def yields_on(conn, payload):
        while True:
            try:
                yield 1
                await side.scheduler.create_future()
            except GeneratorExit:
                raise
            except BaseException:
                pass

    side.endpoint.procedures.register("yields_on", yields_on)
    peer = join(side)
    stream(peer, "yields_on", None, "a", 5)
    peer.say("~wse:cancel", None, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:item", 1, "a")]
    assert nothing_is_left(peer.session)


def test_the_end_of_the_connection_cancels_streams_at_once(side, log):
    peer = join(side)
    for stamp in range(1, 51):
        stream(peer, "numbers", 10, stamp, 1)
    peer.vanish()
    side.scheduler.run()
    assert log.count("closed") == 50
    assert side.scheduler.unfinished == []
    assert nothing_is_left(peer.session)


def test_items_of_an_upload_beyond_the_credit_end_the_call(side, log):
    peer = join(side)
    peer.say("~wse:call", ["takes", None, {"up": 1}], "a")
    for n in range(40):
        peer.say("~wse:put", n, "a")
    side.scheduler.run()
    heard = peer.heard
    assert heard[0] == ("~wse:want", 32, "a")
    assert (heard[-1][0], heard[-1][1]["code"], heard[-1][2]) == ("~wse:response-err", "wse.limit-exceeded", "a")
    assert peer.closed_with is None
    assert nothing_is_left(peer.session)


def test_an_upload_is_complete_with_its_end(side, log):
    peer = join(side)
    peer.say("~wse:call", ["takes", None, {"up": 1}], "a")
    side.scheduler.run()
    peer.say("~wse:put", 1, "a")
    peer.say("~wse:end", None, "a")
    peer.say("~wse:put", 2, "a")
    side.scheduler.run()
    assert log == [1]
    assert peer.heard == [("~wse:want", 32, "a"), ("~wse:response", "all", "a")]


def test_a_receiver_that_holds_much_grants_nothing():
    side = ClientSide()
    peer = join_server(side)
    asked = peer.session.ask("big", None, 0, window=4)
    stamp = asked.stamp
    assert peer.heard == [("~wse:call", ["big", None, {"n": 4}], stamp)]
    for _ in range(4):
        peer.say("~wse:item", "x" * 200_000, stamp)
    asked.inflow.take()
    asked.inflow.take()
    assert peer.heard == []
    asked.inflow.take()
    assert peer.heard == [("~wse:more", 3, stamp)]


def test_items_beyond_the_credit_end_the_stream_after_those_within():
    side = ClientSide()
    peer = join_server(side)
    asked = peer.session.ask("big", None, 0, window=2)
    stamp = asked.stamp
    for n in range(5):
        peer.say("~wse:item", n, stamp)
    side.scheduler.run()
    assert peer.heard[1:] == [("~wse:cancel", None, stamp)]
    assert [asked.inflow.take(), asked.inflow.take()] == [0, 1]
    assert not asked.inflow
    assert asked.inflow.error.code == ErrorCode.LIMIT_EXCEEDED
    assert nothing_is_left(peer.session)
    assert peer.closed_with is None


def test_a_call_that_times_out_is_cancelled_once():
    side = ClientSide(timeout=10)
    peer = join_server(side)
    plain, own = peer.call("a"), peer.call("b", timeout=5)
    side.scheduler.run()
    assert peer.heard == [("a", None, 1), ("~wse:call", ["b", None, {"t": 5}], 2)]
    side.scheduler.advance(20)
    assert peer.heard == [("~wse:cancel", None, 2), ("~wse:cancel", None, 1)]
    for task in (plain, own):
        assert isinstance(task.exception(), WseError)


def test_a_cancelled_task_tells_the_peer_and_an_answered_call_does_not():
    side = ClientSide()
    peer = join_server(side)
    cancelled, answered = peer.call("a"), peer.call("b")
    side.scheduler.run()
    peer.say("~wse:response", 5, 2)
    cancelled.cancel()
    side.scheduler.run()
    assert answered.result() == 5
    assert peer.heard == [("a", None, 1), ("b", None, 2), ("~wse:cancel", None, 1)]


def test_progress_is_sent_only_if_asked_for_and_only_the_newest_to_a_slow_caller(side):
    calls = []

    async def job(conn, payload):
        calls.append(current_call())
        await side.scheduler.create_future()

    side.endpoint.procedures.register("job", job)
    peer = join(side)
    peer.say("job", None, "a")
    peer.say("~wse:call", ["job", None, {"p": 1}], "b")
    side.scheduler.run()
    for call in calls:
        call.progress(1)
    assert peer.heard == [("~wse:progress", 1, "b")]
    peer.session.writable(False)
    for n in range(2, 100):
        calls[1].progress(n)
    peer.session.writable(True)
    assert peer.heard == [("~wse:progress", 99, "b")]
    with pytest.raises(WseError, match="msg-processing-error"):
        calls[1].progress(object())


def test_a_slow_reader_holds_the_generator_and_nothing_piles_up(side, log):
    peer = join(side)
    peer.session.writable(False)
    stream(peer, "numbers", 10**6, "a", 256)
    assert len(log) <= 1
    assert peer.session.outbox_size == 0
    peer.session.writable(True)
    side.scheduler.run()
    assert len(peer.heard) == 256


def test_a_stream_goes_on_over_a_cut_every_item_once():
    side = ServerSide(resume=Resume())

    async def numbers(conn, payload):
        for n in range(payload):
            yield n

    side.endpoint.procedures.register("numbers", numbers)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {**OFFER, "resume": {}}})
    side.scheduler.run()
    ticket = peer.heard[0][1]["resume"]
    stream(peer, "numbers", 100, "a", 10)
    sent, got, items = 1, 0, []
    while len(items) < 100:
        arrived = peer.heard[:7]  # the connection breaks before the others come
        got += len(arrived)
        items += [payload for kind, payload, _ in arrived if kind == "~wse:item"]
        if arrived:
            peer.say("~wse:more", len(arrived), "a")
            side.scheduler.run()
            sent += 1
        peer.vanish()
        side.scheduler.run()
        peer = side.open()
        claim = {"id": ticket["id"], "key": ticket["key"], "got": got, "sent": [sent + 1, sent]}
        peer.say("~wse:hi", {"identity": "ann", "ext": {**OFFER, "resume": claim}})
        side.scheduler.run()
        answer = peer.protocol.unpack(peer.link.sent[0])[1]["resume"]
        assert answer["got"] == sent
        assert "lost" not in answer
        ticket["id"] = answer["id"]
        peer._read = 2  # after the welcome
    assert items == list(range(100))
    assert nothing_is_left(side.hub.conns_of("ann")[0]._session)
