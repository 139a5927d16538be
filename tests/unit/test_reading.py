"""Sockets are read into buffers that are there already."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc

import pytest

from wse.brokers.redis.wire import Wire
from wse.reading import READ_SIZE, Reading
from wse.transports.picows.handshake import ClientHandshake
from wse.transports.picows.server import HttpConnection


class Log(Reading):
    def __init__(self):
        super().__init__(memoryview(bytearray(READ_SIZE)))
        self.received = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.received += data

    def connection_lost(self, exc):
        self.ended.set_result(None)


async def test_all_bytes_arrive_in_order_and_nothing_large_is_allocated_for_them():
    ours, theirs = socket.socketpair()
    data = bytes(range(256)) * 256
    with theirs:
        _, log = await asyncio.get_running_loop().create_connection(Log, sock=ours)
        tracemalloc.start()
        try:
            theirs.sendall(b"first")
            while not log.received:
                await asyncio.sleep(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        theirs.sendall(data)
    async with asyncio.timeout(30):
        await log.ended
    assert log.received == b"first" + data
    assert peak < 128 * 1024


@pytest.mark.parametrize("protocol", [HttpConnection, ClientHandshake, Wire])
def test_protocols_read_so(protocol):
    assert issubclass(protocol, Reading)
