"""Folds repeated log lines, so that a flood of events is no flood of lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

INTERVAL = 60.0
"""Seconds in which repeated lines are folded."""

MOST = 100
"""Kinds of lines that are told apart; what exceeds this is folded together. A kind may contain a peer's text."""


class Folding:
    """Lets the first lines of each kind pass, and counts those that follow in the same minute.

    Args:
        clock: Returns a time in seconds.
    """

    __slots__ = ("_clock", "_kinds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, list[float]] = {}  # by kind: when its minute began, lines in it, lines left out

    def log(
        self,
        logger: logging.Logger,
        level: int,
        alike: Hashable,
        text: str,
        *args: object,
        burst: int = 1,
        extra: dict[str, Any],
        exc_info: BaseException | None = None,
    ) -> None:
        """Write a line, unless too many alike have been written in this minute.

        Args:
            logger: Where to write it.
            level: Its level.
            alike: Lines for which this is the same are folded.
            text: Its text.
            args: For the text.
            burst: How many lines alike may be written in a minute.
            extra: Further keys of the record.
            exc_info: An exception whose traceback follows.
        """
        left_out = self.left_out(alike, burst)
        if left_out is None:
            return
        if left_out:
            text, args = text + " (and %d more like this)", (*args, left_out)
        logger.log(level, text, *args, extra={**extra, "left_out": left_out}, exc_info=exc_info, stacklevel=2)

    def left_out(self, alike: Hashable, burst: int) -> int | None:
        """How many lines were left out since the last one; `None` if one more is to be left out."""
        now = self._clock()
        seen = self._kinds.get(alike)
        if seen is None:
            if len(self._kinds) >= MOST:
                self._kinds = {kind: seen for kind, seen in self._kinds.items() if now - seen[0] < INTERVAL}
            if len(self._kinds) >= MOST:
                alike = None
            seen = self._kinds.setdefault(alike, [now, 0, 0])
        if now - seen[0] >= INTERVAL:
            seen[:2] = now, 0
        if seen[1] >= burst:
            seen[2] += 1
            return None
        seen[1] += 1
        left_out, seen[2] = int(seen[2]), 0
        return left_out
