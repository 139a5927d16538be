"""WebSockets inside an aiohttp application. Needs the extra `wse[aiohttp]`.

aiohttp reads the request. Then its transport is given to another protocol, so that we read and write the frames.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from wse.transports.certificate import transport_certificate
from wse.transports.request import CompactHeaders, HttpRequest, decode_header, tokens

try:
    from aiohttp import web
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('server.aiohttp needs the aiohttp library: pip install "wse[aiohttp]"') from exc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Acceptor, Link, Receiver, SocketServer


class _Received:
    """What aiohttp has read after the request; for aiohttp, it is a parser of WebSockets."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what has been read; aiohttp is to go on."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Note that nothing more comes."""


def handler(
    acceptor: Acceptor, started: Callable[[], Awaitable[None]], sockets: SocketServer
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A server as a handler for aiohttp's router.

    Args:
        acceptor: The server.
        started: Awaited before each connection.
        sockets: Serves the WebSockets.
    """

    def open_session(request: web.Request, protocol: Protocol | None, link: Link) -> Receiver:
        headers = CompactHeaders((name.decode("latin-1"), decode_header(value)) for name, value in request.raw_headers)
        remote_addr = acceptor.admission.address(request.remote or "", headers)
        certificate = transport_certificate(request.transport)
        native = HttpRequest(request.path_qs, headers, remote_addr, request, certificate)
        return acceptor.open(link, native, protocol)

    async def handle(request: web.Request) -> web.StreamResponse:
        await started()
        refusal = acceptor.admission.refusal(request.headers)
        if refusal is not None:
            return web.Response(status=refusal.status, headers=refusal.headers, text=refusal.body)
        headers = request.headers
        protocol = acceptor.select(tokens(headers.getall("Sec-WebSocket-Protocol", [])))
        if not web.WebSocketResponse(protocols=() if protocol is None else (protocol.name,)).can_prepare(request):
            raise web.HTTPBadRequest
        host, transport = request.protocol, request.transport
        if transport is None or transport.is_closing():
            return web.Response(status=400)  # to nobody: the client has left
        received = _Received()
        host.set_parser(cast("Any", received))
        key, extensions = headers["Sec-WebSocket-Key"], headers.getall("Sec-WebSocket-Extensions", [])
        opening = partial(open_session, request, protocol)
        await sockets.serve(transport, received.data, key, extensions, protocol, opening)
        host.connection_lost(None)  # the transport has told it to the other protocol
        return web.Response(status=101)  # for the access log

    return handle
