"""Open a WebSocket to a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import picows
from python_socks import ProxyError

from wse.errors import ErrorCode, WseError
from wse.transports.picows.frames import RSV1, masked_frame
from wse.transports.picows.handshake import Address, ClientHandshake, HandshakeError
from wse.transports.picows.link import CLOSE_TIMEOUT, PicowsLink, Turn, payload_of
from wse.transports.picows.protocol import websocket_protocol
from wse.transports.picows.sockets import open_socket
from wse.transports.tcp import bound_unsent

if TYPE_CHECKING:
    import ssl

    from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stubs leave it out

    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports.transport import Link, Receiver
    from wse.transports.deflate import Compression


_MASK_OURSELVES = 2048
"""Up to this many bytes a client masks in Python and joins the frames of a turn; above, picows masks and sends."""


async def connect(
    url: str,
    protocol: str,
    headers: Mapping[str, str],
    limits: Limits,
    open: Callable[[Link], Receiver],
    *,
    ssl: ssl.SSLContext | None = None,
    proxy: str | None = None,
    compression: Compression | None = None,
) -> None:
    """Open a WebSocket to a server; see `wse.core.ports.transport.Connector`.

    Redirects are not followed: they would take the headers and the identity to another host.

    Args:
        url: `ws:` or `wss:`, or with a Unix socket, `ws+unix:` or `wss+unix:`.
        protocol: The subprotocol to offer.
        headers: Headers of the HTTP request.
        limits: Limits on messages from the server.
        open: Makes the session of the link.
        ssl: For `wss:`, and for a proxy with `https:`; by default the system's certificates are trusted.
        proxy: The URL of an HTTP or SOCKS proxy.
        compression: Offered to the server; `None` for no compression.

    Raises:
        WseError: `WS_CLIENT_ERROR`, with the reason as its cause, and the HTTP `status` of a server that refuses.
    """
    loop = asyncio.get_running_loop()
    address = Address(url)
    wanted = {**headers, "Sec-WebSocket-Protocol": protocol}
    if compression is not None:
        wanted["Sec-WebSocket-Extensions"] = compression.offer()

    def make_websocket(make_listener: Callable[[object, object], picows.WSListener]) -> WSProtocol:
        return websocket_protocol(
            make_listener,
            limits.max_frame_size,
            authority=address.authority,
            resource=address.resource,
            headers=wanted,
        )

    def make_listener(extensions: str) -> PicowsClientLink:
        deflate = None
        if extensions:
            if compression is None:
                raise HandshakeError(f"the server answers with extensions that were not offered: {extensions}", 101)
            deflate = compression.accepted(extensions)
        return PicowsClientLink(Turn(loop), limits, open, deflate)

    handshake = ClientHandshake(make_websocket, make_listener, protocol)
    try:
        await open_socket(loop, handshake, address, ssl=ssl, proxy=proxy)
        await handshake.opened
    except (OSError, ValueError, ProxyError) as exc:
        details = {"url": url}
        status = getattr(exc, "status", None)
        if status is not None:
            details["status"] = status
        raise WseError(ErrorCode.WS_CLIENT_ERROR, details, str(exc) or None) from exc
    finally:
        handshake.give_up()


class PicowsClientLink(PicowsLink):
    """A link at a client, which masks what it sends (RFC 6455, 5.3)."""

    __slots__ = ()

    _close_limit = CLOSE_TIMEOUT  # `close` of a client promises to end by then

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        bound_unsent(transport.underlying_transport.get_extra_info("socket"))
        super().on_ws_connected(transport)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        super().on_ws_disconnected(transport)
        self._turn.loop.create_task(_retrieve_exception(transport))

    def write_utf8(self, data: bytes) -> None:
        self._send(data, 0x81)

    def write_shared(self, packed: Packed) -> None:
        self._send(*payload_of(packed))

    def _put(self, payload: bytes, first: int) -> None:
        if len(payload) <= _MASK_OURSELVES:
            self._queue(masked_frame(payload, first))
        else:
            self._flush()
            kind = picows.WSMsgType.TEXT if first & 0x0F == 1 else picows.WSMsgType.BINARY
            self._transport.send(kind, payload, rsv1=bool(first & RSV1))


async def _retrieve_exception(transport: picows.WSTransport) -> None:
    """Retrieve the exception that picows keeps, so that asyncio does not report it as never retrieved."""
    with contextlib.suppress(Exception):
        await transport.wait_disconnected()
