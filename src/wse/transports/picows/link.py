"""One WebSocket of picows: turns its frames into messages for the session, and writes messages in few calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picows import WSListener, WSMsgType

from wse.core.closing import may_travel
from wse.transports.picows.assembly import Assembly, ViolationError
from wse.transports.picows.frames import RSV1, SHORT_TEXT, server_frame
from wse.transports.picows.protocol import real_transport
from wse.transports.tcp import HIGH_WATER, Pace, Uptake, seconds_since_last_byte

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from picows import WSFrame, WSTransport

    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.transport import Receiver
    from wse.transports.deflate import Deflate

SERVICE_RESTART = 1012
"""The close code of a server that ends."""

CLOSE_TIMEOUT = 5.0
"""Seconds that the peer has for its part of the closing handshake before the socket is cut."""

CLOSE_LIMIT = 60.0
"""The same while the peer still takes messages from before the close, unless the server ends; enough for 1 MiB at
18 kB/s."""

# Attributes of a Cython enum are slow to reach, and every frame is compared with these.
_TEXT = WSMsgType.TEXT
_BINARY = WSMsgType.BINARY
_CONTINUATION = WSMsgType.CONTINUATION
_PING = WSMsgType.PING
_PONG = WSMsgType.PONG

_CLOSE_FRAME = 0x88
_PONG_FRAME = 0x8A
"""The first bytes of a close frame and of a pong (RFC 6455, 5.2)."""

_MAX_JOINED = 256
"""Frames of one turn that are joined for one write. More are written before the turn ends, so that a full socket is
noticed in time."""


class Turn:
    """The links that are flushed at the end of this turn of the event loop, before it looks for input again.

    Attributes:
        loop: The event loop.
    """

    __slots__ = ("_links", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._links: list[PicowsLink] = []

    def add(self, link: PicowsLink) -> None:
        if not self._links:
            self.loop.call_soon(self._flush)
        self._links.append(link)

    def _flush(self) -> None:
        links = self._links
        self._links = []
        for link in links:
            link.end_turn()


class PicowsLink(WSListener):
    """One WebSocket: it is the session's `PingingLink`, and the listener of picows."""

    pings = True

    _close_limit = CLOSE_LIMIT

    __slots__ = (
        "_assembly",
        "_close_deadline",
        "_close_timer",
        "_closing",
        "_deflate",
        "_high_water",
        "_late_pong",
        "_limit",
        "_open",
        "_out",
        "_pace",
        "_paused",
        "_queued",
        "_received_close",
        "_session",
        "_transport",
        "_turn",
        "_underlying",
        "_uptake",
        "_write",
        "heard",
    )

    _session: Receiver
    _transport: WSTransport
    _underlying: asyncio.Transport
    _write: Callable[[asyncio.Transport, bytes], None]

    def __init__(
        self, turn: Turn, limits: Limits, open: Callable[[PicowsLink], Receiver], deflate: Deflate | None = None
    ) -> None:
        self._turn = turn
        self._limit = limits.message_size
        self._open: Callable[[PicowsLink], Receiver] | None = open
        self._out: list[bytes] = []
        self._queued = False  # in the turn's list, or about to be flushed by the frame that is being handled
        self._closing = False
        self._received_close: tuple[int, str] | None = None
        self._close_timer: Timer | None = None
        self._close_deadline = 0.0
        self._uptake: Uptake | None = None  # since the last ping or the close
        self._assembly: Assembly | None = None  # the message that has begun and not ended
        self._deflate: Deflate | None = deflate
        # Bytes that the transport holds before it pauses us, and that are joined for one write, as if all frames of the
        # turn were as large as the last: adding up would slow every message.
        self._high_water = HIGH_WATER
        self._pace: Pace | None = None  # since it was paused first
        self._paused = False  # the peer takes no more
        self._late_pong: bytes | None = None  # the answer to its last ping, meanwhile
        self.heard = True

    # Link: called by the session.

    def write(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._send(data.encode(), 0x81)
        else:
            self._send(data, 0x82)

    def write_utf8(self, data: bytes) -> None:
        size = len(data)
        if size > 125 or self._closing:
            self._send(data, 0x81)
            return
        # The same for short messages, in one function: most answers are short.
        out = self._out
        out.append(SHORT_TEXT[size] + data)
        if not self._queued:
            self._queued = True
            self._turn.add(self)
        elif len(out) > _MAX_JOINED:
            self._flush()

    def write_shared(self, packed: Packed) -> None:
        if self._closing:
            return
        frame = packed.frame if self._deflate is None else self._deflated_frame(packed, self._deflate)
        if frame is None:
            frame = packed.frame = server_frame(*payload_of(packed))
        out = self._out
        out.append(frame)
        if not self._queued:
            self._queued = True
            self._turn.add(self)
        elif len(out) > _MAX_JOINED or len(out) * len(frame) > self._high_water:
            self._flush()

    def _send(self, payload: bytes, first: int) -> None:
        if self._closing:
            return
        deflate = self._deflate
        if deflate is not None and len(payload) >= deflate.threshold:
            compressed = deflate.deflate(payload)
            if compressed is not None:
                payload = compressed
                first |= RSV1
        self._put(payload, first)

    def _put(self, payload: bytes, first: int) -> None:
        """Queue a frame; its payload is final."""
        self._queue(server_frame(payload, first))

    def _queue(self, frame: bytes) -> None:
        out = self._out
        out.append(frame)
        if not self._queued:
            self._queued = True
            self._turn.add(self)
        elif len(out) > _MAX_JOINED or len(out) * len(frame) > self._high_water:
            self._flush()

    def _deflated_frame(self, packed: Packed, deflate: Deflate) -> bytes | None:
        """The compressed frame, which another connection with the same parameters may have made; `None` for a
        message that is not worth compressing."""
        if len(packed.data) < deflate.threshold:
            return packed.frame
        key = deflate.shared
        frame = packed.deflated.get(key) if key is not None else None
        if frame is None:
            payload, first = payload_of(packed)
            compressed = deflate.deflate(payload)
            frame = server_frame(payload, first) if compressed is None else server_frame(compressed, first | RSV1)
            if key is not None:
                packed.deflated[key] = frame
        return frame

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            if code == SERVICE_RESTART:
                self._close_deadline = min(self._close_deadline, self._turn.loop.time() + CLOSE_TIMEOUT)
            return
        self._flush()
        self._closing = True
        transport = self._transport
        transport.send_close(code, reason.encode())  # type: ignore[arg-type]  # any integer will do
        self._wait_for_close(CLOSE_TIMEOUT if code == SERVICE_RESTART else self._close_limit)

    def attach(self, session: Receiver) -> None:
        self._session = session

    def abort(self) -> None:
        self._closing = True
        self._transport.disconnect(False)

    def ping(self) -> None:
        if not self._closing:
            self._flush()
            self._uptake = Uptake(self._underlying)
            self._transport.send_ping()

    def silence(self) -> float:
        received = seconds_since_last_byte(self._underlying.get_extra_info("socket"))
        # A pong comes only when the peer has taken all bytes before the ping.
        return received if self._uptake is None else min(received, self._uptake.pause(self._turn.loop.time()))

    @property
    def buffered(self) -> int:
        waiting: int = self._underlying.get_write_buffer_size()
        return waiting + sum(map(len, self._out))

    @property
    def remote_addr(self) -> str:
        peer = self._underlying.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    # WSListener: called by picows.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        underlying = real_transport(transport.underlying_transport)
        self._underlying = underlying
        underlying.set_write_buffer_limits(high=HIGH_WATER)
        # The method that picows itself uses where its own transports are in use: it does not check thread and type
        # again. It is not bound to this transport, or each connection would have a bound method of its own.
        kind = type(underlying)
        self._write = getattr(kind, "write_nocheck", kind.write)
        assert self._open is not None  # picows calls this once
        self._session = self._open(self)
        self._open = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.heard = True
        closed = transport.is_close_frame_sent
        if closed:
            if self._received_close is not None:
                return  # frames after a close frame are ignored (RFC 6455, 5.5.1)
            if frame.payload_size > self._limit:
                self._ended_by_picows()  # because of this frame, which it delivers all the same
                return
        was_queued = self._queued
        self._queued = True
        if (
            frame.msg_type is _TEXT
            and frame.fin
            and self._assembly is None
            and not (frame.rsv1 or frame.rsv2 or frame.rsv3)
        ):
            try:
                data = frame.get_payload_as_utf8_text()
            except UnicodeDecodeError:
                self._violated(1007, "a text message is not UTF-8")
            else:
                self._session.receive(data)
        else:
            self._on_other_frame(transport, frame)
        if frame.last_in_buffer:
            out = self._out
            if len(out) == 1 and not closed:
                self._write(self._underlying, out.pop())  # by far the most frequent case
            elif out:
                self._flush()
            self._queued = was_queued
        elif not was_queued:
            # picows may never mark a frame as the last one: it swallows an invalid frame that follows.
            if self._out:
                self._turn.add(self)
            else:
                self._queued = False

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self._received_close is not None:
            code, reason = self._received_close
        else:
            code, reason = 1006, ""
            self._ended_by_picows()
        self._closing = True
        self._out.clear()
        self._session.closed(code, reason)

    def pause_writing(self) -> None:
        self._paused = True
        if self._pace is None:
            self._pace = Pace()
        self._pace.paused(self._turn.loop.time())
        self._session.writable(False)

    def resume_writing(self) -> None:
        self._paused = False
        pace = self._pace
        if pace is not None and pace.resumed(self._turn.loop.time()):
            self._high_water = pace.high_water
            self._underlying.set_write_buffer_limits(high=pace.high_water)
        pong, self._late_pong = self._late_pong, None
        if pong is not None:
            self._answer_ping(pong)
        self._session.writable(True)

    # Internals.

    def end_turn(self) -> None:
        self._queued = False
        if self._out:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            # This write bypasses picows, so its check is made here: it may have closed because of a violation.
            if not self._transport.is_close_frame_sent:
                self._write(self._underlying, out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _on_other_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Handle a frame that is not a whole text message. They are rare, so this is clear rather than fast."""
        if self._received_close is not None:
            return  # nothing counts after a close frame (RFC 6455, 5.5.1)
        kind = frame.msg_type
        deflated = frame.rsv1 and self._deflate is not None and kind in (_TEXT, _BINARY)
        if frame.rsv2 or frame.rsv3 or (frame.rsv1 and not deflated):
            self._violated(1002, "a reserved bit is set and no extension was agreed on")
        elif kind is _PING:
            self._answer_ping(frame.get_payload_as_bytes())
        elif kind is _PONG:
            self._session.pong()
        elif kind is WSMsgType.CLOSE:
            self._on_close(transport, frame)
        elif kind is _CONTINUATION:
            if self._assembly is None:
                self._violated(1002, "a continuation frame continues nothing")
            else:
                self._on_part(self._assembly, frame)
        elif self._assembly is not None:
            self._violated(1002, "a message begins before the fragmented one has ended")
        elif frame.fin and not deflated:
            self._session.receive(frame.get_payload_as_bytes())
        else:
            deflate = self._deflate if deflated else None
            self._assembly = Assembly(text=kind is _TEXT, limit=self._limit, deflate=deflate)
            self._on_part(self._assembly, frame)

    def _answer_ping(self, payload: bytes) -> None:
        """Send a pong after the answers that wait, in the same write. A peer that takes nothing gets the pong of its
        last ping only, once it takes more (RFC 6455, 5.5.3)."""
        if self._paused:
            self._late_pong = payload
        elif not self._closing:
            self._put(payload, _PONG_FRAME)

    def _on_part(self, assembly: Assembly, frame: WSFrame) -> None:
        if frame.fin:
            self._assembly = None
        try:
            message = assembly.add(frame.get_payload_as_bytes(), last=bool(frame.fin))
        except ViolationError as exc:
            self._assembly = None
            self._violated(exc.code, str(exc))
            return
        if message is not None:
            self._session.receive(message)

    def _on_close(self, transport: WSTransport, frame: WSFrame) -> None:
        code = frame.get_close_code().value
        if frame.payload_size and not may_travel(code):
            self._violated(1002, f"{code} is not a close code")
            self._hang_up(transport)  # the peer sends nothing after it, whatever its code
            return
        self._ended_by_picows()  # the peer's answer to the close of picows may come before the end of the socket
        reason = frame.get_close_reason() or ""
        self._received_close = (code or 1005, reason)
        if not self._closing:
            if code:
                self.close(code, reason)  # a browser's CloseEvent shows what comes back
            else:
                self._close_without_code(transport)
        self._hang_up(transport)

    def _close_without_code(self, transport: WSTransport) -> None:
        """Answer an empty close frame with an empty one, which picows cannot send and so does not know of."""
        self._put(b"", _CLOSE_FRAME)
        self._flush()
        self._closing = True
        self._wait_for_close(CLOSE_TIMEOUT)
        # Keeps frames that follow off the fast path.
        self._assembly = Assembly(text=False, limit=0, deflate=None)

    def _wait_for_close(self, limit: float) -> None:
        now = self._turn.loop.time()
        self._close_deadline = now + limit
        if self._uptake is None:
            self._uptake = Uptake(self._underlying)
        else:
            self._uptake.pause(now)
        self._await_close(CLOSE_TIMEOUT)

    def _await_close(self, wait: float) -> None:
        """Cut the socket if the peer does not close it in time."""
        loop = self._turn.loop
        in_time = min(wait, self._close_deadline - loop.time())
        self._close_timer = loop.call_later(in_time, self._close_overdue)

    def _close_overdue(self) -> None:
        assert self._uptake is not None  # made by `close`
        now = self._turn.loop.time()
        pause = self._uptake.pause(now)  # the heartbeat looks as well, perhaps a moment ago
        if now < self._close_deadline and pause < CLOSE_TIMEOUT:
            self._await_close(CLOSE_TIMEOUT - pause)
        else:
            self._transport.disconnect(False)

    def _hang_up(self, transport: WSTransport) -> None:
        """Close the socket if this is the server, which does so first after both close frames (RFC 6455, 7.1.1)."""
        if not transport.is_client_side:
            transport.disconnect()

    def _ended_by_picows(self) -> None:
        """If picows has closed the connection, report why: a violation of RFC 6455 or of the frame limit."""
        handshake = self._transport.close_handshake
        if not self._closing and handshake is not None and handshake.sent is not None:
            self._closing = True
            self._session.violated(handshake.sent.code.value, handshake.sent.reason)

    def _violated(self, code: int, problem: str) -> None:
        self._session.violated(code, problem)
        # A session that has ended does not close the link, and a peer that keeps breaking rules gets no more time.
        self.close(code, problem)


def payload_of(packed: Packed) -> tuple[bytes, int]:
    """The payload of a shared message, and the first byte of the frame that carries it."""
    data = packed.data
    if isinstance(data, str):
        return data.encode(), 0x81
    return data, 0x81 if packed.utf8 else 0x82
