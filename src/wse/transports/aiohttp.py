"""WebSockets inside an aiohttp application. Needs the extra `wse[aiohttp]`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wse.transports.awaited import CLOSE_LIMIT, AwaitedLink
from wse.transports.certificate import transport_certificate
from wse.transports.request import CompactHeaders, HttpRequest, decode_header, tokens
from wse.transports.tcp import HIGH_WATER

try:
    from aiohttp import WSMessage, WSMsgType, web
    from aiohttp.http_websocket import WebSocketError
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('server.aiohttp needs the aiohttp library: pip install "wse[aiohttp]"') from exc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Acceptor, Receiver


class AiohttpLink(AwaitedLink):
    """One WebSocket of aiohttp."""

    def __init__(self, limit: int, websocket: web.WebSocketResponse, request: web.Request) -> None:
        super().__init__(limit, request.remote or "", request.transport)
        self._websocket = websocket
        self._request = request

    def _receive(self) -> Awaitable[WSMessage]:
        return self._websocket.receive()

    def _read(self, event: WSMessage) -> str | bytes | tuple[int, str]:
        data = event.data
        if event.type is WSMsgType.TEXT or event.type is WSMsgType.BINARY:
            return data  # type: ignore[no-any-return] # str or bytes
        if event.type is WSMsgType.CLOSE:
            return int(data) or 1005, event.extra or ""
        if event.type is WSMsgType.ERROR and isinstance(data, WebSocketError):
            # aiohttp has closed the connection for it: a frame against RFC 6455, or a message above the limit.
            self.session.violated(int(data.code), str(data))
        return 1006, ""

    def _send(self, message: str | bytes) -> Awaitable[None]:
        if isinstance(message, str):
            return self._websocket.send_str(message)
        return self._websocket.send_bytes(message)

    def _send_close(self, code: int, reason: str) -> Awaitable[bool]:
        return self._websocket.close(code=code, message=reason.encode())

    async def _finish(self, code: int, reason: str) -> None:
        # The peer's close is echoed, so that a browser's close event shows the page's own code and reason.
        code = 1000 if code in (1005, 1006) else code
        await self._websocket.close(code=code, message=reason.encode(), drain=False)

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def handler(
    acceptor: Acceptor, started: Callable[[], Awaitable[None]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A server as a handler for aiohttp's router.

    Args:
        acceptor: The server.
        started: Awaited before each connection.
    """

    def open_session(request: web.Request, protocol: Protocol | None, link: AwaitedLink) -> Receiver:
        headers = CompactHeaders((name.decode("latin-1"), decode_header(value)) for name, value in request.raw_headers)
        remote_addr = acceptor.admission.address(link.remote_addr, headers)
        cert = transport_certificate(request.transport)
        return acceptor.open(link, HttpRequest(request.path_qs, headers, remote_addr, request, cert), protocol)

    async def handle(request: web.Request) -> web.StreamResponse:
        await started()
        refusal = acceptor.admission.refusal(request.headers)
        if refusal is not None:
            return web.Response(status=refusal.status, headers=refusal.headers, text=refusal.body)
        protocol = acceptor.select(tokens(request.headers.getall("Sec-WebSocket-Protocol", [])))
        limit = acceptor.limits.message_size
        websocket = web.WebSocketResponse(
            protocols=() if protocol is None else (protocol.name,),
            max_msg_size=limit + 1,  # aiohttp allows less than that
            timeout=CLOSE_LIMIT,  # the link ends it earlier, unless the peer is taking messages
            autoclose=False,
            heartbeat=acceptor.heartbeat.interval or None,  # and half of it for the pong
            compress=False,
            writer_limit=HIGH_WATER,
        )
        await websocket.prepare(request)
        link = AiohttpLink(limit, websocket, request)
        await link.run(partial(open_session, request, protocol))
        return websocket

    return handle
