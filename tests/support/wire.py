"""A raw WebSocket peer for either side, and scripts of the frames that it sends and must receive."""

import asyncio
import base64
import hashlib
import os
import socket
import struct
import zlib
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from support.echo import EchoServer, connect_echo
from support.net import CLOSE, CONTINUATION, PING, PONG, soon

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MASKED = 0x80
BYTEWISE_MAX = 64
"""Bytes of payload up to which a script is also sent byte by byte."""


def xor(payload, key):
    long_key = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(long_key)).to_bytes(len(payload))


@dataclass(frozen=True)
class Send:
    """A frame that the peer sends, legal or not.

    `form` is the number of bytes of its extended length: 0, 2 or 8, by default the fewest; `size` is what they say.
    `wrong_mask` leaves away the mask of a client's frame, or masks a server's.
    """

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    form: int | None = None
    size: int | None = None
    wrong_mask: bool = False

    def encode(self, *, masks):
        size = len(self.payload) if self.size is None else self.size
        form = self.form if self.form is not None else 0 if size < 126 else 2 if size < 65536 else 8
        bit = MASKED if masks is not self.wrong_mask else 0
        head = bytes([self.fin << 7 | self.rsv << 4 | self.opcode])
        head += {
            0: lambda: bytes([bit | size]),
            2: lambda: struct.pack("!BH", bit | 126, size),
            8: lambda: struct.pack("!BQ", bit | 127, size),
        }[form]()
        if not bit:
            return head + self.payload
        key = os.urandom(4)
        return head + key + xor(self.payload, key)


@dataclass(frozen=True)
class Got:
    """A frame that must come back: whole, with the shortest form of its length, and masked if a client sends it."""

    opcode: int
    payload: bytes = b""


@dataclass(frozen=True)
class Failed:
    """The connection must be failed: a close frame with this code, and nothing after it."""

    code: int


@dataclass(frozen=True)
class Closed:
    """The closing handshake must be completed with this code and reason; without a code, by an empty frame."""

    code: int | None
    reason: bytes = b""


def echoed(opcode, payload):
    return [Send(opcode, payload), Got(opcode, payload)]


def fragments(opcode, *parts):
    """A message in these fragments."""
    return [
        Send(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    ]


def begun(opcode, *parts):
    """The same without an end."""
    return fragments(opcode, *parts, b"")[:-1]


def short(script):
    return sum(len(step.payload) for step in script if isinstance(step, Send)) <= BYTEWISE_MAX


def each_byte(data):
    return [data[i : i + 1] for i in range(len(data))]


class WirePeer:
    """The other end of a transport that echoes.

    Args:
        echo: Returns what the transport tells.
        masks: Whether this end is the client.
        deflates: Whether the ends have agreed on compression.
    """

    def __init__(self, reader, writer, echo, *, masks, deflates):
        self.reader = reader
        self.writer = writer
        self.echo = echo
        self.masks = masks
        self._inflater = zlib.decompressobj(-15) if deflates else None  # good for both: with takeover and without
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, frames, *, bytewise, until_answered=False):
        data = b"".join(frame.encode(masks=self.masks) for frame in frames)
        step = 1 if bytewise else len(data)
        with suppress(ConnectionError):  # the connection may fail before the last byte
            for start in range(0, len(data), step):
                self.writer.write(data[start : start + step])
                await self.writer.drain()
                await asyncio.sleep(0)  # lets the other end read
                if until_answered and self.reader._buffer:
                    return  # it fails the connection early, and unread bytes would reset it

    async def _read(self, size):
        return await soon(self.reader.readexactly(size))

    async def frame(self):
        first, second = await self._read(2)
        compressed = first & 0x40
        assert first & 0xF0 == 0x80 | compressed, "fragmented, or a reserved bit"
        assert bool(second & MASKED) is not self.masks, "only clients mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self._read(2))
            assert size > 125
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._read(8))
            assert size > 65535
        key = await self._read(4) if second & MASKED else bytes(4)
        payload = xor(await self._read(size), key)
        if compressed:
            assert self._inflater is not None, "compression was not agreed on"
            payload = self._inflater.decompress(payload + b"\x00\x00\xff\xff")
        return first & 0x0F, payload

    async def nothing_more(self):
        """Wait for the last byte of the other end."""
        with suppress(ConnectionError):  # unread bytes reset the connection
            assert await soon(self.reader.read()) == b""

    async def play(self, script, *, bytewise=False):
        """Send and expect in the script's order; frames in a row go in one segment, or in one for every byte."""
        frames = []
        for step in script:
            if isinstance(step, Send):
                frames.append(step)
                last = step
                continue
            if frames:
                await self.send(frames, bytewise=bytewise, until_answered=isinstance(step, Failed))
            frames = []
            if isinstance(step, Got):
                assert await self.frame() == (step.opcode, step.payload)
            elif isinstance(step, Failed):
                await self.failed(step.code, answer=last.opcode != CLOSE or bool(last.rsv))
            else:
                await self.closed(step.code, step.reason)
        if not isinstance(script[-1], (Failed, Closed)):
            await self.still_open()

    async def still_open(self):
        await self.play(
            [Send(PING, b"still there?"), Got(PONG, b"still there?"), Send(CLOSE, code(1000)), Closed(1000)]
        )
        assert self.echo().violations == []

    async def failed(self, expected, *, answer):
        opcode, payload = await self.frame()
        assert (opcode, payload[:2]) == (CLOSE, code(expected))
        assert 0 < len(payload[2:].decode()) <= 123, "says what was wrong"
        if answer:
            await self.send([Send(CLOSE, code(expected))], bytewise=False)
        if not self.masks:
            self.writer.close()  # the server closes the socket first (RFC 6455, 7.1.1)
        await self.nothing_more()
        await soon(self.echo().end)
        assert self.echo().violations == [expected]

    async def closed(self, expected, reason):
        opcode, payload = await self.frame()
        assert (opcode, payload) == (CLOSE, (b"" if expected is None else code(expected)) + reason)
        if not self.masks:
            self.writer.close()
        await self.nothing_more()
        await soon(self.echo().end)
        assert self.echo().violations == []


def code(number):
    return struct.pack("!H", number)


def lines(*rows):
    return "".join(f"{row}\r\n" for row in (*rows, "")).encode()


@asynccontextmanager
async def client_of_our_server(limits, compression, extensions):
    """A raw client, for testing the server's transport."""
    server = EchoServer(limits, compression)
    listening = await server.listen()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        request = ["GET / HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
        request += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}"]
        if extensions:
            request.append(f"Sec-WebSocket-Extensions: {extensions}")
        writer.write(lines(*request))
        answer = await soon(reader.readuntil(b"\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert (b"permessage-deflate" in answer) is bool(extensions)
        try:
            yield WirePeer(reader, writer, lambda: server.echoes[0], masks=True, deflates=bool(extensions))
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()
    finally:
        listening.close()
        await listening.wait_closed()


@asynccontextmanager
async def server_of_our_client(limits, compression, extensions):
    """A raw server, for testing the client's transport."""
    accepted = asyncio.get_running_loop().create_future()

    async def accept(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        (key,) = (row[19:] for row in request.split(b"\r\n") if row.lower().startswith(b"sec-websocket-key: "))
        digest = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        answer = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
        answer.append(f"Sec-WebSocket-Accept: {digest}")
        if extensions:
            answer.append(f"Sec-WebSocket-Extensions: {extensions}")
        writer.write(lines(*answer))
        accepted.set_result((reader, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        echo = await soon(connect_echo(f"ws://127.0.0.1:{port}", limits, compression))
        reader, writer = await soon(accepted)
        try:
            yield WirePeer(reader, writer, lambda: echo, masks=False, deflates=bool(extensions))
        finally:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()
            await soon(echo.end)


SIDES = {"server": client_of_our_server, "client": server_of_our_client}
"""By what is under test: context managers that yield a `WirePeer` for limits, compression and agreed extensions."""
