"""WebSockets on picows, for server and client: the default transport.

picows parses and builds frames. Left to us are messages (reassembly, UTF-8, what RFC 6455 forbids beyond a single
frame), the closing handshake, and writing little: one write to a socket costs about the same whatever its size, so
the answers to all frames of one read leave together, and so does what is sent in one turn of the event loop.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import picows
from picows import WSListener, WSMsgType, WSUpgradeResponse, WSUpgradeResponseWithListener

from wse.errors import ErrorCode, WseError
from wse.transports.request import CompactHeaders, HttpRequest, offered_subprotocols

if TYPE_CHECKING:
    import ssl

    from picows import WSFrame, WSTransport, WSUpgradeRequest

    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports import Acceptor, Link, Protocol, Timer
    from wse.core.session import Session

CLOSE_TIMEOUT = 5.0
"""Seconds that the peer has for its part of the closing handshake, before the socket is cut."""

# Attributes of a Cython enum are slow to reach, and these are compared with for every frame.
_TEXT = WSMsgType.TEXT
_BINARY = WSMsgType.BINARY
_CONTINUATION = WSMsgType.CONTINUATION
_PING = WSMsgType.PING
_PONG = WSMsgType.PONG

_SHORT_TEXT = [bytes((0x81, size)) for size in range(126)]

_masks: list[bytes] = []
"""Masking keys from the system's entropy (RFC 6455, 10.3), fetched by the thousand: each fetch is a system call."""

_MASK_OURSELVES = 2048
"""Up to this many bytes a client masks in Python and joins the frames of a turn; above, picows masks and sends."""


class _QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """picows logs a peer's faults as errors; here they are events of the application, and reported as such."""

    def error(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    def info(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)


_logger = _QuietLogger(logging.getLogger("wse.picows"))


class _Turn:
    """The links that have something to write before the event loop looks for input again."""

    __slots__ = ("_links", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._links: list[PicowsLink] = []

    def add(self, link: PicowsLink) -> None:
        if not self._links:
            self._loop.call_soon(self._flush)
        self._links.append(link)

    def _flush(self) -> None:
        links = self._links
        self._links = []
        for link in links:
            link.end_turn()


class PicowsLink(WSListener):
    """One WebSocket: a `Link` for the session, a listener for picows."""

    __slots__ = (
        "_close_timer",
        "_closing",
        "_decoder",
        "_limit",
        "_open",
        "_out",
        "_parts",
        "_parts_size",
        "_queued",
        "_received_close",
        "_session",
        "_transport",
        "_turn",
        "_write",
    )

    _session: Session
    _transport: WSTransport
    _write: Callable[[bytes], None]

    def __init__(self, turn: _Turn, limits: Limits, open: Callable[[PicowsLink], Session]) -> None:
        self._turn = turn
        self._limit = limits.message_size
        self._open: Callable[[PicowsLink], Session] | None = open
        self._out: list[bytes] = []
        self._queued = False  # in the turn's list, or about to be flushed by the frame that is being handled
        self._closing = False
        self._received_close: tuple[int, str] | None = None
        self._close_timer: Timer | None = None
        self._parts: list[Any] | None = None  # of a fragmented message: str or bytes
        self._parts_size = 0
        self._decoder: codecs.IncrementalDecoder | None = None

    # Link: what the session calls.

    def write(self, data: str | bytes) -> None:
        if not self._closing:
            self._put(_server_frame(data.encode(), 0x81) if isinstance(data, str) else _server_frame(data, 0x82))

    def write_utf8(self, data: bytes) -> None:
        # The same in one function, since every answer goes this way.
        if self._closing:
            return
        size = len(data)
        self._out.append(_SHORT_TEXT[size] + data if size < 126 else _server_frame(data, 0x81))
        if not self._queued:
            self._queued = True
            self._turn.add(self)

    def write_shared(self, packed: Packed) -> None:
        if self._closing:
            return
        frame = packed.frame
        if frame is None:
            data = packed.data
            if isinstance(data, str):
                frame = _server_frame(data.encode(), 0x81)
            else:
                frame = _server_frame(data, 0x81 if packed.utf8 else 0x82)
            packed.frame = frame
        self._out.append(frame)
        if not self._queued:
            self._queued = True
            self._turn.add(self)

    def _put(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._queued:
            self._queued = True
            self._turn.add(self)

    def close(self, code: int, reason: str) -> None:
        if self._closing:
            return
        self._flush()
        self._closing = True
        transport = self._transport
        transport.send_close(code, reason.encode())  # type: ignore[arg-type]  # any integer will do
        self._close_timer = self._turn._loop.call_later(CLOSE_TIMEOUT, transport.disconnect, False)

    def abort(self) -> None:
        self._closing = True
        self._transport.disconnect(False)

    @property
    def buffered(self) -> int:
        waiting: int = self._transport.underlying_transport.get_write_buffer_size()
        return waiting + sum(map(len, self._out))

    @property
    def remote_addr(self) -> str:
        peer = self._transport.underlying_transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    # WSListener: what picows calls.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        underlying = transport.underlying_transport
        # The one that picows itself uses, where its own transports are in use: no second look at thread and type.
        self._write = getattr(underlying, "write_nocheck", underlying.write)
        assert self._open is not None  # picows calls this once
        self._session = self._open(self)
        self._open = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if transport.is_close_frame_sent and frame.payload_size > self._limit:
            self._ended_by_picows()  # for this frame, which is delivered all the same
            return
        was_queued = self._queued
        self._queued = True
        if (
            frame.msg_type is _TEXT
            and frame.fin
            and self._parts is None
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
            if len(out) == 1 and not transport.is_close_frame_sent:
                self._write(out.pop())  # by far the most frequent case
            elif out:
                self._flush()
            self._queued = was_queued
        elif not was_queued:
            # picows may never tell that this was the last one: it swallows an invalid frame that follows.
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
        self._session.writable(False)

    def resume_writing(self) -> None:
        self._session.writable(True)

    # Inside.

    def end_turn(self) -> None:
        self._queued = False
        if self._out:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            # The write goes around picows, so its guard is ours: it may have closed for a violation.
            if not self._transport.is_close_frame_sent:
                self._write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _on_other_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Everything but a whole text message: rare, so clear rather than fast."""
        if self._closing and self._received_close is not None:
            return
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._violated(1002, "a reserved bit is set and no extension was agreed on")
        elif kind is _PING:
            self._flush()
            if not self._closing:
                transport.send_pong(frame.get_payload_as_bytes())
        elif kind is _PONG:
            pass
        elif kind is WSMsgType.CLOSE:
            self._on_close(transport, frame)
        elif kind is _CONTINUATION:
            if self._parts is None:
                self._violated(1002, "a continuation frame continues nothing")
            else:
                self._on_part(frame)
        elif self._parts is not None:
            self._violated(1002, "a message begins before the fragmented one has ended")
        elif not frame.fin:
            self._parts = []
            self._parts_size = 0
            self._decoder = codecs.getincrementaldecoder("utf-8")() if kind is _TEXT else None
            self._on_part(frame)
        else:
            self._session.receive(frame.get_payload_as_bytes())

    def _on_part(self, frame: WSFrame) -> None:
        parts = self._parts
        assert parts is not None  # the caller has seen to it
        self._parts_size += frame.payload_size
        if self._parts_size > self._limit:
            self._parts = None
            self._violated(1009, f"a message is larger than {self._limit} bytes")
            return
        part = frame.get_payload_as_bytes()
        try:
            parts.append(part if self._decoder is None else self._decoder.decode(part, bool(frame.fin)))
        except UnicodeDecodeError:
            self._parts = None
            self._violated(1007, "a text message is not UTF-8")
            return
        if frame.fin:
            self._parts = None
            self._session.receive(b"".join(parts) if self._decoder is None else "".join(parts))

    def _on_close(self, transport: WSTransport, frame: WSFrame) -> None:
        code = frame.get_close_code().value
        if code != 0 and not _may_travel(code):
            self._violated(1002, f"{code} is no close code")
            return
        self._ended_by_picows()  # the peer's answer to that close may be faster than the socket's end
        self._received_close = (code or 1005, frame.get_close_reason() or "")
        if not self._closing:
            self.close(code or 1000, "")
        if not transport.is_client_side:
            transport.disconnect()  # the server closes the socket first (RFC 6455, 7.1.1)

    def _ended_by_picows(self) -> None:
        """Report what picows has closed the connection for, if it has: a peer that broke RFC 6455 or the limit."""
        handshake = self._transport.close_handshake
        if not self._closing and handshake is not None and handshake.sent is not None:
            self._closing = True
            self._session.violated(handshake.sent.code.value, handshake.sent.reason)

    def _violated(self, code: int, problem: str) -> None:
        self._session.violated(code, problem)
        # A session that has ended does not close the link, and a peer that goes on breaking rules is not waited for.
        self.close(code, problem)


class PicowsClientLink(PicowsLink):
    """The same at a client, which masks what it sends (RFC 6455, 5.3)."""

    __slots__ = ()

    def write(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._write_masked(data.encode(), 0x81)
        else:
            self._write_masked(data, 0x82)

    def write_utf8(self, data: bytes) -> None:
        self._write_masked(data, 0x81)

    def write_shared(self, packed: Packed) -> None:
        data = packed.data
        if packed.utf8 and isinstance(data, bytes):
            self._write_masked(data, 0x81)
        else:
            self.write(data)

    def _write_masked(self, payload: bytes, first: int) -> None:
        if self._closing:
            return
        if len(payload) <= _MASK_OURSELVES:
            self._out.append(_masked_frame(payload, first))
            if not self._queued:
                self._queued = True
                self._turn.add(self)
        else:
            self._flush()
            self._transport.send(_TEXT if first == 0x81 else _BINARY, payload)


def _may_travel(code: int) -> bool:
    """Whether a close frame may carry the code (RFC 6455, 7.4)."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999


def _server_frame(payload: bytes, first: int) -> bytes:
    """An unmasked frame with the whole message (RFC 6455, 5.2)."""
    return _head(first, len(payload), 0) + payload


def _masked_frame(payload: bytes, first: int) -> bytes:
    """A masked frame with the whole message (RFC 6455, 5.3)."""
    size = len(payload)
    if not _masks:
        random = os.urandom(4096)
        _masks.extend(random[i : i + 4] for i in range(0, 4096, 4))
    mask = _masks.pop()
    key = (mask * ((size + 3) // 4))[:size]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return _head(first, size, 0x80) + mask + masked.to_bytes(size, "little")


def _head(first: int, size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes((first, mask_bit | size))
    if size < 65536:
        return bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")


async def listen(
    acceptor: Acceptor,
    *,
    host: str | None,
    port: int,
    path: str | None,
    ssl: ssl.SSLContext | None,
    handshake_timeout: float | None,
) -> asyncio.Server:
    """Accept WebSockets on a port; `/healthz` answers a plain GET with 200.

    Args:
        acceptor: The server.
        host: The interface; `None` for all.
        port: 0 takes a free one.
        path: The only path that opens a WebSocket, or `None` for every path; others get HTTP 404.
        ssl: For `wss:`.
        handshake_timeout: Seconds that a client has for its HTTP request.

    Raises:
        OSError: The port cannot be had.
    """
    turn = _Turn(asyncio.get_running_loop())

    def open_link(protocol: Protocol | None, link: PicowsLink) -> Session:
        transport = link._transport
        headers = CompactHeaders(transport.request.headers.items())
        # picows keeps both for the connection's life, and has no more use for them.
        transport.request.headers.clear()
        transport.response.headers.clear()
        return acceptor.open(link, HttpRequest(transport.request.path.decode(), headers, link.remote_addr), protocol)

    def on_request(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        target = request.path.decode("ascii", "replace").partition("?")[0]
        headers = request.headers
        if headers.get("Upgrade", "").lower() != "websocket":
            return WSUpgradeResponseWithListener(_plain_response(target, path), None)
        if path is not None and target != path:
            return WSUpgradeResponseWithListener(_error(HTTPStatus.NOT_FOUND), None)
        # Firefox sends "keep-alive, Upgrade", which RFC 6455 allows (4.2.1) and picows does not.
        if "upgrade" in (token.strip().lower() for token in headers.get("Connection", "").split(",")):
            headers["Connection"] = "Upgrade"
        protocol = acceptor.select(offered_subprotocols(headers.getall("Sec-WebSocket-Protocol", [])))
        answer = {} if protocol is None else {"Sec-WebSocket-Protocol": protocol.name}
        response = WSUpgradeResponse.create_101_response(answer)
        return WSUpgradeResponseWithListener(response, PicowsLink(turn, acceptor.limits, partial(open_link, protocol)))

    return await picows.ws_create_server(
        on_request,
        host,
        port,
        ssl=ssl,
        backlog=1024,
        logger_name=_logger,
        websocket_handshake_timeout=handshake_timeout,
        enable_auto_pong=False,  # a pong must not overtake the answers that wait to be written
        max_frame_size=acceptor.limits.message_size,
        read_buffer_init_size=2048,
    )


def _plain_response(target: str, path: str | None) -> WSUpgradeResponse:
    """The answer to a GET that asks for no WebSocket."""
    if target == "/healthz":
        return WSUpgradeResponse.create_ok_response(b"ok\n")  # type: ignore[no-any-return]
    if path is None or target == path:
        return _error(HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket"})
    return _error(HTTPStatus.NOT_FOUND)


def _error(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> WSUpgradeResponse:
    body = f"{status} {status.phrase}\n".encode()
    return WSUpgradeResponse.create_error_response(status, body, headers)  # type: ignore[no-any-return]


async def connect(
    url: str,
    protocol: str,
    headers: Mapping[str, str],
    limits: Limits,
    open: Callable[[Link], Session],
    *,
    ssl: ssl.SSLContext | None = None,
    timeout: float = 20.0,
) -> None:
    """Open a WebSocket to a server; see `wse.core.ports.Connector`.

    Args:
        url: `ws:` or `wss:`.
        protocol: The subprotocol to offer.
        headers: Sent with the HTTP request.
        limits: What the server may send.
        open: Makes the session of the link.
        ssl: For `wss:`; by default the system's certificates are trusted.
        timeout: Seconds for the whole of it; 0 for ever.

    Raises:
        WseError: `WS_CLIENT_ERROR`, with the reason as its cause.
    """
    link = PicowsClientLink(_Turn(asyncio.get_running_loop()), limits, open)
    try:
        async with asyncio.timeout(timeout or None):
            await picows.ws_connect(
                lambda: link,
                url,
                ssl_context=ssl,
                logger_name=_logger,
                websocket_handshake_timeout=timeout or None,
                enable_auto_pong=False,
                max_frame_size=limits.message_size,
                extra_headers={**headers, "Sec-WebSocket-Protocol": protocol},
                read_buffer_init_size=2048,
            )
    except (OSError, picows.WSError, ValueError) as exc:  # TimeoutError is an OSError
        problem = str(exc) or "no answer in time"
        raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": url}, problem) from exc
