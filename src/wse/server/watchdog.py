"""Finds handlers that block the event loop, at no cost for those that do not.

A thread checks regularly whether the loop still turns. If it has not for too long, the thread looks at the stack of the
loop's thread: the function that WSE called there is the one that blocks.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

logger = logging.getLogger("wse")

_OURS = tuple(str(Path(__file__).parent.parent / part) for part in ("core", "typed", "validation"))


class Watchdog:
    """Watches one event loop.

    Args:
        threshold: Seconds for which a handler may block the loop.
        blocked: Called on the loop afterwards, with the handler's name and the seconds.
    """

    def __init__(self, threshold: float, blocked: Callable[[str, float], None]) -> None:
        if threshold <= 0:
            raise ValueError(f"the watchdog's threshold must be more than 0 seconds, not {threshold}")
        self._threshold = threshold
        self._blocked = blocked
        self._loop: asyncio.AbstractEventLoop
        self._loop_thread = 0
        self._turned = 0.0  # when the loop last turned
        self._culprit: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the loop; must be called on its thread."""
        self.stop()
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._turn()
        threading.Thread(target=self._watch, args=(self._stopped,), name="wse-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        """On the loop, several times in `threshold` seconds."""
        now = monotonic()
        culprit, self._culprit = self._culprit, None
        if culprit is not None:
            self._blocked(culprit, now - self._turned)
        self._turned = now
        self._timer = self._loop.call_later(self._threshold / 4, self._turn)

    def _watch(self, stopped: threading.Event) -> None:
        """On a thread of its own."""
        suspect: tuple[int, str] | None = None
        while not stopped.wait(self._threshold / 4) and not self._loop.is_closed():
            if self._culprit is not None:
                continue
            blocked_for = monotonic() - self._turned
            if blocked_for < self._threshold / 2:
                suspect = None
                continue
            # Twice the same call of the same handler: a loop that only lacks processor time has no culprit.
            seen = _handler(sys._current_frames().get(self._loop_thread))
            if seen is not None and seen == suspect and blocked_for >= self._threshold:
                self._culprit = seen[1]
                extra = {"kind": "handler-blocks", "handler": seen[1], "seconds": round(blocked_for, 3)}
                logger.warning(
                    "the handler %s has blocked the event loop for %.1f s", seen[1], blocked_for, extra=extra
                )
            suspect = seen


def _handler(frame: FrameType | None) -> tuple[int, str] | None:
    """The identity and the name of the handler's call on a stack: the outermost call that WSE has made."""
    found = None
    while frame is not None and frame.f_back is not None:
        caller = frame.f_back
        is_ours = frame.f_code.co_filename.startswith(_OURS)
        if not is_ours and caller.f_code.co_filename.startswith(_OURS):
            code = frame.f_code
            found = id(frame), f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
        frame = caller
    return found
