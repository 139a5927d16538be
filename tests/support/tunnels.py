"""Small real proxies: HTTP (CONNECT) and SOCKS5, with or without a password."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import struct
from contextlib import asynccontextmanager, suppress


class Tunnels:
    """A proxy.

    Attributes:
        port: Its port.
        asked: The hosts and ports that clients have asked for.
    """

    port: int

    def __init__(self, handshake, login):
        self.asked = []
        self._handshake = handshake
        self._login = login
        self._tasks = set()

    @classmethod
    @asynccontextmanager
    async def running(cls, handshake, *, login=None, ssl=None):
        proxy = cls(handshake, login)
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, ssl=ssl)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            target = await self._handshake(reader, writer, self._login)
            if target is not None:
                self.asked.append(target)
                await self._relay(reader, writer, *await asyncio.open_connection(*target))
        writer.transport.abort()
        self._tasks.discard(task)

    async def _relay(self, reader, writer, far_reader, far_writer):
        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.transport.abort()

        pumps = [asyncio.ensure_future(pump(reader, far_writer)), asyncio.ensure_future(pump(far_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def connect_handshake(reader, writer, login):
    """RFC 9110, 9.3.6, and basic authentication."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    method, target, _ = lines[0].split(" ")
    assert method == "CONNECT"
    if login is not None:
        expected = base64.b64encode(":".join(login).encode()).decode()
        if f"Proxy-Authorization: Basic {expected}" not in lines:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return None
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    host, _, port = target.rpartition(":")
    return host, int(port)


async def socks5_handshake(reader, writer, login):
    """RFC 1928, and RFC 1929 for the password."""
    _, count = await reader.readexactly(2)
    offered = await reader.readexactly(count)
    method = 0 if login is None else 2
    if method not in offered:
        writer.write(b"\x05\xff")
        await writer.drain()
        return None
    writer.write(bytes((5, method)))
    if login is not None:
        _, size = await reader.readexactly(2)
        name = (await reader.readexactly(size)).decode()
        (size,) = await reader.readexactly(1)
        password = (await reader.readexactly(size)).decode()
        right = (name, password) == login
        writer.write(bytes((1, 0 if right else 1)))
        await writer.drain()
        if not right:
            return None
    _, _, _, kind = await reader.readexactly(4)
    if kind == 3:
        (size,) = await reader.readexactly(1)
        host = (await reader.readexactly(size)).decode()
    else:
        host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == 1 else 16)))
    (port,) = struct.unpack("!H", await reader.readexactly(2))
    writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    return host, port
