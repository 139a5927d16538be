"""The built-in listener: WebSockets, and a few plain GETs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import aiofastnet

from wse.core.ports.http import HttpCall, HttpReply
from wse.reading import READ_SIZE, Reading
from wse.transports.certificate import transport_certificate
from wse.transports.picows.http import HttpError, HttpHead, answer, is_hopeless
from wse.transports.picows.link import CLOSE_TIMEOUT
from wse.transports.picows.log import logger
from wse.transports.picows.tls import tls_loop
from wse.transports.picows.unix import bind_unix
from wse.transports.picows.upgrade import Upgrader, bound_receive_buffer
from wse.transports.request import HttpRequest, tokens
from wse.transports.tcp import bound_unsent

if TYPE_CHECKING:
    import socket
    import ssl

    from wse.core.ports.http import Route
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Acceptor, Certificate, Link, Receiver, StaticResource
    from wse.transports.deflate import Compression

MAX_HEAD = 16 * 1024
"""Bytes that the head of a request may have."""

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""


async def listen(
    acceptor: Acceptor,
    *,
    host: str | None,
    port: int | None,
    reuse_port: bool,
    unix: str | None,
    unix_mode: int | None,
    sock: socket.socket | None,
    path: str | None,
    ssl: ssl.SSLContext | None,
    handshake_timeout: float | None,
    files: Mapping[str, StaticResource],
    routes: Mapping[str, Route],
    acceptors: Mapping[str, Acceptor],
    compression: Compression | None,
) -> Listener:
    """Accept WebSockets on a port or another socket; answer plain GETs with files, and at `/healthz` and `/readyz`.

    Args:
        acceptor: The server.
        host: The interface; `None` for all.
        port: 0 takes a free one.
        reuse_port: Other processes may also listen on the port, and the system spreads connections (SO_REUSEPORT).
        unix: The path of a Unix socket, instead of a port.
        unix_mode: The permissions of that socket; `None` leaves them to the umask.
        sock: A socket that is bound already, instead of both.
        path: The only path that opens a WebSocket, or `None` for every path; others get HTTP 404.
        ssl: For `wss:`.
        handshake_timeout: Seconds that a client has for its HTTP request.
        files: Files for plain GETs, by path.
        routes: What answers other plain requests, by path.
        acceptors: Further servers, each for the WebSockets of one path.
        compression: Agreed on with clients that support it; `None` for no compression.

    Raises:
        OSError: The port or the path is not available.
    """
    listener = Listener(acceptor, path, handshake_timeout, files, routes, acceptors, compression)
    loop = asyncio.get_running_loop()
    if ssl is not None:
        loop = tls_loop(loop)
    make = partial(HttpConnection, listener)
    tls_timeout = None if ssl is None else handshake_timeout
    if unix is not None:
        bound = bind_unix(unix, unix_mode)
        server = await aiofastnet.create_unix_server(
            loop, make, sock=bound, ssl=ssl, ssl_handshake_timeout=tls_timeout, backlog=BACKLOG
        )
    elif sock is not None:
        # The server closes its sockets, but this one is the application's, which may start the server again.
        server = await aiofastnet.create_server(
            loop, make, sock=sock.dup(), ssl=ssl, ssl_handshake_timeout=tls_timeout, backlog=BACKLOG
        )
    else:
        server = await aiofastnet.create_server(
            loop,
            make,
            host,
            port,
            ssl=ssl,
            ssl_handshake_timeout=tls_timeout,
            reuse_port=reuse_port or None,
            backlog=BACKLOG,
        )
    listener.server = server
    for listening in server.sockets:
        bound_receive_buffer(listening)  # its connections inherit both
        bound_unsent(listening)
    return listener


class Listener:
    """An open port.

    Attributes:
        connections: The TCP connections that are not WebSockets: their request has not come, or is being answered.
        answering: What will answer some of them.
        buffer: For what these read.
    """

    server: asyncio.Server

    def __init__(
        self,
        acceptor: Acceptor,
        path: str | None,
        handshake_timeout: float | None,
        files: Mapping[str, StaticResource],
        routes: Mapping[str, Route],
        acceptors: Mapping[str, Acceptor],
        compression: Compression | None,
    ) -> None:
        self.acceptor = acceptor
        self.handshake_timeout = handshake_timeout
        self.connections: set[HttpConnection] = set()
        self.answering: set[asyncio.Task[None]] = set()
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(READ_SIZE))
        self._emptied: asyncio.Future[None] | None = None  # while the end of the last one is awaited
        self._upgrader = Upgrader(acceptor.limits, compression)
        self._path = path
        self._files = files
        self._routes = routes
        self._others = {at: (other, Upgrader(other.limits, None)) for at, other in acceptors.items()}

    @property
    def port(self) -> int | None:
        """The port, while it is open; `None` for a Unix socket."""
        sockets = self.server.sockets
        address = sockets[0].getsockname() if sockets else None
        return address[1] if isinstance(address, tuple) else None

    def close(self) -> None:
        """Close the port; connections stay open."""
        self.server.close()

    async def answered(self) -> None:
        """Return when the requests have been answered that take a while."""
        if self.answering:
            await asyncio.wait(self.answering)

    async def give_up(self) -> None:
        """Answer those with 503 that are not done."""
        if self.answering:
            for late in self.answering:
                late.cancel()
            await asyncio.wait(self.answering, timeout=CLOSE_TIMEOUT)

    async def wait_closed(self) -> None:
        """Return when all connections have closed: those without a request are cut, answers have `CLOSE_TIMEOUT`."""
        for connection in tuple(self.connections):
            if not connection.answered:
                connection.abort()
        if self.connections:
            self._emptied = self.loop.create_future()
            await asyncio.wait((self._emptied,), timeout=CLOSE_TIMEOUT)
        abort_clients = getattr(self.server, "abort_clients", None)  # asyncio's own has it from Python 3.13 on
        if abort_clients is not None:  # pragma: no branch - aiofastnet's has it
            abort_clients()  # connections in the TLS handshake are known to nobody else
        await self.server.wait_closed()

    def forget(self, connection: HttpConnection) -> None:
        """The connection has become a WebSocket, or has ended."""
        self.connections.discard(connection)
        if not self.connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    # A request.

    def route(self, head: HttpHead) -> Route | None:
        """What answers a request, if not this object itself.

        Raises:
            HttpError: Its method is not known there, or its body is too large; or a body that nobody takes.
        """
        route = self._routes.get(head.path)
        if route is None or head.wants_websocket:
            if head.body_size:
                raise HttpError(HTTPStatus.BAD_REQUEST)
            return None
        if head.method not in route.methods and not (head.method == "HEAD" and "GET" in route.methods):
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": ", ".join(route.methods)})
        if head.body_size > route.max_body:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return route

    def respond(self, head: HttpHead) -> bytes:
        """The answer to a request that neither asks for a WebSocket nor is another's.

        Raises:
            HttpError: There is nothing to send.
        """
        if head.method not in ("GET", "HEAD"):
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
        reply = partial(answer, head_only=head.method == "HEAD")
        text = {"Content-Type": "text/plain; charset=utf-8"}
        if head.path == "/healthz":
            return reply(HTTPStatus.OK, text, b"ok\n")
        if head.path == "/readyz":
            if not self.acceptor.ready:
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE)
            return reply(HTTPStatus.OK, text, b"ready\n")
        file = self._files.get(head.path)
        if file is not None:
            headers = {**file.headers, **self.acceptor.admission.cross_origin(head.headers)}
            if file.is_fresh(head.headers.get("If-None-Match", "")):
                return reply(HTTPStatus.NOT_MODIFIED, headers)
            return reply(HTTPStatus.OK, headers, file.body)
        if self._path is None or head.path == self._path:
            raise HttpError(HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket"})
        raise HttpError(HTTPStatus.NOT_FOUND)

    def admit(self, head: HttpHead) -> str:
        """The key of a request for a WebSocket that may be opened.

        Raises:
            HttpError: The WebSocket is refused.
        """
        other = self._others.get(head.path)
        if other is None and self._path is not None and head.path != self._path:
            raise HttpError(HTTPStatus.NOT_FOUND)
        acceptor = self.acceptor if other is None else other[0]
        refusal = acceptor.admission.refusal(head.headers)
        if refusal is not None:
            raise HttpError(refusal.status, refusal.headers)
        return head.websocket_key()

    def upgrade(self, transport: asyncio.Transport, head: HttpHead, key: str, received: bytes) -> None:
        """Open a WebSocket."""
        acceptor, upgrader = self._others.get(head.path) or (self.acceptor, self._upgrader)
        protocol = acceptor.select(tokens(head.headers.getall("Sec-WebSocket-Protocol", [])))
        extensions = head.headers.getall("Sec-WebSocket-Extensions", [])
        open_session = partial(_open, acceptor, head, transport_certificate(transport), protocol)
        upgrader.upgrade(transport, received, key, extensions, protocol, open_session)


def _open(
    acceptor: Acceptor, head: HttpHead, cert: Certificate | None, protocol: Protocol | None, link: Link
) -> Receiver:
    remote_addr = acceptor.admission.address(link.remote_addr, head.headers)
    request = HttpRequest(head.target, head.kept_headers(), remote_addr, certificate=cert)
    return acceptor.open(link, request, protocol)


class HttpConnection(Reading):
    """The protocol of a TCP connection until its request has come: then the WebSocket takes over, or the request is
    answered and the connection closed.

    Attributes:
        answered: Whether the request has been answered.
    """

    __slots__ = ("_answering", "_begun", "_listener", "_received", "_timer", "_transport", "_waiting", "answered")

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.buffer)
        self._listener = listener
        self._received = bytearray()
        self._begun = False
        self._waiting: tuple[HttpHead, Route] | None = None  # for the rest of the body
        self._answering: asyncio.Future[None] | None = None
        self.answered = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._listener.connections.add(self)
        timeout = self._listener.handshake_timeout
        if timeout is not None:
            self._timer = self._listener.loop.call_later(timeout, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if not self.answered and self._answering is None:
            logger.debug("a connection ended without a request: %r", exc, extra={"kind": "no-request"})

    def data_received(self, data: bytes) -> None:
        if self.answered or self._answering is not None:
            return
        received = self._received
        received += data
        if self._waiting is not None:
            self._answer_when_whole(*self._waiting)
            return
        if not self._begun and received.startswith(b"\r\n"):
            del received[:2]  # RFC 9112, 2.2: an empty line before the request
        self._begun = self._begun or len(received) > 1
        end = received.find(b"\r\n\r\n")
        if (len(received) if end < 0 else end) > MAX_HEAD:
            self._answer(answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, {}, head_only=False))
        elif end >= 0 or (self._begun and is_hopeless(received)):
            self._handle(bytes(received[: max(end, 0)]), bytes(received[end + 4 :]))

    def eof_received(self) -> bool:
        # Who has sent a request may send no more, and wait for the answer. Over TLS, asyncio cannot do that.
        return self._answering is not None and self._transport.get_extra_info("sslcontext") is None

    def abort(self) -> None:
        """Close the socket at once."""
        self._transport.abort()

    def _handle(self, raw: bytes, rest: bytes) -> None:
        head_only = False
        try:
            head = HttpHead(raw)
            head_only = head.method == "HEAD"
            route = self._listener.route(head)
            if route is not None:
                self._received[:] = rest
                self._waiting = head, route
                if head.expects_continue and len(rest) < head.body_size:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._answer_when_whole(head, route)
                return
            if not head.wants_websocket:
                self._answer(self._listener.respond(head))
                return
            key = self._listener.admit(head)
        except HttpError as exc:
            self._answer(answer(exc.status, exc.headers, head_only=head_only))
            return
        self._end()
        self._listener.upgrade(self._transport, head, key, rest)

    def _answer_when_whole(self, head: HttpHead, route: Route) -> None:
        if len(self._received) < head.body_size:
            return
        head_only = head.method == "HEAD"
        body = bytes(self._received[: head.body_size])
        reply = route.answer(HttpCall("GET" if head_only else head.method, head.path, head.headers, body))
        if isinstance(reply, HttpReply):
            self._reply(reply, head_only=head_only)
        else:
            self._waiting = None
            self._stop_timer()
            # It goes on without the client: what has been begun is done, and remembered for a repeat.
            self._answering = asyncio.ensure_future(self._reply_later(reply, head_only=head_only))
            self._listener.answering.add(self._answering)
            self._answering.add_done_callback(self._listener.answering.discard)

    async def _reply_later(self, reply: Awaitable[HttpReply], *, head_only: bool) -> None:
        try:
            self._reply(await reply, head_only=head_only)
        except asyncio.CancelledError:
            self._reply(HttpReply(HTTPStatus.SERVICE_UNAVAILABLE), head_only=head_only)
            raise
        except Exception as exc:
            logger.warning("a request could not be answered", exc_info=exc, extra={"kind": "http-failed"})
            self._reply(HttpReply(HTTPStatus.INTERNAL_SERVER_ERROR), head_only=head_only)

    def _reply(self, reply: HttpReply, *, head_only: bool) -> None:
        self._answer(answer(reply.status, reply.headers, reply.body, head_only=head_only))

    def _answer(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self.answered = True
        self._received.clear()
        self._transport.write(data)
        self._transport.close()

    def _end(self) -> None:
        self._listener.forget(self)
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
