"""The socket of a client of nats-py, shared with WSE: its own messages do not pass through the library.

nats-py reads in one task, hands each message to another, and writes in a third: with one message in flight, this takes
half of the time of a hop. Here, the messages of WSE's subscriptions go from the socket straight to a callback, and what
is sent is written at once. nats-py does the rest on the same socket: it connects, logs in, and answers pings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from nats.aio.transport import Transport

from wse.brokers.reconnecting import cut
from wse.reading import READ_SIZE, Reading

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from urllib.parse import ParseResult

_TOPIC = b"t"
"""Starts the ids of subscriptions to topics. Those of nats-py's own subscriptions are numbers."""


class Message(NamedTuple):
    """A message of one of `Wire.listeners`."""

    subject: str
    reply: str
    header: bytes
    data: bytes

    def field(self, name: bytes) -> bytes:
        """A field of the header; empty if there is none."""
        _, _, rest = self.header.partition(b"\r\n" + name + b": ")
        return rest.partition(b"\r\n")[0]


class Wire(Transport):
    """A connection over TCP, with TLS if the server wants that.

    Args:
        heard: Called with subject and data of each message of a subscription whose id starts with `t`.
        drained: Called when `is_full` has become false.

    Attributes:
        is_full: Whether so much waits for the socket that more should wait elsewhere.
        listeners: Called with the messages of other subscriptions, by their ids.
    """

    def __init__(self, heard: Callable[[bytes, bytes], None], drained: Callable[[], None]) -> None:
        self.heard = heard
        self.drained = drained
        self.is_full = False
        self.listeners: dict[bytes, Callable[[Message], None]] = {}
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    def __bool__(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True  # otherwise nats-py makes a transport of its own

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        loop, host, port = asyncio.get_running_loop(), uri.hostname or "", uri.port or 4222
        self._reader = asyncio.StreamReader(limit=buffer_size)
        protocol = Parser(self, self._reader)
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, host, port)
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        assert self._writer is not None
        host = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            await self._writer.start_tls(ssl_context, server_hostname=host)

    def write(self, payload: bytes) -> None:
        assert self._writer is not None
        self._writer.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        self.write(b"".join(payload))

    async def read(self, buffer_size: int) -> bytes:
        return await self._reader.read(buffer_size)

    async def readline(self) -> bytes:
        return await self._reader.readline()

    async def drain(self) -> None:
        assert self._writer is not None
        await self._writer.drain()

    async def wait_closed(self) -> None:
        if self._writer is not None:
            await self._writer.wait_closed()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def abort(self) -> None:
        """Close the socket, whatever waits for it."""
        if self._writer is not None:
            cut(self._writer.transport)

    def at_eof(self) -> bool:
        return self._reader.at_eof()


class Parser(asyncio.StreamReaderProtocol, Reading):
    """Takes the messages of WSE's subscriptions out of what the server sends; nats-py reads the rest from the stream.

    The protocol consists of lines. A message is a line and then as many bytes as its last field says:

        MSG subject id [reply] size
        HMSG subject id [reply] header_size size
    """

    def __init__(self, wire: Wire, reader: asyncio.StreamReader) -> None:
        asyncio.StreamReaderProtocol.__init__(self, reader)
        Reading.__init__(self, memoryview(bytearray(4 * READ_SIZE)))
        self._wire = wire
        self._rest = bytearray()  # the beginning of a line or message
        self._needed = 0  # the bytes that it has in all, as far as is known

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        wire = self._wire
        passed = position = self._needed = 0  # up to `passed`, everything has been handed on
        while (end := data.find(b"\r\n", position)) >= 0:
            after = end + 2
            if data.startswith((b"MSG ", b"HMSG "), position):
                fields = data[position:end].split()
                start, after = after, after + int(fields[-1]) + 2
                if after > len(data):
                    self._needed = after - position
                    break
                subscription = fields[2]
                is_topic = subscription.startswith(_TOPIC)
                if is_topic or not subscription.isdigit():
                    if passed < position:
                        super().data_received(data[passed:position])
                    passed = after
                    body = start + int(fields[-2]) if fields[0] == b"HMSG" else start
                    if is_topic:
                        wire.heard(fields[1], data[body : after - 2])
                    elif subscription in wire.listeners:  # else it has just ended
                        reply = fields[3].decode() if len(fields) > (4 if body == start else 5) else ""
                        message = Message(fields[1].decode(), reply, data[start:body], data[body : after - 2])
                        wire.listeners[subscription](message)
            position = after
        if passed < position:
            super().data_received(data[passed:position])
        self._rest += data[position:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.is_full = True  # what comes now would be lost
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wire.is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wire.is_full = False
        self._wire.drained()
