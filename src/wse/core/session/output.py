"""The output of a connection: messages are written, or wait for a slow receiver, up to the size that the peer takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any, Final

from wse.core.limits import Overflow
from wse.core.packed import Packed, encode, trimmed
from wse.core.ports.scheduling import next_turn
from wse.core.session.outbox import Outbox
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import wake
from wse.types import MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.ledger import Ledger


EASY_SIZE: Final = 64 * 1024
"""The `len` of an encoded message up to which one look at `Output._direct` is enough."""


EVERYTHING: Final = 1 << 62
"""Room for whatever waits."""


class Output(ABC):
    """The way out of a connection.

    Attributes:
        endpoint: The state that all connections of the server or client share.
        link: The open WebSocket.
        protocol: The message protocol of the connection.
        ready_state: The state of the socket; `CONNECTING` while a session has none that outlives it.
        ledger: What lets the session outlive its link, if the peer has asked for that; it is then also `link`.
    """

    __slots__ = (
        "_counters",
        "_direct",
        "_drainers",
        "_easy_utf8",
        "_encode",
        "_exceeded",
        "_max_out",
        "_outbox",
        "_utf8",
        "_writable",
        "endpoint",
        "ledger",
        "link",
        "protocol",
        "ready_state",
    )

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        self.endpoint = endpoint
        self.link = link
        self.ledger: Ledger | None = None
        self.protocol = protocol
        self.ready_state = ReadyState.OPEN
        codec = protocol.codec
        self._encode: Callable[[tuple[Any, Any, Any]], Any] = codec.encode
        self._utf8 = codec.utf8
        self._counters = endpoint.counters
        self._writable = True
        self._outbox: Outbox | None = None
        self._drainers: dict[asyncio.Future[None], None] | None = None  # in order
        self._exceeded: tuple[str, ...] = ()  # limits whose excess has been reported
        self._max_out: float = inf  # bytes of a message that the peer takes
        self._set_direct()

    # Defined by each side.

    @abstractmethod
    def describe(self) -> str:
        """The name of the peer in reports (WIRE.md section 4)."""

    def context(self) -> dict[str, Any]:
        """The details that identify the connection in an error."""
        return {}

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """End the connection; nothing happens if it has ended."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether either side has closed the connection."""

    # Writing.

    def writable(self, writable: bool) -> None:
        """Whether the socket takes more, or its buffer is above the high-water mark."""
        self._writable = writable
        self._set_direct()
        if not writable:
            return
        outbox = self._outbox
        while outbox and self._writable:
            self.link.write_shared(outbox.take())
        if self.ledger is not None and outbox is not None:
            self.ledger.outbox_moved(outbox)
        if self._writable:
            self._wake_drainers()

    async def drain(self) -> None:
        """Wait until the socket takes more; returns at once when the connection has ended.

        Messages that were written in this turn of the event loop leave first. So a producer that drains between its
        messages sends at the peer's pace.
        """
        scheduler = self.endpoint.scheduler
        await next_turn(scheduler)
        while not self._writable and not self.ended:
            future = scheduler.create_future()
            drainers = self._drainers
            if drainers is None:
                drainers = self._drainers = {}
            drainers[future] = None
            try:
                await future
            finally:
                drainers.pop(future, None)  # a cancelled waiter leaves nothing behind

    @property
    def queued(self) -> int:
        """Bytes that wait for the peer to take them."""
        return self.link.buffered + self.outbox_size

    @property
    def outbox_size(self) -> int:
        """Bytes of the messages that have not been written."""
        return self._outbox.size if self._outbox is not None else 0

    def write(self, type: MessageType, payload: Any) -> None:
        """Send one of WSE's own messages.

        Raises:
            WseError: `MSG_PROCESSING_ERROR`, when the payload cannot be encoded.
        """
        self.write_packed(encode(self.protocol, type, payload))

    def write_packed(self, packed: Packed) -> None:
        """Send a message that is encoded already and is the answer to a call."""
        if self._writable:
            self.link.write_shared(packed)
        else:
            self.hold(None, packed)

    def hold(self, type: MessageType | None, packed: Packed) -> None:
        """Keep a message until the socket takes more.

        Args:
            type: Its type, which decides what happens when too much waits; `None` for calls and answers.
            packed: The message.
        """
        if self.ended:
            return
        outbox, ledger = self.own_outbox, self.ledger
        is_away = ledger is not None and not ledger.is_attached
        room = ledger.room(outbox) if ledger is not None and is_away else self._buffer_room
        policy, dropped = outbox.put(type, packed, room)
        if dropped:
            self._overflow(policy, dropped, outbox, packed)
        if ledger is not None and is_away and not self.ended:
            ledger.charge()

    @property
    def own_outbox(self) -> Outbox:
        """The messages that wait; made for the first one."""
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self.endpoint.overflow)
        return outbox

    def clear_outbox(self) -> None:
        """Let nothing wait for the socket."""
        if self._outbox is not None:
            self._outbox.clear()

    def queue(self, type: MessageType, packed: Packed) -> None:
        """Let a message wait that was sent while the session was on its way here, however much waits already."""
        if not self.takes(packed.data):
            self.skip(packed.data, {"type": type})
            return
        self.own_outbox.put(type, packed, EVERYTHING)
        self._counters.messages_out += 1
        self._counters.bytes_out += len(packed.data)

    @property
    def _buffer_room(self) -> int:
        """Bytes that may wait beside those that the socket has not yet taken."""
        return self.endpoint.limits.send_buffer - self.link.buffered

    def _write(self, data: Any, type: MessageType | None = None, key: MessageKey | None = None) -> None:
        self._counters.bytes_out += len(data)
        if not self._writable:
            self.hold(type, Packed(trimmed(data), self._utf8, key))
        elif self._utf8:
            self.link.write_utf8(data)
        else:
            self.link.write(data)

    def _write_all(self) -> None:
        """The connection is about to close: what waits leaves before."""
        if self.ledger is not None:
            self.ledger.finish_resending()
        while self._outbox:
            self.link.write_shared(self._outbox.take())

    def _wake_drainers(self) -> None:
        if self._drainers is not None:
            for future in self._drainers:
                wake(future)
            self._drainers = None

    # The size of messages that the peer takes.

    def limit_output(self, size: float) -> None:
        """Send no messages of more bytes: the peer does not take them."""
        self._max_out = size
        self._set_direct()

    def _set_direct(self) -> None:
        # Whether a message up to `EASY_SIZE` may be written at once; a character of text may have 4 bytes.
        self._direct = is_direct = self._writable and self._max_out >= 4 * EASY_SIZE
        # The `len` up to which it may be written with `Link.write_utf8` at once: one comparison for every answer.
        self._easy_utf8 = EASY_SIZE if is_direct and self._utf8 else -1

    def takes(self, data: str | bytes) -> bool:
        """Whether the peer takes a message of that size."""
        size = len(data)
        if isinstance(data, str) and size <= self._max_out < 4 * size:
            size = len(data.encode())
        return size <= self._max_out

    def check_size(self, data: str | bytes, details: dict[str, Any]) -> None:
        """Reject a message that the peer does not take.

        Raises:
            WseError: `LIMIT_EXCEEDED`, with the details and the size.
        """
        if not self.takes(data):
            raise self._too_large(data, details)

    def skip(self, data: str | bytes, details: dict[str, Any]) -> WseError:
        """Count a message that is not sent because the peer does not take it; the first time, report it."""
        self._counters.dropped["too-large"] += 1
        error = self._too_large(data, details)
        self._report_once("too-large", ErrorCode.LIMIT_EXCEEDED, error.details, None, 0)
        return error

    def _too_large(self, data: str | bytes, details: dict[str, Any]) -> WseError:
        whole = {"limit": "message_size", "allowed": self._max_out, "size": len(data), **details}
        return WseError(ErrorCode.LIMIT_EXCEEDED, whole, "the message is larger than the peer takes")

    # Excess.

    def exceeded(self, limit: str, reason: CloseReason | None = None, code: int = 1008) -> WseError:
        """Count that the peer has exceeded a limit, report it once, and close the connection if a reason is given.

        Returns:
            The error for the peer, when it was a call.
        """
        self._counters.limits[limit] += 1
        details = {"limit": limit, "allowed": getattr(self.endpoint.limits, limit)}
        self._report_once(limit, ErrorCode.LIMIT_EXCEEDED, details, reason, code)
        if reason is not None:
            self.close(code, reason)
        return WseError(ErrorCode.LIMIT_EXCEEDED, details)

    def _overflow(self, policy: Overflow, dropped: int, outbox: Outbox, packed: Packed) -> None:
        """Messages for a slow receiver had to give way."""
        closes = policy is Overflow.CLOSE
        self._counters.dropped[policy] += dropped + (len(outbox) if closes else 0)
        if closes:
            if self.ledger is None:
                outbox.clear()
            else:
                self.ledger.set_aside(outbox)
                self.ledger.unsent += (packed,)
        if policy is not Overflow.LATEST:  # whose messages give way before the bound is reached
            self._counters.limits["send_buffer"] += 1
        details = {"limit": "send_buffer", "allowed": self.endpoint.limits.send_buffer, "overflow": str(policy)}
        reason = CloseReason.SLOW_RECEIVER if closes else None
        self._report_once(f"send_buffer {policy}", ErrorCode.SLOW_RECEIVER, details, reason, 1013)
        if closes:
            self.close(1013, CloseReason.SLOW_RECEIVER)

    def _report_once(
        self, what: str, error: ErrorCode, details: dict[str, Any], reason: CloseReason | None, code: int
    ) -> None:
        """Report it the first time only, so that a peer cannot flood the application with reports."""
        if what not in self._exceeded:
            self._exceeded += (what,)
            close = {} if reason is None else {"close": [code, str(reason)]}
            whole = {**details, "from": self.describe(), **close, **self.context()}
            self.endpoint.report(WseError(error, whole), self)
