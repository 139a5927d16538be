"""What the caller of a failing procedure gets, and what it does not (WIRE.md section 4)."""

from __future__ import annotations

import pytest

from support.core import ClientSide, ServerSide
from wse.core.limits import Limits, nests_deeper
from wse.core.session.error_answers import ECHOED, encodable
from wse.core.session.rpc import ExposeErrors, error_from_wire
from wse.errors import ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack

SIDES = {"server": ServerSide, "client": ClientSide}


def raises(error):
    def procedure(*args):
        raise error

    return procedure


def failed(error, payload=None, *, side=ServerSide, **options):
    """The error answer to a call with that payload, and the side that gave it."""
    answering = side(**options)
    answering.endpoint.procedures.register("fail", raises(error))
    peer = answering.join()
    peer.heard  # noqa: B018 - reads
    peer.say("fail", payload, 1)
    ((kind, wire, stamp),) = peer.heard
    assert (kind, stamp) == ("~wse:response-err", 1)
    return wire, answering


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("expose", ExposeErrors)
def test_the_text_of_an_exception_travels_unless_nothing_is_exposed(side, expose):
    wire, _ = failed(ValueError("no good"), 5, side=side, expose=expose)
    if expose is ExposeErrors.NONE:
        assert wire == {"code": "wse.server.rp.failed", "details": {"rp": "fail", "rpc": "fail"}}
    else:
        assert wire["message"] == "no good"
        assert wire["details"]["payload"] == 5
        assert wire["details"]["origin"]["name"] == "ValueError"


def test_nothing_of_a_call_goes_back_when_nothing_is_exposed():
    for error in (ValueError("x"), WseError("app.x", {"n": 1}, "told")):
        wire, _ = failed(error, {"password": "secret"}, expose="none")
        assert "secret" not in str(wire)
    side = ServerSide(expose="none")
    peer = side.join()
    peer.say("absent", {"password": "secret"}, 1)
    ((_, wire, _),) = peer.heard
    assert wire["details"] == {"rp": "absent", "rpc": "absent"}


@pytest.mark.parametrize("protocol", [WseJSON(), WseMsgpack()])
def test_a_payload_goes_back_up_to_one_kibibyte_packed(protocol):
    around = len(protocol.pack("t", "x" * 500)) - len(protocol.pack("t", 0)) + 1 - 500
    for size, goes_back in ((ECHOED - 1, True), (ECHOED, True), (ECHOED + 1, False), (100_000, False)):
        wire, _ = failed(ValueError("x"), "x" * (size - around), protocols=(protocol,))
        assert ("payload" in wire["details"]) is goes_back


@pytest.mark.parametrize("payload", [0, False, "", [], {}])
def test_every_small_payload_but_null_goes_back(payload):
    assert failed(ValueError("x"), payload)[0]["details"]["payload"] == payload
    assert "payload" not in failed(ValueError("x"))[0]["details"]


class OneWay(WseJSON):
    """A protocol that reads what it cannot write."""

    name = "one-way"

    def pack(self, type, payload=None, stamp=None):
        if "read only" in str(payload):
            raise ValueError("read only")
        return super().pack(type, payload, stamp)


def test_a_payload_that_cannot_be_sent_back_is_left_out():
    wire, _ = failed(ValueError("x"), "fine", protocols=(OneWay(),))
    assert wire["details"]["payload"] == "fine"
    side = ServerSide(protocols=(OneWay(),))
    side.endpoint.procedures.register("fail", raises(ValueError("x")))
    peer = side.join()
    peer.heard  # noqa: B018 - reads
    peer.session.receive('["fail","read only",1]')
    assert "payload" not in peer.heard[0][1]["details"]
    assert side.error.code == ErrorCode.RP_EXECUTION_FAILED


def test_the_application_s_own_payload_stays():
    wire, _ = failed(WseError("app.x", {"payload": "mine", "rp": "mine"}), 5)
    assert wire["details"] == {"payload": "mine", "rp": "mine", "rpc": "fail"}
    wire, _ = failed(WseError("app.x", {"payload": "mine"}), 5, expose="none")
    assert wire["details"]["payload"] == "mine"


def test_details_lose_only_what_cannot_be_encoded_and_the_server_is_told():
    details = {"n": 1, "bad": object(), "deep": {"ok": [1, object(), {"x": object(), "y": None}]}, ("a", "b"): 1}
    wire, side = failed(WseError("app.x", details, "told"), 5)
    kept = {"n": 1, "deep": {"ok": [1, None, {"y": None}]}}
    assert wire == {"code": "app.x", "message": "told", "details": {**kept, "rp": "fail", "rpc": "fail", "payload": 5}}
    codes = [error.code for error, _ in side.errors]
    assert codes == [ErrorCode.MSG_PROCESSING_ERROR, ErrorCode.RP_EXECUTION_FAILED]
    assert side.errors[0][0].details["rp"] == "fail"
    assert isinstance(side.errors[0][0].__cause__, TypeError)


def test_details_that_go_round_in_a_circle_are_answered():
    details = {"n": 1}
    details["self"] = details
    wire, _ = failed(WseError("app.x", details))
    assert wire["code"] == "app.x"
    assert wire["details"]["n"] == 1


def test_objects_that_refer_to_each_other_are_looked_at_once():
    looks = 0

    def can_encode(value):
        nonlocal looks
        looks += 1
        assert looks < 200, "there are too many ways through these objects"
        return isinstance(value, str) or value in ({key: None} for key in ("name", "children", "parent", "siblings"))

    parent = {"name": "parent", "children": []}
    parent["children"] += [{"name": str(n), "parent": parent, "siblings": parent["children"]} for n in range(8)]
    kept = encodable(parent, can_encode)
    assert kept == {"name": "parent", "children": [{"name": str(n)} for n in range(8)]}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_details_that_are_nested_too_deep_for_the_caller_are_cut(side):
    deep = "bottom"
    for _ in range(1000):
        deep = {"deeper": deep, "list": [deep] if deep == "bottom" else []}
    wire, answering = failed(WseError("app.x", {"n": 1, "deep": deep}), side=side)
    assert (wire["code"], wire["details"]["n"]) == ("app.x", 1)
    assert not nests_deeper(wire, Limits().nesting)
    assert nests_deeper(wire, Limits().nesting - 1)
    assert answering.errors[0][0].code == ErrorCode.MSG_PROCESSING_ERROR


@pytest.mark.parametrize(("levels", "goes_back"), [(8, True), (9, False), (10, False)])
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_payload_that_would_be_nested_too_deep_does_not_go_back(side, levels, goes_back):
    payload = "bottom"
    for _ in range(levels):
        payload = [payload]
    wire, _ = failed(ValueError("x"), payload, side=side, limits=Limits(nesting=10))
    assert ("payload" in wire["details"]) is goes_back
    assert not nests_deeper(wire, 10)


def test_a_message_that_cannot_be_encoded_is_left_out():
    wire, _ = failed(WseError("app.x", {"n": 1}, "half an emoji: \ud83d"))
    assert wire == {"code": "app.x", "details": {"n": 1, "rp": "fail", "rpc": "fail"}}


def test_a_value_of_which_nothing_can_be_encoded_is_none():
    assert encodable(object(), lambda value: False) is None


# What the caller makes of it.


def test_an_error_without_a_code_keeps_its_details_and_message():
    error = error_from_wire({"details": {"a": 1}, "message": "said"})
    assert (error.code, error.details, error.message) == (ErrorCode.RP_EXECUTION_FAILED, {"a": 1}, "said")


@pytest.mark.parametrize("code", [None, 7, "", ["x"]])
@pytest.mark.parametrize("details", [None, [1], "x"])
def test_a_malformed_error_is_an_error(code, details):
    error = error_from_wire({"code": code, "details": details})
    assert (error.code, error.details) == (ErrorCode.RP_EXECUTION_FAILED, {})


def test_a_message_that_only_repeats_the_origin_gives_way_to_it():
    wire, _ = failed(KeyError("x"))
    assert error_from_wire(wire).message == "KeyError: 'x'"


# Calls that cannot be made.


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_call_on_a_connection_that_is_not_valid_is_not_ready(side):
    calling = side()
    stranger, ended, dropped = calling.open(), calling.join(), None
    ended.session.closed(1006, "")
    dropped = calling.join()
    dropped.session.close(1000, "bye")
    for peer in (stranger, ended, dropped):
        assert peer.call("info").exception().code == ErrorCode.CLIENT_NOT_READY
        assert peer.session.pending_calls == 0


@pytest.mark.parametrize("timeout", [None, 0, 5])
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_write_that_raises_leaves_no_pending_call(side, timeout):
    calling = side()
    peer = calling.join()

    def fail(data):
        raise OSError("the transport is broken")

    peer.link.write_utf8 = fail
    timers = calling.scheduler.timers
    error = peer.call("info", 1, timeout).exception()
    assert error.code == ErrorCode.RP_SEND_FAILED
    assert isinstance(error.__cause__, OSError)
    assert peer.session.pending_calls == 0
    assert calling.endpoint.counters.calls_out == 0
    if timeout == 5:
        assert calling.scheduler.timers == timers


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_call_of_a_reserved_name_asks_whether_the_peer_lives(side):
    """Clients ask a silent server so: the answer costs no report and is not counted (WIRE.md section 7)."""
    asked = side()
    peer = asked.join()
    peer.heard  # noqa: B018 - reads
    for name in ("~wse:ping", "~wse:ask", "~wse:anything"):
        peer.say(name, None, 7)
        details = {"rp": name, "rpc": name}
        ((kind, wire, stamp),) = peer.heard
        assert (kind, wire["code"], wire["details"]) == ("~wse:response-err", ErrorCode.RP_NOT_REGISTERED, details)
        assert stamp == 7
    assert asked.errors == []
    assert asked.endpoint.counters.errors == {}
    assert asked.endpoint.counters.calls_in == 0
    assert asked.endpoint.counters.messages_in == 0


# What hi may leave out.


@pytest.mark.parametrize("meta", ["null", "false", "0", "0.0", '""', "{}"])
def test_a_falsy_meta_is_an_empty_one(meta):
    side = ServerSide()
    peer = side.open()
    peer.session.receive(f'["~wse:hi",{{"identity":"ann","meta":{meta}}},null]')
    assert peer.session.valid
    assert peer.conn.meta == {}
    assert side.names("joined") == [("joined", "ann", {})]


@pytest.mark.parametrize("meta", ["7", "true", '"x"', "[]", "[1]"])
def test_any_other_meta_that_is_not_an_object_is_a_violation(meta):
    side = ServerSide()
    peer = side.open()
    peer.session.receive(f'["~wse:hi",{{"identity":"ann","meta":{meta}}},null]')
    assert peer.closed_with == (1000, "wse.protocol-error")
