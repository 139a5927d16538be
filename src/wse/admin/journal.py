"""The last failures of a server, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wse.core.session.log import facts
from wse.errors import ErrorCode, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from wse.errors import WseError

MOST: Final = 50
"""Kinds of failures that are kept."""

_PACKAGE: Final = str(Path(__file__).parent.parent)


def shown(value: object, most: int = 200) -> str:
    """A value as text for the page: not too long, and such that JSON can carry it."""
    text = text_of(value)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.encode("utf-8", "replace").decode()


def place_of(error: BaseException | None) -> str:
    """Where an exception was raised: the innermost line of the application, or else of WSE."""
    place = ""
    is_ours = True
    trace: TracebackType | None = None if error is None else error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        inside = code.co_filename.startswith(_PACKAGE)
        if is_ours or not inside:
            place = f"{code.co_filename}:{trace.tb_lineno} in {code.co_qualname}"
            is_ours = inside
        trace = trace.tb_next
    return place


class Journal:
    """Keeps the last failures; those of one kind are one entry, with their number.

    The kinds come from this side, codes and places, so peers cannot drive out what others have caused.

    Args:
        clock: Returns a time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}  # the latest last

    def note(self, error: WseError, context: Mapping[str, Any]) -> None:
        """Keep a failure.

        Args:
            error: The failure.
            context: Where it happened, as far as its details do not say so.
        """
        cause = error.__cause__
        known = facts(error, context)
        place = place_of(cause)
        handler = known.get("handler") if error.code == ErrorCode.HANDLER_BLOCKED else None
        kind = str(error.code), place, *(str(known.get(name)) for name in ("rp", "signal", "limit")), str(handler)
        before = self._kept.pop(kind, None)
        entry = {
            "code": shown(error.code),
            "text": shown(error.message, 500),
            "cause": "" if cause is None else f"{type(cause).__name__}: {shown(cause, 500)}",
            "place": shown(place, 500),
            "facts": {name: shown(value) for name, value in known.items()},
            "seconds": error.details.get("seconds"),
            "count": 1 if before is None else before[1]["count"] + 1,
        }
        self._kept[kind] = self._clock(), entry
        if len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]

    def entries(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The handlers that have blocked the event loop, and all else that is kept; the latest first, each with the
        seconds that have passed since.
        """
        now = self._clock()
        blocked: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for at, entry in reversed(self._kept.values()):
            is_blocked = entry["code"] == ErrorCode.HANDLER_BLOCKED
            (blocked if is_blocked else others).append({**entry, "ago": max(0.0, now - at)})
        return blocked, others
