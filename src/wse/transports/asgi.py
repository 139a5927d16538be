"""WebSockets of ASGI 3 servers (uvicorn, hypercorn, granian), inside FastAPI, Starlette, Litestar, Quart and Django.

ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from wse.core.admission import Refusal
from wse.transports.awaited import AwaitedLink
from wse.transports.certificate import extension_certificate, transport_certificate
from wse.transports.request import CompactHeaders, HttpRequest, decode_header

if TYPE_CHECKING:
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Acceptor, Certificate, Link, Receiver, SocketServer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


SOCKET_EXTENSION = "wse.socket"
"""The extension of the scope with which a web server offers the socket itself, so that we read and write its frames.

Its value is `{"take": take}`; see `wse.uvicorn`."""

_NOT_FOUND = Refusal(HTTPStatus.NOT_FOUND)


class TakenSocket(NamedTuple):
    """The socket of a WebSocket whose request has not been answered, as a web server gives it away.

    Attributes:
        transport: Its transport.
        received: What has been read after the request.
        headers: The web server's own headers for its answer.
    """

    transport: asyncio.Transport
    received: bytes
    headers: list[tuple[str, str]]


class AsgiLink(AwaitedLink):
    """One WebSocket of an ASGI server."""

    def __init__(
        self, limit: int, receive: Receive, send: Send, remote_addr: str, transport: asyncio.Transport | None
    ) -> None:
        super().__init__(limit, remote_addr, transport)
        self._asgi_receive = receive
        self._asgi_send = send

    def _receive(self) -> Awaitable[Message]:
        return self._asgi_receive()

    def _read(self, event: Message) -> str | bytes | tuple[int, str]:
        text: str | None = event.get("text")
        if text is not None:
            return text
        if event["type"] == "websocket.receive":
            data: bytes = event.get("bytes") or b""
            return data
        # websocket.disconnect is all that remains.
        code = int(event.get("code") or 1005)
        if code == 1005 and "reason" not in event:
            # uvicorn and granian give this code if the socket has ended without a close frame. For an empty close
            # frame uvicorn adds a reason. granian does not, so there the rare case is reported as the frequent one.
            code = 1006
        return code, event.get("reason") or ""

    def _send(self, message: str | bytes) -> Awaitable[None]:
        if isinstance(message, str):
            return self._asgi_send({"type": "websocket.send", "text": message})
        return self._asgi_send({"type": "websocket.send", "bytes": message})

    def _cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send_close(self, code: int, reason: str) -> Awaitable[None]:
        return self._asgi_send({"type": "websocket.close", "code": code, "reason": reason})


class AsgiApp:
    """A server as an ASGI application, for `websocket` and `lifespan` scopes.

    Args:
        acceptor: The server.
        path: The only path that opens a WebSocket, or `None` for every path.
        started: Awaited when the application starts, and before each connection.
        stopped: Called when the application stops.
        sockets: Serves WebSockets whose socket the web server offers.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        path: str | None,
        started: Callable[[], Awaitable[None]],
        stopped: Callable[[], Awaitable[None]],
        sockets: SocketServer,
    ) -> None:
        self._acceptor = acceptor
        self._path = path
        self._started = started
        self._stopped = stopped
        self._sockets = sockets
        self._stopping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "websocket":
            await self._websocket(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._http(send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if self._path is not None and not _is_at(self._path, scope["path"], scope.get("root_path") or ""):
            await self._refuse(scope, send, _NOT_FOUND)
            return
        await self._started()
        headers = CompactHeaders((name.decode("latin-1"), decode_header(value)) for name, value in scope["headers"])
        refusal = self._acceptor.admission.refusal(headers)
        if refusal is not None:
            await self._refuse(scope, send, refusal)
            return
        protocol = self._acceptor.select(scope.get("subprotocols") or ())
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        transport = _transport_of(receive)
        open_session = partial(self._open, scope, headers, peer, _certificate_of(scope, transport), protocol)
        offered = _extension(scope, SOCKET_EXTENSION)
        if offered is not None:
            async with offered["take"](self._stop_soon) as socket:
                key, extensions = headers["Sec-WebSocket-Key"], headers.getall("Sec-WebSocket-Extensions", [])
                await self._sockets.serve(
                    socket.transport, socket.received, key, extensions, protocol, open_session, socket.headers
                )
            return
        await send({"type": "websocket.accept", "subprotocol": None if protocol is None else protocol.name})
        await AsgiLink(self._acceptor.limits.message_size, receive, send, peer, transport).run(open_session)

    def _stop_soon(self) -> None:
        """Stop before the application does: the web server waits for its connections."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        try:
            await self._stopped()
        finally:
            self._stopping = None

    def _open(
        self,
        scope: Scope,
        headers: CompactHeaders,
        peer: str,
        cert: Certificate | None,
        protocol: Protocol | None,
        link: Link,
    ) -> Receiver:
        remote_addr = self._acceptor.admission.address(peer, headers)
        raw_path = (
            scope.get("raw_path") or quote(scope["path"]).encode()
        )  # as it was sent: a decoded one may hold a "?"
        target = (raw_path + b"?" + scope.get("query_string", b"")).decode("latin-1")
        return self._acceptor.open(link, HttpRequest(target, headers, remote_addr, scope, cert), protocol)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                try:
                    await self._started()
                except Exception as exc:  # the web server logs the message and ends
                    await send({"type": "lifespan.startup.failed", "message": str(exc)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif event["type"] == "lifespan.shutdown":
                await self._stopped()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _refuse(self, scope: Scope, send: Send, refusal: Refusal) -> None:
        """Answer with an HTTP response instead; always 403 if the web server lacks the extension for others."""
        if _extension(scope, "websocket.http.response") is not None:
            headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
            await _respond(send, "websocket.http.response", refusal.status, refusal.body.encode(), *headers)
            await asyncio.sleep(0)  # uvicorn logs an error if this returns before it has closed the socket
        else:
            await send({"type": "websocket.close"})

    async def _http(self, send: Send) -> None:
        await _respond(send, "http.response", 426, b"426 Upgrade Required\n", (b"upgrade", b"websocket"))


def _extension(scope: Scope, name: str) -> dict[str, Any] | None:
    extensions: dict[str, dict[str, Any]] = scope.get("extensions") or {}
    return extensions.get(name)


def _transport_of(receive: Receive) -> asyncio.Transport | None:
    """The transport, where it can be reached: ASGI has no name for it, but the callables of uvicorn are methods of its
    owner."""
    transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
    return transport if hasattr(transport, "set_write_buffer_limits") else None


def _certificate_of(scope: Scope, transport: asyncio.Transport | None) -> Certificate | None:
    tls = _extension(scope, "tls")
    return transport_certificate(transport) if tls is None else extension_certificate(tls)


def _is_at(path: str, requested: str, root: str) -> bool:
    """Whether a request is for a path, by itself or below the root path that a proxy or a mount has in front of it.

    ASGI's `path` includes its `root_path`. The root path may also be longer than the part in front of ours: by the end,
    where a mount is part of ours; by the beginning, where the proxy has taken that away, and neither the web server nor
    the framework has put it back.
    """
    if not requested.endswith(path):
        return False
    before = requested.removesuffix(path)
    return not before or f"{root}/".startswith(f"{before}/") or root.rstrip("/").endswith(before)


async def _respond(send: Send, kind: str, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Answer by HTTP."""
    plain = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": f"{kind}.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": f"{kind}.body", "body": body})
