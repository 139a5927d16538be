"""The log lines of failures that no listener of `error` has taken.

A line at ERROR, with a traceback, is a fault of the application: an exception that one of its handlers raised. What
peers and networks do is expected: a line at WARNING without a traceback, folded when it repeats. A `WseError` that a
procedure raises is its answer, at INFO.

Every record has the keys of `facts`, which are stable: docs/how-to/logs.md lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from wse.core.folding import Folding
from wse.errors import ErrorCode, WseError, text_of

logger = logging.getLogger("wse")

_UNREACHED = frozenset((ErrorCode.WS_CLIENT_ERROR, ErrorCode.CONNECTION_CLOSED, ErrorCode.NOT_AUTHORIZED))
"""An attempt of a client to connect has failed."""

_EXPECTED = _UNREACHED | {ErrorCode.PROTOCOL_VIOLATION, ErrorCode.LIMIT_EXCEEDED, ErrorCode.SLOW_RECEIVER}
"""What peers and networks do."""

_LABELS: Final[Mapping[str, str]] = {
    "cid": "user",
    "conn_id": "connection",
    "rp": "procedure",
    "type": "type",
    "signal": "listener of",
    "handler": "handler",
    "limit": "limit",
    "overflow": "overflow",
    "topic": "topic",
    "url": "url",
}
"""The details that a line names, which are also keys of its record."""

_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), 127)}

_BURST = 10
"""Lines of one kind in a minute."""


def is_answer(error: WseError) -> bool:
    """Whether a procedure has raised a `WseError`: an answer, which is no failure."""
    return error.code == ErrorCode.RP_EXECUTION_FAILED and isinstance(error.__cause__, WseError)


def facts(error: WseError, context: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of an error has besides its text."""
    whole = {**context, **error.details}
    known = {key: whole[key] for key in _LABELS if whole.get(key) is not None}
    if "rp" in known:
        known.pop("type", None)  # the same name
    return known


class Log:
    """The log of one server or client.

    Args:
        clock: Returns a time in seconds.

    Attributes:
        folding: Folds repeated lines.
    """

    __slots__ = ("folding",)

    def __init__(self, clock: Callable[[], float]) -> None:
        self.folding = Folding(clock)

    def event(self, kind: str, text: str, *args: object, **known: Any) -> None:
        """Write what an operator expects to read, at INFO: at most `_BURST` lines of a kind in a minute."""
        self.folding.log(logger, logging.INFO, kind, text, *args, burst=_BURST, extra={"kind": kind, **known})

    def error(self, error: WseError, context: Mapping[str, Any]) -> None:
        """Write a failure.

        Args:
            error: The failure.
            context: Where it happened, as far as its details do not say so.
        """
        cause = error.__cause__
        known = facts(error, context)
        where = ", ".join(f"{_LABELS[key]} {value!r:.200}" for key, value in known.items() if key != "rp")
        text, where = _line(error), where and f" ({where})"
        extra = {"kind": "error", "code": str(error.code), **known}
        if is_answer(error):
            assert isinstance(cause, WseError)
            extra |= {"kind": "answer", "code": str(cause.code)}
            logger.info(
                "procedure %r has answered with an error: %s%s", known.get("rp"), _line(cause), where, extra=extra
            )
        elif error.code in _EXPECTED or "close" in error.details:
            burst = 1 if error.code in _UNREACHED else _BURST
            alike = error.code, error.details.get("limit")
            text = _with_cause(text, cause)
            self.folding.log(logger, logging.WARNING, alike, "%s%s", text, where, burst=burst, extra=extra)
        elif isinstance(cause, WseError):
            logger.warning("%s%s", _with_cause(text, cause), where, extra=extra)
        elif error.code == ErrorCode.BROKER_UNAVAILABLE:  # a traceback would show WSE's own code only
            logger.error("%s%s", _with_cause(text, cause), where, extra=extra)
        else:
            logger.error("%s%s", text, where, exc_info=cause, extra=extra)


def _with_cause(text: str, cause: BaseException | None) -> str:
    return text if cause is None else f"{text}: {_line(cause) or type(cause).__name__}"


def _line(exc: BaseException) -> str:
    """An exception's text, as one line: a peer may have had a say in it."""
    return text_of(exc).translate(_CONTROLS)
