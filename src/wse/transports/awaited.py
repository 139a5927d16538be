"""Links of frameworks whose `send` must be awaited, for the ASGI and aiohttp transports.

A session writes synchronously. What it writes waits here in order, and leaves by one coroutine at a time: the
connection's own task after each message that it has handled, or a task that is started once for all that was written
in a turn of the event loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from wse.scheduler import start_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.packed import Packed
    from wse.core.ports import Timer
    from wse.core.session import Session

CLOSE_TIMEOUT = 5.0
"""Seconds that the peer has for its part of the closing handshake, before the connection is cut."""

HIGH_WATER = 64 * 1024
"""Characters or bytes that wait to be sent, above which a session is told to hold back."""

_Item = str | bytes | tuple[int, str]  # a message, or the close that ends them


class AwaitedLink(ABC):
    """One WebSocket of a framework; `run` is its whole life, in the task that the framework gave it."""

    def __init__(self, limit: int, remote_addr: str) -> None:
        self.remote_addr = remote_addr
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._out: deque[_Item] = deque()
        self._size = 0  # of what waits in _out
        self._busy = False  # a coroutine is sending, or is about to
        self._held_back = False
        self._closing = False
        self._close_timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.session: Session

    # What a framework's adapter adds.

    @abstractmethod
    async def _receive(self) -> str | bytes | tuple[int, str]:
        """The next message, or the code and reason of the close that ended them."""

    @abstractmethod
    async def _send(self, message: str | bytes) -> None:
        """Send a message: `str` as text, `bytes` as binary. What it raises ends the connection."""

    @abstractmethod
    async def _send_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. What it raises ends the connection."""

    # Link: what the session calls.

    @property
    def buffered(self) -> int:
        return self._size

    def write(self, data: str | bytes) -> None:
        if self._closing:
            return
        self._out.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._held_back:
            self._held_back = True
            self.session.writable(False)
        self._wake()

    def write_utf8(self, data: bytes) -> None:
        if not self._closing:
            self.write(data.decode())

    def write_shared(self, packed: Packed) -> None:
        self.write(packed.message)

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            return
        self._closing = True
        self._out.append((code, reason))
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.abort)
        self._wake()

    def abort(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    # The connection's task.

    async def run(self, open: Callable[[AwaitedLink], Session]) -> None:
        """Exchange messages until either side has closed."""
        code, reason = 1006, ""
        try:
            # What the session writes while it is opened, or handles a message, leaves before the next is awaited.
            self._busy = True
            self.session = open(self)
            await self._flush()
            while True:
                received = await self._receive()
                if isinstance(received, tuple):
                    code, reason = received
                    break
                if self._is_too_large(received):
                    self.session.violated(1009, f"a message is larger than {self._limit} bytes")
                    continue
                if self._busy:
                    self.session.receive(received)  # another coroutine is sending, and takes what this one writes
                else:
                    self._busy = True
                    self.session.receive(received)
                    await self._flush()
        except asyncio.CancelledError:
            # From abort: the end of this connection and no more. From outside: the server is ending, and us with it.
            if self._task is None or not self._closing or self._task.cancelling() > 1:
                raise
            self._task.uncancel()
        finally:
            self._closing = True
            self._out.clear()
            if self._close_timer is not None:
                self._close_timer.cancel()
            for task in self._tasks:
                task.cancel()
            self.session.closed(code, reason)

    def _is_too_large(self, message: str | bytes) -> bool:
        size = len(message)
        if isinstance(message, bytes) or size > self._limit:
            return size > self._limit
        return size * 4 > self._limit and len(message.encode()) > self._limit

    def _wake(self) -> None:
        """See to it that what waits is sent."""
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._start_flush)

    def _start_flush(self) -> None:
        task = start_task(self._flush(), self._loop)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _flush(self) -> None:
        """Send all that waits, and what comes while it does; only one coroutine at a time is here."""
        out = self._out
        try:
            while out:
                item = out.popleft()
                if isinstance(item, tuple):
                    await self._send_close(*item)
                else:
                    self._size -= len(item)
                    await self._send(item)
        except Exception:  # every server has its own for a peer that has gone
            out.clear()
            self.abort()
        finally:
            self._busy = False
        if self._held_back:
            self._held_back = False
            self.session.writable(True)
