"""Links without a socket, with both ends in one process; for tests and for `wse.testing`."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports.transport import Receiver


class MemoryLink:
    """One end of a link. Messages arrive at the other end in the next turn of the event loop, in order."""

    pings = False

    def __init__(self, limits: Limits) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()  # else handlers of one end would run in the context of the other end's
        self._limit = limits.message_size
        self._inbox: deque[tuple[Callable[..., None], Any]] = deque()
        self._scheduled = False
        self._held = False
        self._closing = False  # this end writes no more
        self._closed = False
        self.peer: MemoryLink
        self.session: Receiver

    @classmethod
    def pair(cls, limits: Limits, peer_limits: Limits) -> tuple[MemoryLink, MemoryLink]:
        """Two connected ends; each needs its `session` before the event loop turns."""
        one, other = cls(limits), cls(peer_limits)
        one.peer, other.peer = other, one
        return one, other

    @property
    def remote_addr(self) -> str:
        return ""

    @property
    def buffered(self) -> int:
        return sum(len(item) for step, item in self.peer._inbox if step == self.peer._on_message)

    def write(self, data: str | bytes) -> None:
        if not self._closing:
            self.peer._put(self.peer._on_message, data)

    def write_shared(self, packed: Packed) -> None:
        self.write(packed.message)

    def write_utf8(self, data: bytes) -> None:
        self.write(data.decode())

    def close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self.peer._put(self.peer._on_close, (code, reason))

    def attach(self, session: Receiver) -> None:
        self.session = session

    def abort(self) -> None:
        self._closing = True
        self._put(self._on_closed, (1006, ""))
        self.peer._put(self.peer._on_closed, (1006, ""))

    # Faults, for tests.

    def hold(self, held: bool) -> None:
        """Whether what comes in waits."""
        self._held = held
        if not held and self._inbox:
            self._schedule()

    def lose(self) -> None:
        """This end loses the connection, and all that was on its way to it; the other end does not notice."""
        self._inbox.clear()
        self._closing = True
        self._loop.call_soon(self._on_closed, (1006, ""))

    # Inside.

    def _put(self, step: Callable[..., None], item: Any) -> None:
        self._inbox.append((step, item))
        if not self._held:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver, context=self._context)

    def _deliver(self) -> None:
        self._scheduled = False
        if self._held:
            return
        inbox, self._inbox = self._inbox, deque()
        for step, item in inbox:
            step(item)

    def _on_message(self, data: str | bytes) -> None:
        if self._closed:
            return
        if len(data if isinstance(data, bytes) else data.encode()) > self._limit:
            self.session.violated(1009, f"a message is larger than {self._limit} bytes")
        else:
            self.session.receive(data)

    def _on_close(self, close: tuple[int, str]) -> None:
        self._closing = True
        self._on_closed(close)
        self.peer._put(self.peer._on_closed, close)

    def _on_closed(self, close: tuple[int, str]) -> None:
        if not self._closed:
            self._closed = True
            self._closing = True
            self.session.closed(*close)
