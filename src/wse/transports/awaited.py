"""Links of web servers whose `send` must be awaited, for the ASGI transport.

A session writes synchronously. Its messages wait here in order, and one coroutine at a time sends them: the
connection's own task after each message that it has handled, or a task that is started once for all messages of a turn
of the event loop. The close is always sent by the connection's own task, which stops receiving for it. Otherwise
granian's close would wait for ever.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wse.errors import CloseReason
from wse.tasks import start_task
from wse.transports.tcp import HIGH_WATER, Pace, Uptake, bound_unsent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wse.core.packed import Packed
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.transport import Receiver

CLOSE_TIMEOUT = 5.0
"""Seconds that the peer has for its part of the closing handshake before the connection is cut."""

CLOSE_LIMIT = 60.0
"""The same while the peer still takes messages from before the close."""

SHUTDOWN_TIMEOUT = 0.5
"""The same when the server ends: then granian reports nothing."""

SERVICE_RESTART = 1012
"""The close code of a server that ends."""


class AwaitedLink(ABC):
    """One WebSocket of a framework. `run` lasts as long as it, in the task that the framework has started for it.

    Args:
        limit: Bytes that a message may have.
        remote_addr: The address of the peer.
        transport: The framework's transport, where it can be reached: what waits in it is bounded.
    """

    pings = False  # web servers have their own heartbeat

    def __init__(self, limit: int, remote_addr: str, transport: asyncio.WriteTransport | None = None) -> None:
        self.remote_addr = remote_addr
        self.session: Receiver
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None  # while it runs
        self._out: deque[str | bytes] = deque()
        self._size = 0  # of all that is in _out
        self._close: tuple[int, str] | None = None  # to be sent after _out
        self._busy = False  # a coroutine is sending, or is about to
        self._sender: asyncio.Task[None] | None = None  # when that is not the connection's own task
        self._held_back = False
        self._closing = False  # nothing more is written
        self._interrupted = False  # the task is about to be cancelled by us
        self._aborted = False
        self._close_timer: Timer | None = None
        self._close_deadline = 0.0
        self._left = 0  # of _size, when the timer was set
        self._transport = transport
        self._uptake: Uptake | None = None  # since the close
        self._pace = Pace()
        if transport is not None:
            transport.set_write_buffer_limits(high=HIGH_WATER)
            bound_unsent(transport.get_extra_info("socket"))

    # Defined by the adapter of each framework.

    @abstractmethod
    def _receive(self) -> Awaitable[Any]:
        """Return the framework's next event; an exception ends the connection."""

    @abstractmethod
    def _read(self, event: Any) -> str | bytes | tuple[int, str]:
        """Return the message in an event, or the code and reason of the peer's close."""

    @abstractmethod
    def _send(self, message: str | bytes) -> Awaitable[object]:
        """Send a message, `str` as text, `bytes` as binary; an exception ends the connection."""

    @abstractmethod
    def _send_close(self, code: int, reason: str) -> Awaitable[object]:
        """Begin the closing handshake. Nothing is being received meanwhile; an exception ends the connection."""

    def _cut(self) -> None:  # noqa: B027 - not every framework can
        """Close the socket at once, where a framework can do that before `run` has returned."""

    # Link: called by the session.

    @property
    def buffered(self) -> int:
        return self._size

    def write(self, data: str | bytes) -> None:
        if self._closing:
            return
        self._out.append(data)
        self._size += len(data)
        if self._size > self._pace.high_water and not self._held_back:
            self._held_back = True
            self._pace.paused(self._loop.time())
            self.session.writable(False)
        if not self._busy:
            self._wake()

    def write_utf8(self, data: bytes) -> None:
        self.write(data.decode())

    def write_shared(self, packed: Packed) -> None:
        self.write(packed.message)

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            if code == SERVICE_RESTART:
                self._close_deadline = min(self._close_deadline, self._loop.time() + CLOSE_TIMEOUT)
            return
        self._close = code, reason
        if code == SERVICE_RESTART:
            self._stop_writing(SHUTDOWN_TIMEOUT, SHUTDOWN_TIMEOUT)
        else:
            self._stop_writing(CLOSE_TIMEOUT, CLOSE_LIMIT)
        if not self._busy:
            self._wake()

    def attach(self, session: Receiver) -> None:
        self.session = session

    def abort(self) -> None:
        self._closing = True
        if self._task is not None and not self._aborted:
            self._aborted = True
            self._cut()
            self._interrupt()

    # The connection's task.

    async def run(self, open: Callable[[AwaitedLink], Receiver]) -> None:
        """Exchange messages until either side has closed."""
        task = asyncio.current_task()
        assert task is not None  # a coroutine of asyncio
        cancelled_before = task.cancelling()
        self._busy = True  # messages of a session that is being opened leave before one is awaited
        self.session = open(self)
        self._task = task
        close = None
        try:
            while close is None and not self._aborted:
                try:
                    await self._flush()
                    close = await self._exchange()
                    if self._interrupted:
                        await asyncio.sleep(0)  # the framework must not see our own cancellation
                except asyncio.CancelledError:
                    if not self._interrupted or task.uncancel() > cancelled_before:
                        await self._say_farewell()
                        raise
                    self._interrupted = False
                    self._busy = True
        finally:
            self._task = None
            self._closing = True
            self._out.clear()
            for later in (self._close_timer, self._sender):
                if later is not None:
                    later.cancel()
            self.session.closed(*(close or (1006, "")))

    async def _exchange(self) -> tuple[int, str]:
        """Hand messages to the session and send its messages; returns the close of the peer."""
        receive, read, out = self._receive, self._read, self._out
        limit = self._limit
        surely_small = limit // 4  # characters of four bytes each at most
        while True:
            received = read(await receive())
            if isinstance(received, tuple):
                return received
            if len(received) > surely_small and _size(received) > limit:
                self.session.violated(1009, f"a message is larger than {limit} bytes")
            elif self._busy:
                self.session.receive(received)  # the coroutine that is sending also sends the answers
            else:
                self._busy = True
                self.session.receive(received)
                if out or self._close:
                    await self._flush()
                else:
                    self._busy = False

    async def _say_farewell(self) -> None:
        """Close properly when the web server cancels WebSockets instead of closing them (hypercorn does)."""
        self._busy = True
        self.session.close(SERVICE_RESTART, CloseReason.BY_SERVER)
        for later in (self._close_timer, self._sender):
            if later is not None:
                later.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                await self._flush()

    def _stop_writing(self, timeout: float, limit: float) -> None:
        """Take no more messages; the connection must end within `timeout`, or `limit` while the peer takes messages."""
        self._closing = True
        self._close_deadline = self._loop.time() + limit
        if self._transport is not None:
            self._uptake = Uptake(self._transport)
        self._await_close(timeout)

    def _await_close(self, timeout: float) -> None:
        self._left = self._size
        in_time = min(timeout, self._close_deadline - self._loop.time())
        self._close_timer = self._loop.call_later(in_time, self._close_overdue, timeout)

    def _close_overdue(self, timeout: float) -> None:
        now = self._loop.time()
        # Where the transport is out of reach, a message that the web server has taken is all that shows.
        took = self._size < self._left or (self._uptake is not None and not self._uptake.pause(now))
        if took and now < self._close_deadline:
            self._await_close(timeout)
        else:
            self.abort()

    def _interrupt(self) -> None:
        """Make the connection's task stop receiving, and close or end."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def _wake(self) -> None:
        """Start sending at the end of this turn of the event loop."""
        self._busy = True
        self._loop.call_soon(self._start_sender)

    def _start_sender(self) -> None:
        if self._task is not None:
            self._sender = start_task(self._flush(), self._loop)

    async def _flush(self) -> None:
        """Send all that waits, and all that is added meanwhile; only one coroutine at a time runs this."""
        out = self._out
        try:
            while out:
                message = out.popleft()
                self._size -= len(message)
                await self._send(message)
            close = self._close
            if close is not None:
                if asyncio.current_task() is self._task:
                    self._close = None
                    await self._send_close(*close)
                else:
                    self._interrupt()
        except Exception:  # every server has its own for a peer that is gone
            # The close of the peer is still to be received, and so may be messages that it sent before.
            out.clear()
            self._size = 0
            self._close = None
            if not self._closing:
                self._stop_writing(CLOSE_TIMEOUT, CLOSE_TIMEOUT)
            return
        finally:
            self._busy = False
        if self._held_back:
            self._held_back = False
            if self._pace.resumed(self._loop.time()) and self._transport is not None:
                self._transport.set_write_buffer_limits(high=self._pace.high_water)
            self.session.writable(True)


def _size(message: str | bytes) -> int:
    return len(message) if isinstance(message, bytes) else len(message.encode())
