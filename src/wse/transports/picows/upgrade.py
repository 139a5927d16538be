"""Opens WebSockets on sockets whose HTTP request has been read: by the built-in listener, or by a web server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

import aiofastnet
import picows
from multidict import CIMultiDict

from wse.errors import CloseReason
from wse.transports.picows.link import SERVICE_RESTART, PicowsLink, Turn
from wse.transports.picows.protocol import feed, give_transport, websocket_protocol
from wse.transports.tcp import bound_unsent

if TYPE_CHECKING:
    from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stubs leave it out

    from wse.core.limits import Limits
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Receiver
    from wse.transports.deflate import Compression

RECEIVE_BUFFER = 64 * 1024
"""Bytes that the kernel buffers for one connection. All of them are read at once and handled in one turn of the event
loop: with the kernel's default of many MiB, a client that sends without end would delay all others for seconds."""

_MOVABLE = ("asyncio.selector_events", "uvloop.loop")
"""The modules of transports that leave a connection open when they close their descriptor of it."""

_NO_HEADERS: CIMultiDict[str] = CIMultiDict()


class Upgrader:
    """Opens WebSockets for a server.

    Args:
        limits: Limits on messages from the clients.
        compression: Agreed on with clients that support it; `None` for no compression.
    """

    def __init__(self, limits: Limits, compression: Compression | None) -> None:
        self._limits = limits
        self._compression = compression
        self._turn: Turn | None = None  # of the event loop that the server was last in

    def upgrade(
        self,
        transport: asyncio.Transport,
        received: bytes,
        key: str,
        extensions: list[str],
        protocol: Protocol | None,
        open: Callable[[Link], Receiver],
        headers: Iterable[tuple[str, str]] = (),
    ) -> WSProtocol:
        """Answer a request for a WebSocket; returns its protocol, which has the transport from now on.

        Args:
            transport: The transport of the request.
            received: What has been read after the request.
            key: The client's `Sec-WebSocket-Key`; the answer to a malformed one is HTTP 400.
            extensions: The lines of its `Sec-WebSocket-Extensions`.
            protocol: The subprotocol, or `None` if the client has offered no known one.
            open: Makes the session of the link.
            headers: More headers of the answer.
        """
        loop = asyncio.get_running_loop()
        turn = self._turn
        if turn is None or turn.loop is not loop:
            turn = self._turn = Turn(loop)
        answered = CIMultiDict(headers)
        if protocol is not None:
            answered["Sec-WebSocket-Protocol"] = protocol.name
        deflate = None
        if self._compression is not None:
            accepted = self._compression.accept(",".join(extensions))
            if accepted is not None:
                answered["Sec-WebSocket-Extensions"], deflate = accepted

        def open_session(link: PicowsLink) -> Receiver:
            # picows keeps both for the connection's life, and does not use them again.
            opened = link._transport
            request = opened.request
            request.method, request.path, request.version = b"GET", b"/", b"HTTP/1.1"  # constants, shared by all
            request.headers = opened.response.headers = _NO_HEADERS
            return open(link)

        link = PicowsLink(turn, self._limits, open_session, deflate)
        response = picows.WSUpgradeResponse.create_101_response(answered)
        websocket = websocket_protocol(
            lambda _: picows.WSUpgradeResponseWithListener(response, link), self._limits.max_frame_size
        )
        normalised = (  # picows reads only requests in the form that browsers send
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n"
        )
        transport.set_protocol(websocket)
        give_transport(websocket, transport)
        feed(websocket, normalised.encode() + received)
        return websocket

    async def serve(
        self,
        transport: asyncio.Transport,
        received: bytes,
        key: str,
        extensions: list[str],
        protocol: Protocol | None,
        open: Callable[[Link], Receiver],
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Take over the transport of a web server; see `wse.core.ports.transport.SocketServer`."""
        sock = transport.get_extra_info("socket")
        bound_receive_buffer(sock)
        bound_unsent(sock)
        sessions = []

        def open_session(link: Link) -> Receiver:
            session = open(link)
            sessions.append(session)
            return session

        def upgrade(transport: asyncio.Transport) -> WSProtocol:
            return self.upgrade(transport, received, key, extensions, protocol, open_session, headers)

        websocket = await _on_own_transport(transport, upgrade) or upgrade(transport)
        try:
            await websocket.transport.wait_disconnected()
        except asyncio.CancelledError:
            for session in sessions:
                session.close(SERVICE_RESTART, CloseReason.BY_SERVER)
            raise


class _Upgrading(asyncio.Protocol):
    """The protocol of a new transport until it has made that of the WebSocket."""

    websocket: WSProtocol

    def __init__(self, upgrade: Callable[[asyncio.Transport], WSProtocol]) -> None:
        self._upgrade = upgrade

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.websocket = self._upgrade(cast("asyncio.Transport", transport))  # aiofastnet's does not derive from it


async def _on_own_transport(
    transport: asyncio.Transport, upgrade: Callable[[asyncio.Transport], WSProtocol]
) -> WSProtocol | None:
    """Move a connection to a transport of aiofastnet, which costs less for each message, and upgrade it there.

    `None` if it cannot be moved, and stays as it is: TLS has its state in the web server's transport, and that of
    Windows would end the connection.
    """
    if type(transport).__module__ not in _MOVABLE or transport.get_extra_info("sslcontext") is not None:
        return None
    try:
        sock = transport.get_extra_info("socket").dup()
    except OSError:  # too many open files, for example
        return None
    transport.set_protocol(asyncio.Protocol())
    transport.abort()  # closes its own descriptor, and the connection goes on with ours
    _, upgrading = await aiofastnet.connect_accepted_socket(
        asyncio.get_running_loop(), lambda: _Upgrading(upgrade), sock
    )
    return upgrading.websocket


def bound_receive_buffer(sock: socket.socket) -> None:
    """Let the kernel buffer only `RECEIVE_BUFFER` bytes; the connections of a listening socket inherit the bound."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
