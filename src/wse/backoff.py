"""The waits of a client that reconnects."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential backoff with full jitter: the n-th wait is random, up to `base * factor ** n`, at most `cap`.

    Full jitter spreads the clients of a restarted server over the whole interval, so they do not return at once.

    Args:
        base: The longest first wait, in seconds.
        cap: The longest wait, in seconds.
        factor: The growth of the bound with every attempt.
        random: A function that returns a number from 0 to 1.
    """

    base: float = 1.0
    cap: float = 30.0
    factor: float = 2.0
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.base < 0 or self.cap < 0 or self.factor < 1:
            raise ValueError("base and cap must not be negative, and factor must be at least 1")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before an attempt; attempts count from 0."""
        try:
            bound = min(self.cap, self.base * self.factor**attempt)
        except OverflowError:
            bound = self.cap
        return bound * self.random()
