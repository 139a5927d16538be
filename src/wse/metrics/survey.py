"""Adds up what waits in the sessions of a server, a few sessions at a time, so that no scrape stalls the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappush, heappushpop
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.hub import Hub

SLICE = 2000
"""Sessions that are looked at in one turn: about two milliseconds."""

SLOWEST: Final = 10
"""Receivers that are named."""


class Survey:
    """The sums of the last walk through all sessions.

    Args:
        hub: The server's connections.

    Attributes:
        queued: Bytes that wait for receivers.
        largest: Bytes that wait for one receiver, at most.
        pending_calls: Calls that wait for the answer of a client.
        handlers: `async` handlers that run.
        slowest: The bytes and the `conn_id`s of those for whom most waits, the slowest first.
    """

    __slots__ = ("_found", "_hub", "_left", "_slow", "handlers", "largest", "pending_calls", "queued", "slowest")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._left: Iterator[ServerSession] | None = None  # of a walk that has begun
        self._found = [0, 0, 0, 0]
        self._slow: list[tuple[int, str]] = []  # a heap, the fastest first
        self.slowest: list[tuple[int, str]] = []
        self.queued = self.largest = self.pending_calls = self.handlers = 0

    def refresh(self) -> None:
        """Bring the sums up to date, if so few sessions are open that one turn is enough."""
        if self._left is None and len(self._hub.sockets.open) < SLICE:
            self.step()

    def step(self) -> bool:
        """Go on with the walk, or begin one; returns whether it is done."""
        if self._left is None:
            self._left = iter(tuple(self._hub.sessions))
            self._found, self._slow = [0, 0, 0, 0], []
        seen = 0
        queued, largest, calls, handlers = self._found
        for session in islice(self._left, SLICE):
            seen += 1
            waits = session.queued
            queued += waits
            largest = max(largest, waits)
            if waits:
                item = waits, session.conn.conn_id
                (heappush if len(self._slow) < SLOWEST else heappushpop)(self._slow, item)
            calls += session.pending_calls
            handlers += session.running_handlers
        self._found = [queued, largest, calls, handlers]
        if seen == SLICE:
            return False
        self._left = None
        self.queued, self.largest, self.pending_calls, self.handlers = self._found
        self.slowest = sorted(self._slow, reverse=True)
        return True
