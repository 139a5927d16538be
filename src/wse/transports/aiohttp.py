"""WebSockets inside an aiohttp application. Needs `pip install wse[aiohttp]`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wse.transports.awaited import CLOSE_TIMEOUT, AwaitedLink
from wse.transports.request import HttpRequest, offered_subprotocols

try:
    from aiohttp import WSCloseCode, WSMsgType, web
    from aiohttp.http_websocket import WebSocketError
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError("server.aiohttp needs the aiohttp library: pip install wse[aiohttp]") from exc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wse.core.ports import Acceptor, Protocol
    from wse.core.session import Session


class AiohttpLink(AwaitedLink):
    """One WebSocket of aiohttp."""

    def __init__(self, limit: int, websocket: web.WebSocketResponse, remote_addr: str) -> None:
        super().__init__(limit, remote_addr)
        self._websocket = websocket

    async def _receive(self) -> str | bytes | tuple[int, str]:
        message = await self._websocket.receive()
        if message.type is WSMsgType.TEXT:
            text: str = message.data
            return text
        if message.type is WSMsgType.BINARY:
            return bytes(message.data)
        if message.type is WSMsgType.CLOSE:
            return int(message.data or WSCloseCode.OK), str(message.extra or "")
        error = self._websocket.exception()
        if isinstance(error, WebSocketError):
            # aiohttp has closed the connection for it: a frame against RFC 6455, or a message above the limit.
            self.session.violated(int(error.code), str(error))
        return int(self._websocket.close_code or 1006), ""

    async def _send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            await self._websocket.send_str(message)
        else:
            await self._websocket.send_bytes(message)

    async def _send_close(self, code: int, reason: str) -> None:
        await self._websocket.close(code=code, message=reason.encode())


def handler(
    acceptor: Acceptor, started: Callable[[], None]
) -> Callable[[web.Request], Awaitable[web.WebSocketResponse]]:
    """A server as a handler for aiohttp's router.

    Args:
        acceptor: The server.
        started: Called before each connection.
    """

    def open_session(request: web.Request, protocol: Protocol | None, link: AwaitedLink) -> Session:
        http_request = HttpRequest(request.path_qs, request.headers, link.remote_addr, request)
        return acceptor.open(link, http_request, protocol)

    async def handle(request: web.Request) -> web.WebSocketResponse:
        started()
        protocol = acceptor.select(offered_subprotocols(request.headers.getall("Sec-WebSocket-Protocol", [])))
        limit = acceptor.limits.message_size
        websocket = web.WebSocketResponse(
            protocols=() if protocol is None else (protocol.name,),
            max_msg_size=limit,
            timeout=CLOSE_TIMEOUT,
            compress=False,
        )
        await websocket.prepare(request)
        link = AiohttpLink(limit, websocket, request.remote or "")
        await link.run(partial(open_session, request, protocol))
        return websocket

    return handle
