"""The `limits` extension: a client that tells the largest message that it takes gets no larger one."""

from __future__ import annotations

import pytest

from support.core import ServerSide
from wse.errors import ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack

MAX = 300


class TextJSON(WseJSON):
    """A protocol of a user, whose messages are text."""

    name = "text-json"

    def pack(self, type, payload=None, stamp=None):
        return super().pack(type, payload, stamp)


PROTOCOLS = {"json": WseJSON, "msgpack": WseMsgpack, "text": TextJSON}


@pytest.fixture(params=PROTOCOLS)
def side(request):
    return ServerSide(protocols=(PROTOCOLS[request.param](),), conns_per_user=3)


def come(side, size=MAX, cid="ann"):
    peer = side.open()
    ext = {} if size is None else {"limits": {"message_size": size}}
    peer.say("~wse:hi", {"identity": cid, "ext": ext})
    assert peer.session.valid
    peer.heard  # noqa: B018 - reads
    return peer


def size_of(data):
    return len(data.encode() if isinstance(data, str) else data)


def payload_for(side, size, make):
    """The largest payload whose message has at most `size` bytes."""
    protocol = side.endpoint.protocols[0]
    text = ""
    while size_of(protocol.pack(*make(text + "é"))) <= size:
        text += "é"
    return text


def test_the_server_answers(side):
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {"limits": {"message_size": MAX}}})
    assert peer.heard == [("~wse:ext", {"limits": {}}, None), ("~wse:welcome", "welcome", None)]


@pytest.mark.parametrize("offer", [None, {}, 7, *({"message_size": n} for n in (None, 0, -5, "300", True, 3.5, [300]))])
def test_an_offer_that_makes_no_sense_is_none(offer):
    side = ServerSide()
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {"limits": offer}})
    assert peer.heard == [("~wse:welcome", "welcome", None)]
    peer.conn.send("chat", "x" * 10_000)
    assert len(peer.heard) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_result_that_is_too_large_is_an_error_answer(side, is_async):
    def now(conn, payload):
        return payload

    async def later(conn, payload):
        return payload

    side.endpoint.procedures.register("echo", later if is_async else now)
    peer = come(side)
    text = payload_for(side, MAX, lambda text: ("~wse:response", text, 1))
    peer.say("echo", text, 1)
    side.scheduler.run()
    assert peer.heard == [("~wse:response", text, 1)]
    peer.say("echo", text + "é", 1)
    peer.say("echo", text + "é" * 500, 1)
    side.scheduler.run()
    for kind, wire, stamp in peer.heard:
        assert (kind, stamp) == ("~wse:response-err", 1)
        assert wire["code"] == ErrorCode.LIMIT_EXCEEDED
        assert wire["details"]["limit"] == "message_size"
        assert wire["details"]["allowed"] == MAX
        assert wire["details"]["rp"] == "echo"
    assert all(size_of(data) <= MAX for data in peer.link.sent)
    assert peer.closed_with is None
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED
    assert side.error.details.items() >= {"rp": "echo", "cid": "ann"}.items()
    assert side.endpoint.counters.dropped["too-large"] == 2


def test_an_error_answer_is_cut_to_what_the_client_takes(side):
    def fail(conn, payload):
        raise WseError("app.big", {"text": "x" * 5000})

    side.endpoint.procedures.register("fail", fail)
    peer = come(side)
    bare = ("~wse:response-err", {"code": "app.big", "details": {"rp": "fail", "rpc": "fail"}}, 1)
    peer.say("fail", None, 1)
    peer.say("fail", None, 1)
    assert peer.heard == [bare, bare]
    codes = [error.code for error, _ in side.errors]
    assert codes == [ErrorCode.LIMIT_EXCEEDED, ErrorCode.RP_EXECUTION_FAILED, ErrorCode.RP_EXECUTION_FAILED]


def test_a_client_that_takes_next_to_nothing_does_not_flood_the_reports(side):
    side.endpoint.procedures.register("echo", lambda conn, payload: payload)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {"limits": {"message_size": 60}}})
    peer.heard  # noqa: B018 - reads
    for _ in range(5):
        peer.say("echo", "x" * 100, 1)
        peer.say("absent", None, 2)
    assert [message[1]["code"] for message in peer.heard] == [ErrorCode.LIMIT_EXCEEDED, ErrorCode.RP_NOT_REGISTERED] * 5
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED


def test_a_message_to_one_device_that_is_too_large_raises(side):
    peer = come(side)
    text = payload_for(side, MAX, lambda text: ("chat", text))
    peer.conn.send("chat", text)
    with pytest.raises(WseError, match="limit-exceeded") as caught:
        peer.conn.send("chat", text + "é")
    assert caught.value.details == {
        "limit": "message_size",
        "allowed": MAX,
        "size": caught.value.details["size"],
        "type": "chat",
    }
    assert peer.heard == [("chat", text, None)]
    assert peer.session.valid


def test_a_call_that_is_too_large_raises_and_leaves_nothing_behind(side):
    peer = come(side)
    error = peer.call("info", "é" * MAX).exception()
    assert error.code == ErrorCode.LIMIT_EXCEEDED
    assert error.details["rp"] == "info"
    assert peer.session.pending_calls == 0
    assert peer.heard == []
    assert side.endpoint.counters.calls_out == 0


@pytest.mark.parametrize("writable", [True, False])
def test_a_message_to_many_skips_those_that_do_not_take_it(side, writable):
    small, large, free = come(side), come(side, 100_000), come(side, None)
    for peer in (small, large, free):
        peer.session.writable(writable)
    for _ in range(3):
        side.hub.broadcast("chat", "é" * MAX)
        side.hub.send("ann", "chat", "é" * MAX)
    side.hub.broadcast("chat", "short")
    for peer in (small, large, free):
        peer.session.writable(True)
    assert [message[1] for message in small.heard] == ["short"]
    for peer in (large, free):
        assert [len(message[1]) for message in peer.heard] == [MAX] * 6 + [5]
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED
    assert side.error.details.items() >= {"limit": "message_size", "allowed": MAX, "type": "chat", "cid": "ann"}.items()
    assert side.errors[0][1] is small.session
    assert side.endpoint.counters.dropped["too-large"] == 6


def test_a_welcome_that_is_too_large_is_the_handlers_error():
    side = ServerSide(lambda auth: auth.accept("ann", "x" * MAX))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": {"limits": {"message_size": MAX}}})
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert side.error.__cause__.code == ErrorCode.LIMIT_EXCEEDED
    assert side.hub.identities == {}


def test_a_call_just_under_the_limit_does_not_kill_its_own_sender():
    """The error answer does not carry the payload back."""
    side = ServerSide()
    side.endpoint.procedures.register("fail", lambda conn, payload: 1 / 0)
    peer = come(side, 1024 * 1024)
    peer.say("fail", "x" * (1024 * 1024 - 30), 1)
    peer.say("absent", "x" * (1024 * 1024 - 30), 2)
    assert [size_of(data) < 500 for data in peer.link.sent[-2:]] == [True, True]
