"""One connection at either side: dispatch, calls both ways, violations, the end; without network or event loop."""

from __future__ import annotations

import asyncio

import pytest

from support.core import ClientSide, FakeLink, FakeRequest, ServerSide
from wse import InternalTypes, Protocol, WseJSON, WseMsgpack
from wse.core.session.phase import ENDED
from wse.core.session.rpc import ExposeErrors, error_to_wire
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ReadyState


@pytest.fixture
def server():
    return ServerSide()


@pytest.fixture(params=["server", "client"])
def side(request):
    """Either side; what it does with messages and calls is the same."""
    return {"server": ServerSide, "client": ClientSide}[request.param]()


# Messages.


def test_a_listener_gets_the_connection_at_a_server_and_the_payload_alone_at_a_client(server):
    heard = []
    server.endpoint.channel.on("chat", lambda *args: heard.append(args))
    peer = server.join()
    peer.say("chat", 1)
    client = ClientSide()
    client.endpoint.channel.on("chat", lambda *args: heard.append(args))
    client.join().say("chat", 2)
    assert heard == [(peer.conn, 1), (2,)]


def test_a_listener_that_raises_is_reported_and_the_next_one_and_the_connection_live_on(side):
    heard = []

    def bad(*args):
        raise RuntimeError("no")

    side.endpoint.channel.on("chat", bad)
    side.endpoint.channel.on("chat", lambda *args: heard.append(args[-1]))
    peer = side.join()
    peer.say("chat", 1)
    assert heard == [1]
    assert side.error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert side.error.details["type"] == "chat"
    assert isinstance(side.error.__cause__, RuntimeError)
    assert side.errors[0][1] is peer.session
    assert peer.session.valid


def test_a_listener_may_return_anything(side):
    side.endpoint.channel.on("chat", lambda *args: 5)
    side.join().say("chat", 1)
    side.scheduler.run()
    assert side.errors == []


def test_an_async_listener_that_raises_is_reported(side):
    async def bad(*args):
        raise RuntimeError("no")

    side.endpoint.channel.on("chat", bad)
    side.join().say("chat", 1)
    side.scheduler.run()
    assert isinstance(side.error.__cause__, RuntimeError)


def test_a_report_names_the_connection_at_the_server(server):
    server.endpoint.channel.on("chat", lambda conn, payload: 1 / 0)
    peer = server.join("ann")
    peer.say("chat")
    assert server.error.details == {"type": "chat", "cid": "ann", "conn_id": peer.conn.conn_id}


def test_async_listeners_start_in_order_of_arrival(side):
    heard = []
    gate = side.scheduler.create_future()

    async def listener(*args):
        heard.append(("starts", args[-1]))
        await gate
        heard.append(("ends", args[-1]))

    side.endpoint.channel.on("chat", listener)
    peer = side.join()
    peer.say("chat", 1)
    peer.say("chat", 2)
    side.scheduler.run()
    assert heard == [("starts", 1), ("starts", 2)]
    gate.set_result(None)
    side.scheduler.run()
    assert heard[2:] == [("ends", 1), ("ends", 2)]


# Violations.


def test_a_violation_says_who_sent_it_by_user_and_connection(server):
    peer = server.join("ann")
    peer.session.receive("garbage")
    assert server.error.details == {
        "from": f"ann#{peer.conn.conn_id}",
        "close": [1000, "wse.protocol-error"],
        "cid": "ann",
        "conn_id": peer.conn.conn_id,
    }
    assert server.error.__cause__ is not None


def test_a_violation_before_the_welcome_says_stranger(server):
    peer = server.open()
    peer.say("chat")
    assert server.error.details["from"] == "stranger"
    assert server.error.code == ErrorCode.PROTOCOL_VIOLATION


def test_a_violation_at_the_client_says_server():
    client = ClientSide()
    peer = client.join()
    peer.session.receive("garbage")
    assert client.error.details == {"from": "server", "close": [1000, "wse.protocol-error"]}
    assert client.names("ended") == [("ended", 1000, "wse.protocol-error")]


@pytest.mark.parametrize("name", [["a"], {"a": 1}])
@pytest.mark.parametrize("stamp", [None, 1])
def test_a_type_that_cannot_be_a_key_is_a_violation(side, name, stamp):
    peer = side.join()
    peer.say(name, 1, stamp)
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert peer.closed_with == (1000, "wse.protocol-error")


def test_what_the_transport_finds_is_reported_and_closed_with_its_code(side):
    peer = side.join()
    peer.session.violated(1002, "a reserved bit is set")
    assert peer.closed_with == (1002, "a reserved bit is set")
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert side.error.details["close"] == [1002, "a reserved bit is set"]


def test_a_message_that_the_transport_finds_too_large_exceeds_a_limit(side):
    peer = side.join()
    peer.session.violated(1009, "a message is too large")
    assert peer.closed_with == (1009, "wse.limit.message-size")
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED
    assert side.error.details["limit"] == "message_size"
    assert side.error.details["allowed"] == 1024 * 1024
    assert side.error.details["close"] == [1009, "wse.limit.message-size"]


def test_what_the_transport_finds_after_the_end_is_not_reported(side):
    peer = side.join()
    peer.session.close(1000, "")
    peer.session.violated(1009, "a message is too large")
    assert side.errors == []
    assert peer.closed_with == (1000, "")


def test_the_transport_may_find_a_violation_while_a_handler_thinks():
    side = ServerSide(identify=lambda auth: None)
    peer = side.open()
    peer.say("~wse:hi", {"identity": 1})
    peer.session.violated(1007, "no UTF-8")
    assert peer.closed_with == (1007, "no UTF-8")


def test_a_client_without_a_common_protocol_is_reported_and_closed(server):
    link = FakeLink()
    session = server.hub.open(link, FakeRequest(), None)
    assert link.closes == [(1000, CloseReason.PROTOCOL_ERROR)]
    assert "wse-default-json" in server.error.message
    session.receive('["~wse:hi",{"identity":1},null]')
    assert link.sent == link.late == []


# The peer calls.


def answer(peer):
    (message,) = peer.heard
    return message


def test_a_procedure_gets_the_payload_and_its_result_is_sent_back(side):
    side.endpoint.procedures.register("echo", lambda *args: args[-1])
    peer = side.join()
    peer.say("echo", {"a": 1}, "s")
    assert answer(peer) == ("~wse:response", {"a": 1}, "s")


def test_an_async_procedure_answers_when_it_is_done_and_others_do_not_wait(side):
    gate = side.scheduler.create_future()

    async def slow(*args):
        await gate
        return "slow"

    async def fast(*args):
        return "fast"

    side.endpoint.procedures.register("slow", slow)
    side.endpoint.procedures.register("fast", fast)
    peer = side.join()
    peer.say("slow", None, 1)
    peer.say("fast", None, 2)
    side.scheduler.run()
    assert answer(peer) == ("~wse:response", "fast", 2)
    gate.set_result(None)
    side.scheduler.run()
    assert answer(peer) == ("~wse:response", "slow", 1)


def late(error):
    async def procedure(*args):
        raise error

    return procedure


def now(error):
    def procedure(*args):
        raise error

    return procedure


@pytest.mark.parametrize("how", [now, late])
def test_a_procedure_that_raises_is_answered_and_reported(side, how):
    error = ValueError("no good")
    side.endpoint.procedures.register("fail", how(error))
    peer = side.join()
    peer.say("fail", 5, "s")
    side.scheduler.run()
    details = {"origin": {"name": "ValueError", "message": "no good"}, "rp": "fail", "rpc": "fail", "payload": 5}
    wire = {"code": "wse.server.rp.failed", "message": "no good", "details": details}
    assert answer(peer) == ("~wse:response-err", wire, "s")
    assert side.error.code == ErrorCode.RP_EXECUTION_FAILED
    expected = {"rp": "fail", "type": "fail", "payload": 5, "stamp": "s"}
    assert side.error.details == expected | peer.session.context()
    assert side.error.__cause__ is error
    assert peer.session.valid


def test_the_report_of_a_failed_procedure_names_user_and_connection(server):
    server.endpoint.procedures.register("fail", now(KeyError("x")))
    peer = server.join("ann")
    peer.say("fail", None, 1)
    expected = {"type": "fail", "payload": None, "stamp": 1, "cid": "ann", "conn_id": peer.conn.conn_id}
    assert server.error.details.items() >= expected.items()


@pytest.mark.parametrize("how", [now, late])
def test_a_wse_error_reaches_the_caller_with_its_code_and_details(side, how):
    side.endpoint.procedures.register("pay", how(WseError("app.poor", {"missing": 3}, "not enough")))
    peer = side.join()
    peer.say("pay", None, 1)
    side.scheduler.run()
    wire = {"code": "app.poor", "message": "not enough", "details": {"missing": 3, "rp": "pay", "rpc": "pay"}}
    assert answer(peer) == ("~wse:response-err", wire, 1)


def raise_from_a_cause(*args):
    try:
        raise KeyError("behind it")
    except KeyError as exc:
        raise ValueError("no") from exc


@pytest.mark.parametrize(
    ("expose", "origin"),
    [
        ("none", None),
        ("message", {"name": "ValueError", "message": "no"}),
        (
            "full",
            {"name": "ValueError", "message": "no", "causes": [{"name": "KeyError", "message": "'behind it'"}]},
        ),
    ],
)
def test_how_much_of_an_exception_its_caller_learns_is_adjustable(expose, origin):
    side = ServerSide(expose=expose)
    side.endpoint.procedures.register("fail", raise_from_a_cause)
    peer = side.join()
    peer.say("fail", None, 1)
    _, wire, _ = answer(peer)
    assert wire["code"] == "wse.server.rp.failed"
    assert wire["details"].get("origin") == origin
    assert wire["details"]["rp"] == "fail"


def test_nothing_of_an_exception_is_nothing_in_debug_mode_too():
    side = ServerSide(expose="none", debug=True)
    side.endpoint.procedures.register("fail", raise_from_a_cause)
    peer = side.join()
    peer.say("fail", None, 1)
    assert "ValueError" not in peer.link.sent[-1]


def test_an_error_of_the_application_s_own_travels_whatever_is_exposed():
    side = ServerSide(expose="none")
    side.endpoint.procedures.register("fail", now(WseError("app.x", {"why": 1}, "said")))
    peer = side.join()
    peer.say("fail", None, 1)
    _, wire, _ = answer(peer)
    assert (wire["code"], wire["message"], wire["details"]["why"]) == ("app.x", "said", 1)


@pytest.mark.parametrize("first", ["cause", "context"])
def test_causes_that_go_in_a_circle_end(first):
    one, other = ValueError("one"), ValueError("other")
    if first == "cause":
        one.__cause__, other.__cause__ = other, one
    else:
        one.__context__, other.__context__ = other, one
    wire = error_to_wire(one, "x", None, expose=ExposeErrors.FULL, debug=False)
    assert [cause["message"] for cause in wire["details"]["origin"]["causes"]] == ["other"]


def test_a_cause_that_was_suppressed_stays_so():
    error = ValueError("said")
    error.__context__ = KeyError("hidden")
    error.__suppress_context__ = True
    wire = error_to_wire(error, "x", None, expose=ExposeErrors.FULL, debug=False)
    assert wire["details"]["origin"]["causes"] == []


@pytest.mark.parametrize("debug", [True, False])
def test_a_stack_trace_travels_in_debug_mode_only(debug):
    side = ServerSide(debug=debug)
    side.endpoint.procedures.register("fail", now(ValueError("no")))
    peer = side.join()
    peer.say("fail", None, 1)
    _, wire, _ = answer(peer)
    assert ("stack" in wire["details"]["origin"]) == debug
    if debug:
        assert "ValueError: no" in wire["details"]["origin"]["stack"]
        assert __file__ in wire["details"]["origin"]["stack"]


def test_raising_does_not_change_the_application_s_own_details(side):
    error = WseError("app.poor", {"missing": 3})
    side.endpoint.procedures.register("pay", now(error))
    side.join().say("pay", 1, 1)
    assert error.details == {"missing": 3}


@pytest.mark.parametrize("is_async", [True, False])
def test_a_result_that_cannot_be_encoded_fails_the_call(side, is_async):
    async def later(*args):
        return object()

    side.endpoint.procedures.register("odd", later if is_async else lambda *args: object())
    peer = side.join()
    peer.say("odd", None, 1)
    side.scheduler.run()
    kind, wire, stamp = answer(peer)
    assert (kind, wire["code"], stamp) == ("~wse:response-err", "wse.server.rp.failed", 1)
    assert wire["details"]["origin"]["name"] == "TypeError"
    assert side.error.code == ErrorCode.RP_EXECUTION_FAILED


def test_error_details_that_cannot_be_encoded_are_left_out_of_the_answer(side):
    side.endpoint.procedures.register("odd", now(WseError("app.odd", {"what": object()})))
    peer = side.join()
    peer.say("odd", None, 1)
    assert answer(peer) == ("~wse:response-err", {"code": "app.odd", "details": {"rp": "odd", "rpc": "odd"}}, 1)
    assert peer.session.valid


def test_an_exception_that_cannot_be_told_is_still_an_answer(side):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    side.endpoint.procedures.register("odd", now(Broken()))
    peer = side.join()
    peer.say("odd", None, 1)
    details = {"rp": "odd", "rpc": "odd"}
    assert answer(peer) == ("~wse:response-err", {"code": "wse.server.rp.failed", "details": details}, 1)


class OneWay(Protocol):
    """It reads more than it can write."""

    name = "one-way"

    def pack(self, type, payload=None, stamp=None):
        if stamp == "unwritable":
            raise ValueError("cannot write that")
        return WseJSON().pack(type, payload, stamp)

    def unpack(self, data):
        return WseJSON().unpack(data)


def test_a_call_that_cannot_be_answered_at_all_is_reported():
    side = ServerSide(protocols=(OneWay(),))
    peer = side.join()
    peer.session.receive('["nothing",1,"unwritable"]')
    assert peer.heard == []
    assert side.error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert isinstance(side.error.__cause__, ValueError)
    assert peer.session.valid


def test_an_async_procedure_that_is_cancelled_answers_its_caller(side):
    async def slow(*args):
        await side.scheduler.create_future()

    side.endpoint.procedures.register("slow", slow)
    peer = side.join()
    peer.say("slow", None, 1)
    side.scheduler.run()
    (task,) = side.scheduler.unfinished
    task.cancel()
    side.scheduler.run()
    assert task.cancelled()
    kind, wire, stamp = answer(peer)
    assert (kind, wire["details"]["origin"]["name"], stamp) == ("~wse:response-err", "CancelledError", 1)
    assert side.errors == []


def test_an_async_handler_that_awaits_a_cancelled_task_has_failed(side):
    async def handler(*args):
        raise asyncio.CancelledError

    side.endpoint.channel.on("chat", handler)
    side.endpoint.procedures.register("ask", handler)
    peer = side.join()
    peer.say("chat", None)
    peer.say("ask", None, 1)
    side.scheduler.run()
    assert answer(peer)[0] == "~wse:response-err"
    codes = [error.code for error, _ in side.errors]
    assert codes == [ErrorCode.MSG_PROCESSING_ERROR, ErrorCode.RP_EXECUTION_FAILED]


def test_a_plain_procedure_that_raises_cancelled_answers_its_caller(side):
    side.endpoint.procedures.register("odd", now(asyncio.CancelledError()))
    peer = side.join()
    peer.say("odd", None, 1)
    assert answer(peer)[0] == "~wse:response-err"


def test_an_answer_that_comes_after_the_end_is_not_heard(side):
    gate = side.scheduler.create_future()

    async def slow(*args):
        await gate

    side.endpoint.procedures.register("slow", slow)
    peer = side.join()
    peer.say("slow", None, 1)
    side.scheduler.run()
    peer.session.close(1000, "")
    peer.session.closed(1000, "")
    gate.set_result(None)
    side.scheduler.run()
    assert peer.heard == []
    assert side.errors == []


def test_a_procedure_that_was_taken_away_is_not_registered(side):
    side.endpoint.procedures.register("add", lambda *args: 1)
    peer = side.join()
    side.endpoint.procedures.unregister("add")
    peer.say("add", None, 1)
    assert answer(peer)[1]["code"] == "wse.server.rp.not-registered"


# We call. The rest is in test_rpc.py.


def test_a_call_whose_payload_cannot_be_encoded_is_not_sent_and_not_pending(side):
    peer = side.join()
    task = peer.call("info", object())
    error = task.exception()
    assert error.code == ErrorCode.RP_SEND_FAILED
    assert error.details == {"rp": "info"}
    assert isinstance(error.__cause__, TypeError)
    assert peer.session.pending_calls == 0
    assert peer.heard == []


def test_a_call_before_the_welcome_cannot_be_sent(server):
    peer = server.open()
    assert peer.call("info").exception().code == ErrorCode.CLIENT_NOT_READY
    peer.session.forget_call(1)
    assert peer.session.pending_calls == 0


@pytest.mark.parametrize("name", ["~wse:hi", "~wse:x", "", None, ["x"]])
def test_a_reserved_name_can_be_neither_sent_nor_called(side, name):
    peer = side.join()
    assert peer.call(name).exception().code == ErrorCode.PROTOCOL_VIOLATION
    with pytest.raises(WseError) as caught:
        peer.session.send(name)
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    assert peer.heard == []


def test_a_response_on_another_connection_settles_nothing(server):
    server.hub.conns_per_user = 2
    mine, other = server.join("ann"), server.join("ann")
    task = mine.call("info")
    other.say("~wse:response", "forged", 1)
    other.say("~wse:response-err", {"code": "forged"}, 1)
    assert not task.done()
    mine.say("~wse:response", "real", 1)
    server.scheduler.run()
    assert task.result() == "real"


@pytest.mark.parametrize("type", ["~wse:response", "~wse:response-err"])
@pytest.mark.parametrize("stamp", [99, "1", [1], {"a": 1}, 1.5])
def test_a_response_with_an_unknown_stamp_is_dropped_in_silence(side, type, stamp):
    peer = side.join()
    peer.say(type, 1, stamp)  # before the first call
    task = peer.call("info")
    assert [message[0] for message in peer.heard] == ["info"]
    peer.say(type, 1, stamp)
    assert not task.done()
    assert peer.heard == []
    assert side.errors == []
    assert peer.session.valid
    task.cancel()
    side.scheduler.run()


# Sending.


def test_a_payload_that_cannot_be_encoded_is_the_sender_s_error(side):
    peer = side.join()
    with pytest.raises(WseError) as caught:
        peer.session.send("chat", object())
    assert caught.value.code == ErrorCode.MSG_PROCESSING_ERROR
    assert isinstance(caught.value.__cause__, TypeError)
    assert peer.heard == []
    assert peer.session.valid


def test_sending_before_the_welcome_or_after_the_end_does_nothing(server):
    peer = server.open()
    peer.session.send("chat", 1)
    assert peer.heard == []
    other = server.join()
    other.session.close(1000, "")
    other.session.send("chat", 1)
    assert other.heard == []
    assert other.link.late == []


def test_bytes_out_counts_messages_and_answers_to_the_byte(side):
    side.endpoint.procedures.register("echo", lambda *args: args[-1])
    peer = side.join()
    counted, written = side.endpoint.counters.bytes_out, len(peer.link.sent)
    peer.say("echo", "x", 7)
    peer.session.send("news", "y")
    new = peer.link.sent[written:]
    assert len(new) == 2
    assert side.endpoint.counters.bytes_out - counted == sum(len(data) for data in new)


def test_a_broadcast_is_encoded_once_for_each_protocol():
    side = ServerSide(protocols=(WseJSON(), WseMsgpack()))
    json, msgpack = side.endpoint.protocols
    peers = [side.join(name, protocol=protocol) for name, protocol in zip("abcd", [json, msgpack] * 2, strict=True)]
    side.hub.broadcast("news", {"a": 1})
    assert all(peer.heard == [("news", {"a": 1}, None)] for peer in peers)
    packed = [peer.link.shared[-1] for peer in peers]
    assert packed[0] is packed[2]
    assert packed[1] is packed[3]
    assert isinstance(packed[0].message, str)
    assert isinstance(packed[1].message, bytes)


def test_a_broadcast_reaches_valid_connections_only(server):
    inside, outside = server.join(), server.open()
    server.hub.broadcast("news", 1)
    assert inside.heard == [("news", 1, None)]
    assert outside.heard == []


def test_a_broadcast_checks_type_and_payload_even_when_nobody_is_there(server):
    with pytest.raises(WseError, match="protocol-violation"):
        server.hub.broadcast("~wse:hi", 1)
    with pytest.raises(WseError, match="msg-processing-error"):
        server.hub.broadcast("news", object())


def test_an_identity_sends_to_all_its_devices_and_to_nobody_else(server):
    server.hub.conns_per_user = 2
    one, two, other = server.join("ann"), server.join("ann"), server.join("bob")
    one.conn.client.send("news", 1)
    assert one.heard == two.heard == [("news", 1, None)]
    assert other.heard == []


# Several devices.


def test_an_identity_calls_all_its_devices_and_gets_results_and_errors_in_their_order(server):
    server.hub.conns_per_user = 3
    one, two, three = (server.join("ann") for _ in range(3))
    task = server.scheduler.start(one.conn.client.call("info", 5))
    three.say("~wse:response", "third", 1)
    one.say("~wse:response", "first", 1)
    two.say("~wse:response-err", {"code": "app.no"}, 1)
    server.scheduler.run()
    first, second, third = task.result()
    assert (first, second.code, third) == ("first", "app.no", "third")
    assert [peer.session.pending_calls for peer in (one, two, three)] == [0, 0, 0]


def test_a_call_to_all_devices_that_is_cancelled_leaves_nothing(server):
    server.hub.conns_per_user = 2
    one, two = server.join("ann"), server.join("ann")
    task = server.scheduler.start(one.conn.client.call("info"))
    two.session.closed(1006, "")  # its call has failed, and nobody will ask how
    task.cancel()
    server.scheduler.run()
    assert task.cancelled()
    assert one.session.pending_calls == 0
    del task
    server.scheduler.tasks.clear()
    assert server.scheduler.unheard == []


def test_a_call_to_all_devices_that_cannot_be_encoded_fails_for_each(server):
    server.hub.conns_per_user = 2
    one, _ = server.join("ann"), server.join("ann")
    task = server.scheduler.start(one.conn.client.call("info", object()))
    assert [error.code for error in task.result()] == [ErrorCode.RP_SEND_FAILED] * 2


def test_a_call_to_a_user_without_a_device_fails(server):
    peer = server.join("ann")
    identity = peer.conn.client
    peer.session.closed(1000, "")
    error = server.scheduler.start(identity.call("info")).exception()
    assert error.code == ErrorCode.CONNECTION_MISSING
    assert error.details == {"cid": "ann", "rp": "info"}


def test_a_dropped_user_leaves_once(server):
    server.hub.conns_per_user = 2
    one, two = server.join("ann"), server.join("ann")
    server.log.clear()
    server.hub.drop_client("ann", "bye", 1000)
    assert one.closed_with == two.closed_with == (1000, "bye")
    assert server.names("disconnected", "left") == [
        ("disconnected", "ann", 1000, "bye"),
        ("disconnected", "ann", 1000, "bye"),
        ("left", "ann", 1000, "bye"),
    ]
    server.hub.drop_client("ann", "bye", 1000)
    server.hub.drop_client("nobody", "bye", 1000)


@pytest.mark.parametrize(("code", "reason"), [(999, ""), (1005, ""), (1006, ""), (1015, ""), (2999, ""), (5000, "")])
def test_a_close_code_that_no_endpoint_may_send_is_refused(server, code, reason):
    peer = server.join()
    with pytest.raises(ValueError, match="close code"):
        peer.conn.drop(reason, code)
    assert peer.closed_with is None


def test_a_close_reason_fits_a_close_frame(server):
    peer = server.join()
    for too_long in ("x" * 124, "é" * 62):
        with pytest.raises(ValueError, match="123 bytes"):
            peer.conn.drop(too_long)
        with pytest.raises(ValueError, match="123 bytes"):
            server.hub.drop_client("ann", too_long, 1000)
    peer.conn.drop("é" * 61, 4999)
    assert peer.closed_with == (4999, "é" * 61)


# The end.


def test_after_our_close_nothing_is_heard_and_the_socket_closes_once(side):
    heard = []
    side.endpoint.channel.on("chat", lambda *args: heard.append(args))
    peer = side.join()
    peer.session.close(1000, "bye")
    assert peer.session.ready_state is ReadyState.CLOSING
    peer.session.close(1001, "again")
    peer.say("chat", 1)
    peer.session.receive("garbage")
    assert peer.closed_with == (1000, "bye")
    peer.session.closed(1006, "")
    assert peer.session.ready_state is ReadyState.CLOSED
    peer.session.close(1000, "")
    assert heard == []
    assert side.errors == []
    assert peer.session.ended
    assert peer.session._phase is ENDED


def test_the_end_is_told_once_with_the_code_of_who_closed_first(server):
    peer = server.join()
    server.log.clear()
    peer.session.close(1000, "ours")
    peer.session.closed(1001, "theirs")
    assert server.names("disconnected", "left") == [
        ("disconnected", "ann", 1000, "ours"),
        ("left", "ann", 1000, "ours"),
    ]


def test_a_listener_that_drops_the_connection_ends_it_and_the_answer_goes_nowhere(server):
    server.endpoint.procedures.register("leave", lambda conn, payload: conn.drop("left"))
    peer = server.join()
    peer.say("leave", None, 1)
    assert peer.closed_with == (1000, "left")
    assert peer.heard == []


def test_a_server_that_closes_waits_for_the_last_socket(server):
    one, two = server.join("ann"), server.open()
    task = server.scheduler.start(server.hub.close(1012, "wse.by-server"))
    other = server.scheduler.start(server.hub.close(1012, "wse.by-server"))
    assert one.closed_with == two.closed_with == (1012, "wse.by-server")
    one.session.closed(1012, "")
    server.scheduler.run()
    assert not task.done()
    two.session.closed(1012, "")
    server.scheduler.run()
    assert task.done()
    assert other.done()
    assert server.scheduler.start(server.hub.close(1012, "")).done()


def test_a_close_that_is_cancelled_does_not_trip_the_last_socket(server):
    peer = server.join()
    task = server.scheduler.start(server.hub.close(1012, ""))
    task.cancel()
    server.scheduler.run()
    peer.session.closed(1012, "")
    assert server.hub.sockets.open == set()


def test_a_client_can_wait_for_its_socket():
    client = ClientSide()
    peer = client.join()
    tasks = [client.scheduler.start(peer.session.wait_closed()) for _ in range(2)]
    cancelled = client.scheduler.start(client.open().session.wait_closed())
    peer.session.close(1000, "")
    client.scheduler.run()
    assert not any(task.done() for task in tasks)
    peer.session.closed(1000, "")
    client.scheduler.run()
    assert all(task.done() for task in tasks)
    assert client.scheduler.start(peer.session.wait_closed()).done()
    cancelled.cancel()
    client.scheduler.run()


def test_a_wait_for_the_socket_that_was_cancelled_does_not_trip_its_end():
    client = ClientSide()
    peer = client.join()
    client.scheduler.start(peer.session.wait_closed()).cancel()
    client.scheduler.run()
    peer.session.closed(1000, "")
    assert peer.session.ready_state is ReadyState.CLOSED


# Draining.


def test_drain_waits_a_turn_and_while_the_socket_is_full(side):
    peer = side.join()
    assert side.scheduler.start(peer.session.drain()).done()
    peer.session.writable(False)
    tasks = [side.scheduler.start(peer.session.drain()) for _ in range(2)]
    assert not any(task.done() for task in tasks)
    peer.session.writable(True)
    side.scheduler.run()
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize("end", ["close", "closed"])
def test_drain_ends_with_the_connection(side, end):
    peer = side.join()
    peer.session.writable(False)
    task = side.scheduler.start(peer.session.drain())
    getattr(peer.session, end)(1000, "")
    side.scheduler.run()
    assert task.done()
    assert side.scheduler.start(peer.session.drain()).done()


def test_a_drain_that_was_cancelled_does_not_trip_the_others(side):
    peer = side.join()
    peer.session.writable(False)
    cancelled, other = (side.scheduler.start(peer.session.drain()) for _ in range(2))
    cancelled.cancel()
    peer.session.writable(True)
    side.scheduler.run()
    assert cancelled.cancelled()
    assert other.done()


def test_drains_that_are_given_up_leave_nothing_behind(side):
    peer = side.join()
    peer.session.writable(False)
    for _ in range(3):
        task = side.scheduler.start(peer.session.drain())
        task.cancel()
        side.scheduler.run()
        assert task.cancelled()
    assert not peer.session._drainers


def test_a_connection_drains_its_session(server):
    assert server.scheduler.start(server.join().conn.drain()).done()


# Faces.


def test_a_connection_tells_who_and_where_it_is(server):
    peer = server.open()
    conn = peer.conn
    assert (conn.cid, conn.client, conn.identity, conn.meta) == (None, None, None, {})
    assert conn.ready_state is ReadyState.OPEN
    assert repr(conn) == "<WseConnection stranger OPEN>"
    peer.say("~wse:hi", {"identity": "ann", "meta": {"m": 1}})
    assert (conn.cid, conn.identity, conn.meta) == ("ann", "ann", {"m": 1})
    assert conn.client is server.hub.identities["ann"]
    assert conn.remote_addr == "192.0.2.1"
    assert conn.protocol is server.endpoint.protocols[0]
    assert repr(conn) == f"<WseConnection ann#{conn.conn_id} OPEN>"
    assert repr(conn.client) == "<WseIdentity ann with 1 connections>"
    assert dict(conn.client.conns) == {conn.conn_id: conn}
    with pytest.raises(TypeError):
        conn.client.conns["x"] = conn
    conn.send("news", 1)
    assert peer.heard[-1] == ("news", 1, None)
    task = server.scheduler.start(conn.call("info", 2))
    peer.say("~wse:response", 3, 1)
    server.scheduler.run()
    assert task.result() == 3


def test_connections_have_ids_of_their_own(server):
    assert len({server.open().conn.conn_id for _ in range(50)}) == 50


def test_a_signal_s_listener_that_raises_is_reported_with_its_connection(server):
    server.hub.connected(lambda conn: 1 / 0)
    server.hub.joined(lambda identity, meta: 1 / 0)
    peer = server.join()
    assert [(error.details["signal"], session) for error, session in server.errors] == [
        ("joined", None),
        ("connected", peer.session),
    ]
    assert peer.session.valid


# Custom protocols.


class Numbers(Protocol):
    """Types are small integers on the wire, zero among them, and messages are text."""

    name = "numbers"
    internal_types = InternalTypes(hi=0, challenge=1, welcome=2, call=3, response=4, response_error=5)

    def pack(self, type, payload=None, stamp=None):
        return WseJSON().pack(type, payload, stamp)

    def unpack(self, data):
        return WseJSON().unpack(data)


def test_a_protocol_may_use_small_integers_as_types():
    side = ServerSide(protocols=(Numbers(),), generator=lambda auth: "quest")
    heard = []
    side.endpoint.channel.on(6, lambda conn, payload: heard.append(payload))
    side.endpoint.procedures.register(7, lambda conn, payload: payload + 1)
    side.endpoint.procedures.register("fail", lambda conn, payload: 1 / 0)
    peer = side.open()
    peer.say(0, {"identity": "ann"})
    peer.say(1, "proof")
    peer.say(6, "hello")
    peer.say(7, 1, 1)
    peer.say(8, 1, 2)
    assert [message[0] for message in peer.heard] == [1, 2, 4, 5]
    assert heard == ["hello"]
    task = peer.call(9, "x")
    assert peer.heard == [(9, "x", 1)]
    peer.say(4, "y", 1)
    side.scheduler.run()
    assert task.result() == "y"
    for reserved in range(6):
        with pytest.raises(WseError, match="protocol-violation"):
            side.hub.broadcast(reserved, None)
