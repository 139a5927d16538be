"""The built-in listener: WebSockets, and a few plain GETs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import picows
from multidict import CIMultiDict
from picows import WSUpgradeResponse, WSUpgradeResponseWithListener

from wse.transports.picows.link import PicowsLink, Turn
from wse.transports.picows.log import logger
from wse.transports.request import CompactHeaders, HttpRequest, offered_subprotocols

if TYPE_CHECKING:
    import ssl

    from picows import WSUpgradeRequest

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Acceptor, Receiver, StaticResource
    from wse.transports.deflate import Compression


_NO_HEADERS: CIMultiDict[str] = CIMultiDict()

_RECEIVE_BUFFER = 64 * 1024
"""Bytes that the kernel buffers for one connection. All of them are read at once and handled in one turn of the event
loop: with the kernel's default of many MiB, a client that sends without end would delay all others for seconds."""

_OF_THE_HANDSHAKE = frozenset(("connection", "upgrade", "sec-websocket-key", "sec-websocket-version"))
"""Headers of the handshake alone, which are not kept for the connection's life."""


async def listen(
    acceptor: Acceptor,
    *,
    host: str | None,
    port: int,
    reuse_port: bool,
    path: str | None,
    ssl: ssl.SSLContext | None,
    handshake_timeout: float | None,
    files: Mapping[str, StaticResource],
    compression: Compression | None,
) -> asyncio.Server:
    """Accept WebSockets on a port; a plain GET is answered with a file, or at `/healthz` and `/readyz`.

    Args:
        acceptor: The server.
        host: The interface; `None` for all.
        port: 0 takes a free one.
        reuse_port: Other processes may also listen on the port, and the system spreads connections (SO_REUSEPORT).
        path: The only path that opens a WebSocket, or `None` for every path; others get HTTP 404.
        ssl: For `wss:`.
        handshake_timeout: Seconds that a client has for its HTTP request.
        files: Files for plain GETs, by path.
        compression: Agreed on with clients that support it; `None` for no compression.

    Raises:
        OSError: The port is not available.
    """
    turn = Turn(asyncio.get_running_loop())

    def open_link(protocol: Protocol | None, link: PicowsLink) -> Receiver:
        transport = link._transport
        items = transport.request.headers.items()
        headers = CompactHeaders(item for item in items if item[0].lower() not in _OF_THE_HANDSHAKE)
        remote_addr = acceptor.admission.address(link.remote_addr, transport.request.headers)
        # picows keeps both for the connection's life, and does not use them again.
        request = transport.request
        request.method, request.version = b"GET", b"HTTP/1.1"  # all that it accepts; these are constants
        request.headers = transport.response.headers = _NO_HEADERS
        return acceptor.open(link, HttpRequest(request.path.decode("utf-8", "replace"), headers, remote_addr), protocol)

    def plain_response(request: WSUpgradeRequest, target: str) -> WSUpgradeResponse:
        """The answer to a GET that does not ask for a WebSocket."""
        if target == "/healthz":
            return _text(b"ok\n")
        if target == "/readyz":
            return _text(b"ready\n") if acceptor.ready else _error(HTTPStatus.SERVICE_UNAVAILABLE)
        file = files.get(target)
        if file is not None:
            if file.is_fresh(request.headers.get("If-None-Match", "")):
                return _response(HTTPStatus.NOT_MODIFIED, file.headers)
            return _response(HTTPStatus.OK, file.headers, file.body)
        if path is None or target == path:
            return _error(HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket"})
        return _error(HTTPStatus.NOT_FOUND)

    def on_request(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        target = request.path.decode("ascii", "replace").partition("?")[0]
        headers = request.headers
        if headers.get("Upgrade", "").lower() != "websocket":
            return WSUpgradeResponseWithListener(plain_response(request, target), None)
        if path is not None and target != path:
            return WSUpgradeResponseWithListener(_error(HTTPStatus.NOT_FOUND), None)
        refusal = acceptor.admission.refusal(headers)
        if refusal is not None:
            return WSUpgradeResponseWithListener(_error(refusal.status, refusal.headers), None)
        # Firefox sends "keep-alive, Upgrade", which RFC 6455 allows (4.2.1) and picows does not.
        if "upgrade" in (token.strip().lower() for token in headers.get("Connection", "").split(",")):
            headers["Connection"] = "Upgrade"
        protocol = acceptor.select(offered_subprotocols(headers.getall("Sec-WebSocket-Protocol", [])))
        answer = {} if protocol is None else {"Sec-WebSocket-Protocol": protocol.name}
        deflate = None
        if compression is not None:
            accepted = compression.accept(",".join(headers.getall("Sec-WebSocket-Extensions", [])))
            if accepted is not None:
                answer["Sec-WebSocket-Extensions"], deflate = accepted
        link = PicowsLink(turn, acceptor.limits, partial(open_link, protocol), deflate)
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(answer), link)

    server = await picows.ws_create_server(
        on_request,
        host,
        port,
        ssl=ssl,
        reuse_port=reuse_port or None,
        backlog=1024,
        logger_name=logger,
        websocket_handshake_timeout=handshake_timeout,
        enable_auto_pong=False,  # a pong must not overtake answers that are still queued
        max_frame_size=acceptor.limits.max_frame_size,
        read_buffer_init_size=2048,
    )
    for listening in server.sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)  # its connections inherit it
    return server


def _text(body: bytes) -> WSUpgradeResponse:
    return _response(HTTPStatus.OK, {"Content-Type": "text/plain; charset=utf-8"}, body)


def _error(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> WSUpgradeResponse:
    return _response(status, headers or {}, f"{status} {status.phrase}\n".encode())


def _response(status: HTTPStatus, headers: Mapping[str, str], body: bytes | None = None) -> WSUpgradeResponse:
    response = WSUpgradeResponse()
    response.version = b"HTTP/1.1"
    response.status = status
    response.headers = CIMultiDict(headers)
    response.body = body
    return response
