"""A TCP proxy that fails as networks do: it cuts, stalls, resets, half-closes, delays and splits."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of zero: closing sends RST instead of FIN."""


class _Side(asyncio.Protocol):
    """One of the two sockets of a connection through the proxy."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.other: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self.early = []  # bytes that came before the other side was connected
        self.late = deque()  # what is delayed on its way from this side
        self.ended = False

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.proxy.sides.add(self)
        if self.is_stalled:
            transport.pause_reading()

    @property
    def is_stalled(self):
        """Whether nothing is forwarded from this side."""
        return self.proxy.stalled_to_client

    def data_received(self, data):
        if self.other is None:
            self.early.append(data)
        elif self.proxy.delay or self.late:
            self.late.append(data)
            asyncio.get_running_loop().call_later(self.proxy.delay, self.pass_on)
        else:
            self.other.put(data)

    def pass_on(self):
        """Forward the oldest of what is delayed, in order also if the delay has changed meanwhile."""
        data = self.late.popleft()
        if data:
            self.other.put(data)
        else:
            self.other.put_eof()
        if self.ended and not self.late:
            self.other.transport.close()

    def put(self, data):
        if self.transport.is_closing():
            return
        if self.proxy.split:
            for at in range(len(data)):
                self.transport.write(data[at : at + 1])
        else:
            self.transport.write(data)

    def put_eof(self):
        if self.transport.can_write_eof():
            with suppress(OSError):
                self.transport.write_eof()

    def pause_writing(self):
        self.other.transport.pause_reading()

    def resume_writing(self):
        if not self.other.is_stalled:
            self.other.transport.resume_reading()

    def eof_received(self):
        if self.other is not None:
            if self.proxy.delay or self.late:
                self.data_received(b"")
            else:
                self.other.put_eof()
        return True  # the other direction stays open

    def connection_lost(self, exc):
        self.proxy.sides.discard(self)
        self.ended = True
        if self.other is not None and not self.late:
            self.other.transport.close()

    def reset(self):
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class _Front(_Side):
    """The client's side; it opens the other."""

    @property
    def is_stalled(self):
        return self.proxy.stalled_to_server

    def connection_made(self, transport):
        super().connection_made(transport)
        self.opening = asyncio.ensure_future(self.open())

    async def open(self):
        loop = asyncio.get_running_loop()
        try:
            _, back = await loop.create_connection(lambda: _Side(self.proxy), "127.0.0.1", self.proxy.to_port)
        except OSError:
            self.transport.abort()
            return
        self.other, back.other = back, self
        for data in self.early:
            self.data_received(data)
        self.early = []
        if self.transport.is_closing():
            back.transport.close()


class TcpProxy:
    """Forwards connections from `port` to `to_port`; the methods disturb them.

    Attributes:
        delay: Seconds by which all bytes are delayed, in both directions.
        split: Whether every byte is written separately.
        accepts: Whether new connections are forwarded; otherwise they are reset.
    """

    def __init__(self, to_port):
        self.to_port = to_port
        self.delay = 0.0
        self.split = False
        self.stalled_to_server = self.stalled_to_client = False
        self.accepts = True
        self.opened = 0
        self.sides: set[_Side] = set()

    async def __aenter__(self):
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc_info):
        self._server.close()
        await asyncio.gather(*(side.opening for side in self.fronts))
        for side in tuple(self.sides):
            side.transport.abort()
        while self.sides:
            await asyncio.sleep(0)
        await self._server.wait_closed()

    def _accept(self):
        self.opened += 1
        return _Front(self) if self.accepts else _Refusal()

    @property
    def fronts(self):
        """The client's sides of all connections."""
        return [side for side in self.sides if isinstance(side, _Front)]

    def cut(self):
        """End all connections in both directions, with FIN."""
        for side in tuple(self.sides):
            side.transport.abort()

    def reset(self):
        """End all connections in both directions, with RST."""
        for side in tuple(self.sides):
            side.reset()

    def lose(self):
        """Cut the connections of all clients; the server hears nothing of it."""
        for front in list(self.fronts):
            if front.other is not None:
                front.other.other = None
            front.transport.abort()

    def half_close(self, *, to_server):
        """End one direction of all connections: the server receives no more, or the client."""
        for front in self.fronts:
            (front.other if to_server else front).transport.write_eof()

    def stall(self, stalled=True, *, to_server=True, to_client=True):
        """Stop forwarding in these directions, without closing; or continue. What waits arrives afterwards."""
        self.stalled_to_server = stalled if to_server else self.stalled_to_server
        self.stalled_to_client = stalled if to_client else self.stalled_to_client
        for side in self.sides:
            if side.is_stalled:
                side.transport.pause_reading()
            else:
                side.transport.resume_reading()


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport):
        transport.abort()
