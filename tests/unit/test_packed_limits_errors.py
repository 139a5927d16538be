"""The small pieces: packed messages, limits, errors, endpoint settings."""

from __future__ import annotations

import enum
import logging
import pickle

import pytest

from support.core import FakeScheduler, ServerSide
from wse import CloseReason, ErrorCode, InternalTypes, Limits, WseError
from wse.core.heartbeat import Heartbeat
from wse.core.hub.hub import Hub
from wse.core.packed import Packed
from wse.core.session.endpoint import Endpoint, emit_error, error_listener_failed
from wse.core.session.log import Log
from wse.core.session.signals import Signal
from wse.protocols.json import WseJSON


def test_packed_gives_a_text_message_as_a_string_built_once():
    packed = Packed("é".encode(), utf8=True)
    assert packed.message == "é"
    assert packed.message is packed.message
    assert packed.frame is None


@pytest.mark.parametrize("data", ["text", b"binary"])
def test_packed_gives_other_messages_as_they_are(data):
    assert Packed(data, utf8=False).message is data


@pytest.mark.parametrize("size", [0, -1])
def test_a_limit_below_one_byte_is_refused(size):
    with pytest.raises(ValueError, match="message_size"):
        Limits(message_size=size)


def test_limits_have_a_default_and_do_not_change():
    limits = Limits()
    assert limits.message_size == 1024 * 1024
    with pytest.raises(AttributeError):
        limits.message_size = 1


def test_an_error_s_text_shows_code_procedure_and_origin():
    origin = {"name": "ZeroDivisionError", "message": "by 0"}
    error = WseError(ErrorCode.RP_EXECUTION_FAILED, {"rp": "div", "origin": origin})
    assert str(error) == "wse.server.rp.failed: div: ZeroDivisionError: by 0"
    assert error.message == "ZeroDivisionError: by 0"


def test_an_empty_origin_says_no_more_than_the_code():
    assert WseError(ErrorCode.RP_EXECUTION_FAILED, {"origin": {}}).message == "the procedure failed"
    assert WseError("app.x", {"origin": {}}).message == ""


def test_an_origin_without_words_shows_its_name():
    assert WseError("app.x", {"origin": {"name": "KeyError", "message": ""}}).message == "KeyError"


def test_an_origin_that_is_no_object_is_not_shown():
    assert WseError("app.x", {"origin": "bank"}).message == ""
    assert str(WseError("app.x", {"origin": "bank"})) == "app.x"


def test_a_message_that_was_given_comes_first():
    assert WseError("app.x", {"origin": {"name": "KeyError"}}, "given").message == "given"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_words(code):
    assert WseError(code).message
    assert str(WseError(code)).startswith(code.value)


def test_a_code_given_as_text_is_the_enum_s_member_and_an_unknown_one_stays():
    assert WseError("wse.not-authorized").code is ErrorCode.NOT_AUTHORIZED
    assert WseError("app.x").code == "app.x"


def test_details_default_to_an_object_of_the_error_s_own():
    one, other = WseError("app.x"), WseError("app.x")
    one.details["a"] = 1
    assert other.details == {}
    details = {"a": 1}
    assert WseError("app.x", details).details is details


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(WseError("app.x", {"a": 1}, "words")))
    assert (error.code, error.details, error.message) == ("app.x", {"a": 1}, "words")
    assert repr(error) == "WseError('app.x', {'a': 1})"


def test_codes_and_reasons_are_strings():
    assert f"{CloseReason.BY_SERVER}" == "wse.by-server"
    assert ErrorCode.RP_TIMEOUT == "wse.client.rp.timeout"


def endpoint(**options):
    defaults = {
        "protocols": (WseJSON(),),
        "scheduler": FakeScheduler(),
        "timeout": 1,
        "limits": Limits(),
        "debug": False,
        "report": lambda error, session: None,
    }
    return Endpoint((), **(defaults | options))


def test_a_negative_timeout_is_refused():
    with pytest.raises(ValueError, match="timeout"):
        endpoint(timeout=-1)


@pytest.mark.parametrize(("conns", "auth", "what"), [(0, 1, "conns_per_user"), (1, -1, "auth_timeout")])
def test_a_hub_refuses_settings_out_of_range(conns, auth, what):
    with pytest.raises(ValueError, match=what):
        Hub(endpoint(), conns_per_user=conns, auth_timeout=auth, heartbeat=Heartbeat(), clock=lambda: 0.0)


def test_a_hub_without_an_identify_handler_opens_nothing():
    side = ServerSide(identify=None)
    with pytest.raises(WseError, match="identify-handler-missing"):
        side.open()
    assert side.hub.sockets.open == set()


class Kind(enum.StrEnum):
    CHAT = "chat"
    EMPTY = ""
    RESERVED = "~wse:mine"


def test_a_type_may_be_any_key_that_is_not_wse_s():
    check = endpoint().check_type
    for free in ("chat", 0, 1, False, ("a", 1), Kind.CHAT, b"x", 1.5):
        check(free)
    for refused in ("", None, "~wse:x", Kind.EMPTY, Kind.RESERVED, [], {}, ("a", [])):
        with pytest.raises(WseError) as caught:
            check(refused)
        assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION


def test_the_types_of_every_protocol_are_reserved():
    class Numbers(WseJSON):
        name = "numbers"
        internal_types = InternalTypes(hi=0, challenge=1, welcome=2, call=3, response=4, response_error=5)

    check = endpoint(protocols=(WseJSON(), Numbers())).check_type
    for refused in (0, 5, "~wse:hi"):
        with pytest.raises(WseError):
            check(refused)
    check(6)


def test_a_report_carries_its_cause_and_session():
    told = []
    point = endpoint(report=lambda *args: told.append(args))
    cause, session = RuntimeError("x"), object()
    point.report(WseError("a"), session, cause)
    point.report(WseError("b"))
    (first, where), (second, nowhere) = told
    assert (first.__cause__, where, second.__cause__, nowhere) == (cause, session, None, None)


def test_an_error_that_nobody_listens_to_is_logged_with_its_cause(caplog):
    signal = Signal("error", ("err",), FakeScheduler(), error_listener_failed)
    error = WseError("app.x")
    error.__cause__ = RuntimeError("deep down")
    emit_error(signal, error, log=Log(lambda: 0.0), context={})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("wse", logging.ERROR)
    assert "app.x" in caplog.text
    assert "deep down" in caplog.text


def test_an_error_that_somebody_listens_to_is_not_logged(caplog):
    heard = []
    signal = Signal("error", ("err",), FakeScheduler(), error_listener_failed)
    signal(heard.append)
    error = WseError("app.x")
    emit_error(signal, error, log=Log(lambda: 0.0), context={})
    assert heard == [error]
    assert caplog.records == []


def test_a_listener_of_error_that_raises_is_logged_and_nothing_more(caplog):
    signal = Signal("error", ("err",), FakeScheduler(), error_listener_failed)

    @signal
    def bad(err):
        raise RuntimeError("listener broke")

    emit_error(signal, WseError("app.x"), log=Log(lambda: 0.0), context={})
    assert "listener broke" in caplog.text
    assert "app.x" in caplog.text


def test_the_names_of_the_originals_documentation_are_aliases():
    assert ErrorCode.CONNECTION_NOT_READY is ErrorCode.CLIENT_NOT_READY
    assert ErrorCode.NO_CLIENT_CONNECTION is ErrorCode.CONNECTION_MISSING
    assert ErrorCode.MESSAGE_PROCESSING_ERROR is ErrorCode.MSG_PROCESSING_ERROR
    assert CloseReason.PROTOCOL_ERR is CloseReason.PROTOCOL_ERROR
