"""The answers to calls that have failed: complete, but for what must not travel or cannot (WIRE.md section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from wse.core.limits import Limits, nests_deeper
from wse.core.session.rpc import ExposeErrors, error_to_wire
from wse.errors import ErrorCode, WseError
from wse.types import MessageType
from wse.validation.foreign import encode_foreign

ECHOED = 1024
"""Bytes, packed, up to which the payload of a call goes back with its error (WIRE.md section 4)."""

Encode = Callable[[tuple[Any, Any, Any]], Any]


_OUTCOMES = {
    ErrorCode.RP_NOT_REGISTERED: "unknown",
    ErrorCode.RP_IS_A_STREAM: "unknown",
    ErrorCode.RP_NOT_A_STREAM: "unknown",
    ErrorCode.LIMIT_EXCEEDED: "limit",
}


def outcome_of(exc: BaseException) -> str:
    """The outcome of a call that is answered with an error: `error` is a `WseError` that the procedure raised, and
    `crash` any other exception.
    """
    if isinstance(exc, WseError):
        return _OUTCOMES.get(exc.code, "error") if isinstance(exc.code, ErrorCode) else "error"
    return "crash" if isinstance(exc, Exception) else "cancelled"


class ErrorAnswer(NamedTuple):
    """An encoded error answer.

    Attributes:
        data: The message; `None` if not even the code can be encoded.
        cause: The reason why the answer has less than the error, if something could not be encoded.
        too_large: The complete message, if the peer does not take that many bytes.
    """

    data: Any
    cause: Exception | None = None
    too_large: Any = None


def encode_error(
    exc: BaseException,
    call: tuple[MessageType, Any, Any],
    *,
    encode: Encode,
    response_error: MessageType,
    takes: Callable[[Any], bool],
    nesting: int,
    expose: ExposeErrors,
    debug: bool,
) -> ErrorAnswer:
    """Encode the answer to a call that has failed.

    Args:
        exc: The exception.
        call: Name, payload and stamp of the call.
        encode: Encodes a message.
        response_error: The type of the answer.
        takes: Whether the peer takes an encoded message of that size.
        nesting: How deep the payload of a call may be nested.
        expose: How much the caller learns.
        debug: Whether the caller gets stack traces.
    """
    name, payload, stamp = call
    payload = echoed = _plain(payload)
    if (
        expose is ExposeErrors.NONE
        or nests_deeper(payload, nesting - 2)  # it is two levels deeper in the answer
        or not _is_small(payload, response_error, encode, takes)
    ):
        echoed = None
    cause: Exception | None = None
    data: Any = None
    wire: Any = None
    try:
        wire = error_to_wire(exc, name, echoed, expose=expose, debug=debug)
        data = encode((response_error, wire, stamp))
        if len(data) > _DEEPEST and nests_deeper(wire, _DEEPEST):
            raise ValueError(f"the details are nested more than {_DEEPEST} deep")
    except Exception as error:
        cause, data = error, None
        if wire is not None:  # else the exception cannot even tell its text
            kept = encodable(wire, lambda value: _try((response_error, value, stamp), encode) is not None)
            data = _try((response_error, kept, stamp), encode)
    if data is not None and takes(data):
        return ErrorAnswer(data, cause)
    code = exc.code if isinstance(exc, WseError) else ErrorCode.RP_EXECUTION_FAILED
    try:
        bare = encode((response_error, {"code": str(code), "details": {"rp": name, "rpc": name}}, stamp))
    except Exception as error:  # a protocol that cannot send back what it has received
        return ErrorAnswer(None, cause or error, data)
    return ErrorAnswer(bare, cause, data)


def _plain(payload: Any) -> Any:
    """The payload of a call, which may have been decoded into an object of a class, as plain values."""
    if isinstance(payload, dict | list | str | int | float | bytes | None):
        return payload
    try:
        return msgspec.to_builtins(payload, enc_hook=encode_foreign)
    except Exception:
        return None


def _is_small(payload: Any, kind: MessageType, encode: Encode, takes: Callable[[Any], bool]) -> bool:
    """Whether a payload may go back to its sender: it is small, and a small part of what the sender takes."""
    data = _try((kind, payload, None), encode)
    envelope = _try((kind, 0, None), encode)
    if payload is None or data is None or envelope is None:
        return False
    return len(data) - len(envelope) + 1 <= ECHOED and takes(data * 4)


_DEEPEST = Limits().nesting
"""The levels of lists and dicts that an answer may have. The peer's own limit is not known; this is the default."""

_LOST: Any = object()


def encodable(value: Any, can_encode: Callable[[Any], bool]) -> Any:
    """The value without the parts that cannot be encoded or are nested too deep: entries of a dict are left out, in a
    list they are `None`.
    """
    kept = _encodable(value, can_encode, _DEEPEST, {})
    return None if kept is _LOST else kept


def _encodable(value: Any, can_encode: Callable[[Any], bool], nesting: int, seen: dict[int, Any]) -> Any:
    """As `encodable`.

    Args:
        value: The value.
        can_encode: Whether a value can be encoded.
        nesting: The levels of lists and dicts that it may have.
        seen: What has been kept of each list and dict, by `id`. Each is looked at once: the ways through objects that
            refer to each other have no end.
    """
    if not isinstance(value, dict | list | tuple):
        return value if can_encode(value) else _LOST
    if nesting <= 0:
        return _LOST
    if id(value) in seen:
        return seen[id(value)]
    if can_encode(value) and not nests_deeper(value, nesting):
        return value
    seen[id(value)] = _LOST  # inside of itself
    kept: Any
    if isinstance(value, dict):
        items = {k: _encodable(v, can_encode, nesting - 1, seen) for k, v in value.items() if can_encode({k: None})}
        kept = {key: item for key, item in items.items() if item is not _LOST}
    else:
        kept = [_encodable(item, can_encode, nesting - 1, seen) for item in value]
        kept = [None if item is _LOST else item for item in kept]
    seen[id(value)] = kept
    return kept


def _try(message: tuple[Any, Any, Any], encode: Encode) -> Any:
    """The encoded message, or `None` if it cannot be encoded."""
    try:
        return encode(message)
    except Exception:
        return None
