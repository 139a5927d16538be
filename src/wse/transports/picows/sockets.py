"""Opens the socket of a client: to a host, to a Unix socket, or through a proxy."""

from __future__ import annotations

import asyncio
import ssl as tls
from functools import partial
from typing import TYPE_CHECKING

import aiofastnet
from picows.common import WSHost, WSPort
from picows.proxy import ConnectedTransport, connect_through_optional_proxy
from picows.url import WSParsedURL, parse_url

from wse.transports.picows.tls import tls_loop
from wse.transports.picows.unix import check_available

if TYPE_CHECKING:
    from wse.transports.picows.handshake import Address


async def open_socket(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    address: Address,
    *,
    ssl: tls.SSLContext | None,
    proxy: str | None,
) -> None:
    """Open a connection to an address, and give it to a protocol.

    Args:
        loop: The event loop.
        protocol: The protocol.
        address: The address.
        ssl: For TLS, also to a proxy; by default the system's certificates are trusted.
        proxy: The URL of an HTTP or SOCKS proxy.

    Raises:
        OSError, ValueError, python_socks.ProxyError: It cannot be opened.
    """
    context = None
    if address.secure:
        loop = tls_loop(loop)
        context = ssl or tls.create_default_context()
    server_hostname = address.host if address.secure else None
    if address.unix is not None:
        check_available()
        await aiofastnet.create_unix_connection(
            loop, lambda: protocol, address.unix, ssl=context, server_hostname=server_hostname
        )
    elif proxy is None:
        await aiofastnet.create_connection(loop, lambda: protocol, address.host, address.port, ssl=context)
    else:
        await _open_through(proxy, loop, protocol, address, context, ssl)


async def _open_through(
    proxy: str,
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    address: Address,
    context: tls.SSLContext | None,
    proxy_context: tls.SSLContext | None,
) -> None:
    through = parse_url(proxy, check_scheme=False)
    connected = await connect_through_optional_proxy(
        loop,
        WSParsedURL("", "ws", address.secure, "", WSHost(address.host), WSPort(address.port), "", ""),
        through,
        None,
        context,
        proxy_context if through.scheme == "https" else None,
        {},
        partial(aiofastnet.create_connection, loop),
    )
    server_hostname = address.host if address.secure else None
    if not isinstance(connected, ConnectedTransport):
        await aiofastnet.create_connection(
            loop, lambda: protocol, sock=connected.sock, ssl=context, server_hostname=server_hostname
        )
        return
    transport = connected.transport
    if context is not None:
        try:
            transport = await aiofastnet.start_tls(
                loop, transport, transport.get_protocol(), context, server_hostname=server_hostname
            )
        except BaseException:
            transport.abort()
            raise
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
