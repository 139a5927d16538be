"""Receivers that are slow but read: they get current messages, are not taken for dead, and hear all before a close."""

import asyncio
import base64
import json
import os
import socket
import struct
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from support.net import (
    CLOSE,
    JSON,
    PING,
    PONG,
    TEXT,
    TRANSPORTS,
    RawSocket,
    ServerLog,
    close_payload,
    frame,
    hi,
    make_server,
    soon,
    transports,
)
from wse import Heartbeat, Limits, Overflow

REACHABLE = ["picows", "uvicorn-socket", "aiohttp", "uvicorn-sansio", "uvicorn-wsproto"]
"""The transports that let us bound what waits in the kernel."""

WEB_SERVERS = ["uvicorn-socket", "aiohttp", "uvicorn-sansio", "uvicorn-wsproto", "hypercorn", "granian"]


class SlowReader:
    """A user that takes so many bytes a second, and whose own kernel buffers little."""

    def __init__(self, sock, rate):
        self.rate = rate
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._due = self._loop.time()

    @classmethod
    @asynccontextmanager
    async def user(cls, url, rate, identity="ann"):
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.setblocking(False)
            await loop.sock_connect(sock, (parts.hostname, parts.port))
            reader = cls(sock, rate=1e9)
            key = base64.b64encode(os.urandom(16)).decode()
            request = (
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {JSON}\r\n\r\n"
            )
            await reader.send(request.encode())
            while b"\r\n\r\n" not in reader._received:
                await reader._read()
            del reader._received[: reader._received.index(b"\r\n\r\n") + 4]
            await reader.send(frame(TEXT, hi(identity)))
            assert json.loads((await reader.frame())[1])[0] == "~wse:welcome"
            reader.rate = rate
            yield reader

    async def send(self, data):
        await self._loop.sock_sendall(self._socket, data)

    async def _read(self):
        """Take 20 ms worth of bytes, and no more until these have passed."""
        data = await self._loop.sock_recv(self._socket, max(1, min(65536, int(self.rate / 50))))
        if not data:
            raise EOFError
        self._received += data
        now = self._loop.time()
        self._due = max(self._due, now - 0.02) + len(data) / self.rate
        if self._due > now:
            await asyncio.sleep(self._due - now)  # the pace is what is tested

    async def _take(self, size):
        while len(self._received) < size:
            await self._read()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def frame(self):
        """The next frame: its opcode and payload."""
        first, size = await self._take(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._take(8))
        return first & 0x0F, await self._take(size)

    async def message(self):
        """The next message; pings are answered."""
        while True:
            opcode, payload = await self.frame()
            if opcode == TEXT:
                return json.loads(payload)
            assert opcode == PING, (opcode, payload)
            await self.send(frame(PONG, payload))

    async def closed(self):
        """The code and reason of the close frame, and how many bytes of messages came before."""
        size = 0
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                await self.send(frame(CLOSE, close_payload(1000)))
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode(), size
            if opcode == PING:
                await self.send(frame(PONG, payload))
            else:
                size += len(payload)


@asynccontextmanager
async def slow(transport, rate, **options):
    """A server, its connection to a slow reader, and the reader."""
    server = make_server(port=0 if transport == "picows" else None, **options)
    server.when.error(lambda err, conn: None)
    log = ServerLog(server)
    async with TRANSPORTS[transport](server) as place, SlowReader.user(place.url, rate) as reader:
        yield log, await log.conn("ann"), reader


# Lag.


async def produce(conn, kind):
    """200 kB of messages a second, as far as the producer does not wait."""
    n = 0
    while True:
        n += 1
        conn.send(kind, [time.monotonic(), n % 5, "x" * 1000], key=n % 5 if kind == "with keys" else None)
        if kind == "drained":
            await conn.drain()
        await asyncio.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("transport", REACHABLE)
async def test_a_receiver_of_20_kilobytes_a_second_gets_messages_a_few_seconds_late(transport):
    policies = {"latest": Overflow.LATEST, "with keys": Overflow.LATEST}
    server = make_server(port=0 if transport == "picows" else None, overflow=policies)
    server.when.error(lambda err, conn: None)
    log = ServerLog(server)

    async def lags(url, kind):
        async with SlowReader.user(url, 20_000, kind) as reader:
            producing = asyncio.ensure_future(produce(await log.conn(kind), kind))
            heard = []
            end = time.monotonic() + 7
            while time.monotonic() < end:
                _, (at, key, _), _ = await reader.message()
                heard.append((time.monotonic() - at, key))
            assert producing.cancel()
            return zip(*heard[-15:], strict=True)

    async with TRANSPORTS[transport](server) as place:
        results = await asyncio.gather(*(lags(place.url, kind) for kind in ("drained", *policies)))
    for late, keys in results:
        # 16 KiB in the kernel, as many in the transport, about as many at the receiver. Without bounds it is 7 s.
        assert max(late) < 4.5
        assert set(keys) == set(range(5))


@pytest.mark.parametrize("transport", transports(REACHABLE))
async def test_little_is_out_of_reach_of_newer_messages(transport):
    """A megabyte of prices, sent as fast as the socket takes them to a peer that reads nothing."""
    async with slow(transport, 1, overflow={"price": Overflow.LATEST}) as (_, conn, _):
        taken = 0
        while conn._session._writable:
            conn.send("price", "x" * 1000)
            taken += 1
            await conn._session.endpoint.scheduler.pause(0)
            assert taken < 200


# Life.


async def test_a_peer_that_takes_a_large_message_slowly_is_alive():
    async with slow("picows", 800_000, heartbeat=Heartbeat(interval=0.1, timeout=1)) as (log, conn, reader):
        conn.send("file", "x" * 1_500_000)
        kind, payload, _ = await reader.message()
        assert (kind, len(payload)) == ("file", 1_500_000)
        assert log.all("disconnected") == []


@pytest.mark.parametrize("busy", [False, True])
async def test_a_frozen_peer_is_found_however_much_is_sent_to_it(busy):
    server = make_server(heartbeat=Heartbeat(interval=0.2, timeout=0.2), limits=Limits(send_buffer=1 << 24))
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as peer:
        peer.writer.transport.pause_reading()
        conn = await log.conn("ann")
        if not busy:
            conn.send("file", "x" * 8_000_000)  # more than its kernel takes
        while not log.all("disconnected"):
            if busy:
                conn.send("news", "its kernel takes this at once")
            await asyncio.sleep(0.01)
        assert log.all("disconnected")[0][1] == 1006


# Close.


@pytest.mark.parametrize("transport", transports(["picows", *WEB_SERVERS]))
async def test_a_slow_reader_hears_all_messages_before_the_close(transport, monkeypatch):
    for module in ("awaited", "picows.link"):
        monkeypatch.setattr(f"wse.transports.{module}.CLOSE_TIMEOUT", 1.2)
    async with slow(transport, 400_000, limits=Limits(send_buffer=2_000_000)) as (_, conn, reader):
        for _ in range(100):
            conn.send("report", "x" * 10_000)
        conn.drop("done")
        code, reason, size = await reader.closed()
        assert (code, reason) == (1000, "done")
        assert size > 1_000_000


@pytest.mark.parametrize("transport", ["picows", "aiohttp"])
async def test_a_reader_that_is_too_slow_is_cut_in_the_end(transport, monkeypatch):
    monkeypatch.setattr("wse.transports.picows.link.CLOSE_TIMEOUT", 1.0)
    monkeypatch.setattr("wse.transports.awaited.CLOSE_TIMEOUT", 1.0)
    monkeypatch.setattr("wse.transports.picows.link.PicowsLink._close_limit", 2.0)
    monkeypatch.setattr("wse.transports.awaited.CLOSE_LIMIT", 2.0)
    async with slow(transport, 100_000, limits=Limits(send_buffer=2_000_000)) as (_, conn, reader):
        for _ in range(100):
            conn.send("report", "x" * 10_000)
        begin = time.monotonic()
        conn.drop("done")
        with pytest.raises((EOFError, ConnectionError)):
            await soon(reader.closed())
        assert time.monotonic() - begin > 1.8


@pytest.mark.parametrize("when", ["with the server", "before"])
@pytest.mark.parametrize("transport", ["picows", "aiohttp", "uvicorn-sansio"])
async def test_a_server_that_ends_waits_no_longer_for_a_slow_reader(transport, when, monkeypatch):
    for module in ("awaited", "picows.link"):
        monkeypatch.setattr(f"wse.transports.{module}.CLOSE_TIMEOUT", 0.3)
    async with slow(transport, 100_000, limits=Limits(send_buffer=2_000_000)) as (log, conn, reader):
        for _ in range(100):
            conn.send("report", "x" * 10_000)
        reading = asyncio.ensure_future(reader.closed())
        if when == "before":
            conn.drop("done")
            await asyncio.sleep(0.5)  # its time, were it not reading
        begin = time.monotonic()
        await soon(conn.server.close())
        assert time.monotonic() - begin < 5  # it would take all of it in ten
        assert log.all("disconnected")[0][1:] == ((1000, "done") if when == "before" else (1012, "wse.by-server"))
        await asyncio.wait((reading,))
        assert isinstance(reading.exception(), (EOFError, ConnectionError))
