"""Streams between nodes whose broker loses messages, and whose nodes die, sleep, or are of an older version."""

from __future__ import annotations

import pytest

from support.nodes import Nodes
from wse import ErrorCode, Limits, WseError
from wse.core.cluster import envelope
from wse.core.cluster.remote_asking import RemoteDevice
from wse.core.resume import Resume

OFFER = {"calls": {"timeout": 20}}


class Far:
    """A node that calls, and a device at another, whose messages the test plays."""

    def __init__(self, **options):
        self.nodes = Nodes(2, **options)
        self.one, self.two = self.nodes
        self.peer = self.join(self.two)
        self.nodes.advance(10)  # both have held their leases for long enough to find out who is dead
        assert self.peer.heard == []
        self.lost = []

    def join(self, node, cid="ann"):
        peer = node.open()
        peer.say("~wse:hi", {"identity": cid, "ext": OFFER})
        self.nodes.run()
        assert peer.heard[-1][0] == "~wse:welcome"
        return peer

    def start(self, awaitable, node=None):
        """Run something at the caller's node, as far as it goes without the device."""
        task = (node or self.one).scheduler.start(awaitable)
        self.nodes.run()
        return task

    def stream(self, **options):
        return self.one.server.stream("ann", "numbers", **options)

    def read(self, **options):
        """A task that reads a stream into a list, and the list."""
        seen = []

        async def read():
            async with self.stream(**options) as items:
                async for item in items:
                    seen.append(item)  # noqa: PERF401 - seen as they come

        return self.start(read()), seen

    def say(self, *message):
        self.peer.say(*message)
        self.nodes.run()

    def called(self):
        """The stamp of the call that the device has just heard."""
        ((kind, _, stamp),) = self.peer.heard
        assert kind == "~wse:call"
        return stamp

    def lose(self, node, *kinds):
        """The broker loses the next message of each of these kinds that the node sends."""
        publish, kinds = node.broker.publish, list(kinds)

        def lose(topic, data):
            kind = type(envelope.decode(data))
            if kind in kinds:
                kinds.remove(kind)
                self.lost.append(kind)
            else:
                publish(topic, data)

        node.broker.publish = lose

    def assert_nothing_is_left(self, *nodes):
        for node in nodes or self.nodes:
            rpc = node.cluster.rpc
            assert not rpc.asking.calls
            assert not rpc.serving.calls
            assert not rpc._called
            assert not rpc.waiting
            assert node.errors == []
            assert node.scheduler.unheard == []
        assert self.peer.session.pending_calls == 0
        assert not self.peer.session.asking.calls


def test_items_and_credit_go_through_from_end_to_end():
    far = Far()
    task, seen = far.read(window=4)
    assert far.peer.heard == [("~wse:call", ["numbers", None, {"n": 4}], 1)]
    for n in range(4):
        far.say("~wse:item", n, 1)
    assert seen == [0, 1, 2, 3]
    assert far.peer.heard == [("~wse:more", 2, 1), ("~wse:more", 2, 1)]
    far.say("~wse:response", None, 1)
    assert task.done()
    assert far.peer.heard == []
    far.assert_nothing_is_left()


def test_without_credit_of_the_reader_the_device_gets_none():
    far = Far()
    stream = far.stream(window=4)
    first = far.start(anext(stream))
    stamp = far.called()
    for n in range(4):
        far.say("~wse:item", n, stamp)
    assert first.result() == 0
    assert far.peer.heard == []
    assert far.start(anext(stream)).result() == 1
    assert far.peer.heard == [("~wse:more", 2, stamp)]
    far.nodes.advance(10)
    assert far.peer.heard == []
    far.start(stream.aclose())
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.assert_nothing_is_left()


def test_items_beyond_the_credit_end_the_stream_at_the_devices_node():
    far = Far()
    task, _ = far.read(window=2, timeout=60)
    stamp = far.called()
    far.nodes.sleep(far.one)
    for n in range(3):
        far.say("~wse:item", n, stamp)
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.nodes.wake(far.one)
    assert task.exception().code == ErrorCode.LIMIT_EXCEEDED
    assert far.two.codes == [ErrorCode.LIMIT_EXCEEDED]


@pytest.mark.parametrize("last", ["an item", "the answer", "nothing"])
def test_a_lost_item_ends_the_stream_instead_of_leaving_a_gap(last):
    far = Far()
    task, seen = far.read(window=4)
    stamp = far.called()
    far.say("~wse:item", 0, stamp)
    far.lose(far.two, envelope.Item)
    far.say("~wse:item", 1, stamp)
    assert far.lost == [envelope.Item]
    if last == "an item":
        far.say("~wse:item", 2, stamp)
    elif last == "the answer":
        far.say("~wse:response", None, stamp)
    else:
        far.nodes.advance(2)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert seen == [0]
    far.assert_nothing_is_left()
    if last != "the answer":
        assert far.peer.heard == [("~wse:cancel", None, stamp)]


def test_lost_credit_is_told_again():
    far = Far()
    task, seen = far.read(window=2)
    stamp = far.called()
    far.lose(far.one, envelope.More, envelope.More)
    far.say("~wse:item", 0, stamp)
    far.say("~wse:item", 1, stamp)
    assert (seen, far.peer.heard) == ([0, 1], [])
    far.nodes.advance(2)
    assert far.peer.heard == [("~wse:more", 2, stamp)]
    far.say("~wse:item", 2, stamp)
    assert seen == [0, 1, 2]
    assert not task.done()


def test_a_lost_cancellation_is_told_again():
    far = Far()
    task, _ = far.read()
    stamp = far.called()
    far.lose(far.one, envelope.Cancel)
    task.cancel()
    far.nodes.run()
    assert (far.lost, far.peer.heard) == ([envelope.Cancel], [])
    far.nodes.advance(2)
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.assert_nothing_is_left()


def test_a_lost_answer_ends_the_stream():
    far = Far()
    task, _ = far.read()
    far.lose(far.two, envelope.Answer)
    far.say("~wse:response", None, far.called())
    assert not task.done()
    far.nodes.advance(2)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    far.assert_nothing_is_left()


def test_a_lost_call_fails():
    far = Far()
    far.lose(far.one, envelope.CallWith)
    task, _ = far.read()
    assert (far.lost, far.peer.heard) == ([envelope.CallWith], [])
    far.nodes.advance(2)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    far.assert_nothing_is_left()


def upload(far, items):
    """Call a procedure that takes an upload; of which the device's node asks for 32 items."""
    return far.start(far.one.server.call("ann", "takes", mode="any", timeout=0, upload=items))


CALL = ("~wse:call", ["takes", None, {"t": 0, "up": 1}], 1)


def test_an_upload_goes_through_as_the_device_wants_it():
    far = Far()
    task = upload(far, [1, 2, 3])
    assert far.peer.heard == [CALL]
    far.say("~wse:want", 2, 1)
    assert far.peer.heard == [("~wse:put", 1, 1), ("~wse:put", 2, 1)]
    far.say("~wse:want", 2, 1)
    assert far.peer.heard == [("~wse:put", 3, 1), ("~wse:end", None, 1)]
    far.say("~wse:response", 6, 1)
    assert task.result() == 6
    far.assert_nothing_is_left()


def test_of_an_upload_what_is_told_is_told_again():
    far = Far()
    far.lose(far.two, envelope.Want)
    far.lose(far.one, envelope.End)
    task = upload(far, [1, 2, 3])
    far.say("~wse:want", 4, 1)
    assert (far.lost, far.peer.heard) == ([envelope.Want], [CALL])
    far.nodes.advance(2)
    assert far.lost == [envelope.Want, envelope.End]
    assert far.peer.heard == [*(("~wse:put", n, 1) for n in (1, 2, 3)), ("~wse:end", None, 1)]
    far.say("~wse:response", 6, 1)
    assert task.result() == 6
    far.assert_nothing_is_left()


@pytest.mark.parametrize("items", [[1], [1, 2]])
@pytest.mark.parametrize("also", [[], [envelope.End]])
def test_a_lost_item_of_an_upload_fails_the_call(items, also):
    far = Far()
    far.lose(far.one, envelope.Put, *also)
    task = upload(far, items)
    far.nodes.advance(2)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert far.peer.heard == [CALL, ("~wse:cancel", None, 1)]
    far.assert_nothing_is_left()


def test_an_upload_waits_for_the_devices_socket():
    far = Far()
    upload(far, range(1000))
    assert far.peer.heard == [CALL]
    far.peer.session.writable(False)
    far.say("~wse:want", 10, 1)
    assert (far.peer.heard, far.peer.session.outbox_size) == ([], 0)
    far.peer.session.writable(True)
    far.nodes.run()
    assert len(far.peer.heard) == 10


def test_an_item_that_cannot_leave_the_callers_node_fails_the_call():
    far = Far()
    task = upload(far, [1 << 70])
    assert isinstance(task.exception(), OverflowError)
    assert far.peer.heard == [CALL, ("~wse:cancel", None, 1)]
    far.assert_nothing_is_left()


# Nodes.


def test_a_node_that_dies_ends_its_streams_at_both_sides():
    far = Far()
    task, seen = far.read()
    far.say("~wse:item", 0, far.called())
    far.nodes.kill(far.two)
    far.nodes.advance(10)
    error = task.exception()
    assert (seen, error.code, error.details["disconnected"]) == ([0], ErrorCode.RP_DISCONNECT, [1006, ""])
    assert not far.one.cluster.rpc.asking.calls

    far = Far()
    far.read()
    stamp = far.called()
    far.nodes.kill(far.one)
    far.nodes.advance(10)
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.assert_nothing_is_left(far.two)


def test_a_node_that_closes_cancels_its_streams_at_once():
    far = Far()
    task, _ = far.read()
    stamp = far.called()
    far.one.scheduler.start(far.one.cluster.close())
    far.nodes.run()
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.assert_nothing_is_left(far.two)


def test_a_node_that_slept_too_long_finds_its_streams_ended():
    far = Far()
    task, _ = far.read()
    stamp = far.called()
    far.nodes.sleep(far.one)
    far.nodes.advance(10)
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    far.nodes.wake(far.one)
    far.nodes.advance(1)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    far.assert_nothing_is_left()


def test_a_device_that_goes_ends_its_streams():
    far = Far()
    task, _ = far.read()
    far.peer.vanish()
    far.nodes.run()
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert not far.two.cluster.rpc.serving.calls


def older(node):
    """Let a node answer as the version before streams crossed: it does not look at what it is asked."""
    node.cluster.rpc.queries["here"] = lambda _: node.cluster.node


def test_a_device_of_an_older_node_is_called_plainly_only():
    far = Far()
    older(far.two)
    task, _ = far.read()
    assert task.exception().code == ErrorCode.UNSUPPORTED
    task = far.start(far.one.server.call("ann", "numbers", on_progress=print))
    assert task.exception().code == ErrorCode.UNSUPPORTED
    assert far.peer.heard == []
    task = far.start(far.one.server.call("ann", "numbers"))
    far.say("~wse:response", 1, far.peer.heard[0][2])
    assert task.result() == 1
    far.assert_nothing_is_left()


def test_an_older_node_sees_nothing_that_it_does_not_know():
    far = Far()
    older(far.two)
    said, publish = [], far.one.broker.publish

    def note(topic, data):
        said.append(type(envelope.decode(data)))
        publish(topic, data)

    far.one.broker.publish = note
    for task in far.read()[0], far.start(far.one.server.call("ann", "numbers", on_progress=print)):
        assert task.exception().code == ErrorCode.UNSUPPORTED
    far.nodes.advance(5)
    assert set(said) <= {envelope.Query, envelope.Canary}


def test_a_node_that_does_not_answer_where_its_device_is_is_not_waited_for_for_ever():
    far = Far()
    older_device = far.join(far.one)
    far.nodes.sleep(far.two)
    stream = far.stream()
    task = far.start(anext(stream))
    far.nodes.advance(3)
    assert not task.done()
    assert [message[0] for message in older_device.heard] == ["~wse:call"]


def test_a_device_that_has_gone_is_left_out():
    far = Far(conns_per_user=2)
    old = far.join(far.one)
    far.two.hub.connections.pop(far.peer.conn.conn_id)  # the register does not know yet
    task = far.start(far.one.server.call("ann", "numbers", mode="all", on_progress=print))
    assert far.peer.heard == []
    ((_, payload, stamp),) = old.heard
    assert payload == ["numbers", None, {"p": 1}]
    old.say("~wse:response", 1, stamp)
    far.nodes.run()
    assert task.result() == [1]


def test_a_stream_of_a_device_that_goes_before_the_call_comes_fails():
    far = Far()
    conn_id = far.peer.conn.conn_id
    places = far.two.cluster.claims.places

    def gone(about):
        answer = places(about)
        far.two.hub.connections.pop(conn_id, None)
        return answer

    far.two.cluster.claims.places = gone
    task, _ = far.read()
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert far.peer.heard == []


def test_a_broker_that_is_away_fails_the_stream_at_once():
    far = Far()
    far.nodes.engine.reachable = False
    task, _ = far.read()
    assert task.exception().code == ErrorCode.BROKER_UNAVAILABLE


# Progress.


def test_progress_crosses_and_a_listener_that_raises_is_reported():
    far = Far()
    seen = []

    def on_progress(value):
        seen.append(value)
        if value == 2:
            raise KeyError(value)

    task = far.start(far.one.server.call("ann", "job", on_progress=on_progress))
    stamp = far.called()
    for value in (1, 2, 3):
        far.say("~wse:progress", value, stamp)
    far.say("~wse:response", "done", stamp)
    assert (task.result(), seen) == ("done", [1, 2, 3])
    assert far.one.codes == [ErrorCode.MSG_PROCESSING_ERROR]


def test_a_device_that_floods_an_async_listener_with_progress_loses_its_caller():
    far = Far(limits=Limits(handlers=3))
    waiting = far.one.scheduler.create_future()
    seen = []

    async def on_progress(value):
        seen.append(value)
        await waiting

    task = far.start(far.one.server.call("ann", "job", mode="any", on_progress=on_progress))
    stamp = far.called()
    for value in range(5):
        far.say("~wse:progress", value, stamp)
    error = task.exception()
    assert (error.code, error.details["limit"], seen) == (ErrorCode.LIMIT_EXCEEDED, "handlers", [0, 1, 2])
    assert far.peer.heard == [("~wse:cancel", None, stamp)]
    waiting.set_exception(KeyError("async"))
    far.nodes.run()
    assert far.one.codes == [ErrorCode.MSG_PROCESSING_ERROR] * 3


def test_an_inherited_deadline_bounds_a_call_to_another_node():
    far = Far()
    caller = far.join(far.one, "bob")
    errors = []

    async def outer(conn, payload):
        try:
            await far.one.server.call("ann", "inner", timeout=60)
        except WseError as exc:
            errors.append(exc)

    far.one.hub.endpoint.procedures.register("outer", outer)
    caller.say("~wse:call", ["outer", None, {"t": 3}], 1)
    far.nodes.run()
    assert far.peer.heard == [("~wse:call", ["inner", None, {"t": 3}], 1)]
    far.nodes.advance(4)
    assert [(error.code, error.details["at"]) for error in errors] == [(ErrorCode.RP_TIMEOUT, "caller")]


# Sessions that move.


def test_a_session_that_has_moved_is_found_at_its_new_node():
    far = Far(resume=Resume())
    three = far.nodes.start()
    far.nodes.advance(10)
    new = far.join(three, "bob")
    conn_id = new.conn.conn_id
    far.two.hub.resumption.moved_to = lambda asked: three.cluster.node if asked == conn_id else ""
    rpc = far.one.cluster.rpc
    found = far.start(rpc.asking.locate([RemoteDevice(rpc, far.two.cluster.node, conn_id)]))
    far.nodes.advance(1)
    (there,) = found.result()
    asked = there.ask("numbers", None, 0, window=4)
    far.nodes.run()
    assert new.heard == [("~wse:call", ["numbers", None, {"n": 4}], 1)]
    asked.give_up()
    far.nodes.run()
    assert new.heard == [("~wse:cancel", None, 1)]
