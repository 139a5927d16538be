"""The answers to requests with an idempotency key, for those that are sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from wse.core.ports.http import HttpReply

KEPT: Final = 600.0
"""Seconds for which an answer is kept."""

MOST: Final = 10_000
"""Answers that are kept; the oldest give way."""


class Replay(NamedTuple):
    """An answer that was given.

    Attributes:
        digest: Of the request.
        reply: The answer.
        until: When it is forgotten.
    """

    digest: bytes
    reply: HttpReply
    until: float


class Replays:
    """The answers to one program's requests, by idempotency key.

    Args:
        clock: Returns a time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[str, Replay] = {}  # the oldest first

    def find(self, token: str) -> Replay | None:
        """The answer that was given to a request with that key."""
        now = self._clock()
        while self._kept:
            oldest = next(iter(self._kept))
            if self._kept[oldest].until > now and len(self._kept) < MOST:
                break
            del self._kept[oldest]
        return self._kept.get(token)

    def keep(self, token: str, digest: bytes, reply: HttpReply) -> None:
        """Keep the answer to a request."""
        self._kept[token] = Replay(digest, reply, self._clock() + KEPT)

    def forget(self, reply: HttpReply) -> None:
        """Forget an answer that has turned out to be wrong."""
        for token in [token for token, kept in self._kept.items() if kept.reply is reply]:
            del self._kept[token]
