"""The other ends of connections in tests: transports that run a server, raw peers, and logs.

A `Transport` runs a `WseServer` and reaches it in two ways: with a `WseClient`, and with a `Peer`, which knows nothing
of WSE and so shows the messages as they are sent. An `Exchange` is the reverse: `WseClient`s connect to it, and the
test plays the server. To put another transport under the contract suite, add it to `TRANSPORTS` (or `EXCHANGES`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import serve as ws_serve
from websockets.exceptions import ConnectionClosed

from support import frameworks
from wse import ErrorCode, Limits, WseClient, WseError, WseJSON, WseServer
from wse.testing import URL, MemoryConnector
from wse.transports.memory import MemoryLink
from wse.transports.request import HttpRequest

JSON = "wse-default-json"
OFFERS = {"auth": {}, "limits": {"message_size": 1024 * 1024}, "calls": {"timeout": 20.0}, "rooms": {}}
"""The extensions that every client offers."""
TIMEOUT = 30.0
"""Seconds until a test that waits for something gives up. Nothing waits that long, even on a machine that is busy."""


async def soon(awaitable):
    """Wait for the result, which must come."""
    async with asyncio.timeout(TIMEOUT):
        return await awaitable


def hi(identity="ann", meta=None):
    return json.dumps(["~wse:hi", {"identity": identity, "meta": meta or {}}, None])


def accept_all(auth):
    """An identify handler: the identity is the user's id, `anonymous` if there is none."""
    auth.accept(auth.identity or "anonymous", {"hello": auth.identity})


class Log:
    """A log of events, in order; a test can wait for an entry."""

    def __init__(self):
        self.entries = []
        self._waiting = []

    def add(self, *entry):
        self.entries.append(entry)
        for start, future in self._waiting:
            if entry[: len(start)] == start and not future.done():
                future.set_result(entry)

    def adder(self, *start):
        """A handler, for any arguments, that adds them to the log."""
        return lambda *args: self.add(*start, *args)

    async def until(self, *start):
        """The first entry that begins like this, which may be yet to come."""
        for entry in self.entries:
            if entry[: len(start)] == start:
                return entry
        future = asyncio.get_running_loop().create_future()
        item = (start, future)
        self._waiting.append(item)
        try:
            return await soon(future)
        except TimeoutError:
            raise AssertionError(f"{start} did not happen; what did: {self.entries}") from None
        finally:
            self._waiting.remove(item)

    def all(self, name):
        return [entry[1:] for entry in self.entries if entry[0] == name]

    @property
    def names(self):
        return [entry[0] for entry in self.entries]


class ServerLog(Log):
    """Log all events of a server."""

    def __init__(self, server):
        super().__init__()
        when = server.when
        when.joined(lambda identity, meta: self.add("joined", identity.cid, meta))
        when.left(lambda identity, code, reason: self.add("left", identity.cid, code, reason))
        when.connected(lambda conn: self.add("connected", conn.cid, conn))
        when.disconnected(lambda conn, code, reason: self.add("disconnected", conn.cid, code, reason))
        when.detached(lambda conn, code, reason: self.add("detached", conn.cid, code, reason))
        when.resumed(lambda conn: self.add("resumed", conn.cid))
        when.ignored(lambda conn, kind, payload: self.add("ignored", conn.cid, kind, payload))
        when.error(lambda err, conn: self.add("error", err, conn))

    async def error(self):
        return (await self.until("error"))[1]

    async def conn(self, cid):
        return (await self.until("connected", cid))[2]


class ClientLog(Log):
    """Log all events of a client."""

    def __init__(self, client):
        super().__init__()
        when = client.when
        when.connected(self.adder("connected"))
        when.ready(self.adder("ready"))
        when.closed(self.adder("closed"))
        when.error(self.adder("error"))
        when.ignored(self.adder("ignored"))
        when.updated(lambda status: self.add("updated", status, client.status))

    @property
    def walk(self):
        return [status.value for status, _ in self.all("updated")]


class Peer(ABC):
    """One end of a WebSocket that sends and receives raw messages."""

    subprotocol: str | None

    @abstractmethod
    async def send(self, data): ...

    @abstractmethod
    async def send_fragments(self, *parts):
        """One message in several frames, where the transport has frames."""

    @abstractmethod
    async def receive(self):
        """The next message, or a `ConnectionError` when there will be none."""

    @abstractmethod
    async def close(self, code=1000, reason=""): ...

    @abstractmethod
    def vanish(self):
        """Drop the connection without a close frame."""

    @abstractmethod
    async def closed(self):
        """The code and reason with which the other side closed; earlier messages are discarded."""

    async def say(self, type, payload=None, stamp=None):
        await self.send(json.dumps([type, payload, stamp]))

    async def hear(self):
        return json.loads(await self.receive())

    async def login(self, identity="ann", meta=None):
        """Act as a client: send hi and return the welcome's payload."""
        await self.send(hi(identity, meta))
        kind, welcome, stamp = await self.hear()
        assert (kind, stamp) == ("~wse:welcome", None)
        return welcome


class SocketPeer(Peer):
    """A peer on the `websockets` library, an independent implementation of RFC 6455."""

    def __init__(self, socket):
        self.socket = socket
        self.subprotocol = socket.subprotocol

    async def send(self, data):
        await self.socket.send(data)

    async def send_fragments(self, *parts):
        await self.socket.send(list(parts))

    async def receive(self):
        try:
            return await soon(self.socket.recv())
        except ConnectionClosed as exc:
            raise ConnectionError(str(exc)) from exc

    async def close(self, code=1000, reason=""):
        await soon(self.socket.close(code, reason))

    def vanish(self):
        self.socket.transport.abort()

    async def closed(self):
        await soon(self.socket.wait_closed())
        return self.socket.close_code, self.socket.close_reason


class MemoryPeer(Peer):
    """One end of a memory link, in the place of a session."""

    def __init__(self, link, subprotocol):
        self.link = link
        link.session = self
        self.subprotocol = subprotocol
        self._inbox = asyncio.Queue()
        self._closed = asyncio.get_running_loop().create_future()

    async def send(self, data):
        self.link.write(data)

    async def send_fragments(self, *parts):
        self.link.write(parts[0][:0].join(parts))

    async def receive_or_none(self):
        getter = asyncio.ensure_future(self._inbox.get())
        await asyncio.wait([getter, self._closed], return_when=asyncio.FIRST_COMPLETED)
        if getter.done():
            return getter.result()
        getter.cancel()
        return None

    async def receive(self):
        data = await soon(self.receive_or_none())
        if data is None:
            raise ConnectionError(f"closed {self._closed.result()}")
        return data

    async def close(self, code=1000, reason=""):
        self.link.close(code, reason)
        await soon(asyncio.shield(self._closed))

    def vanish(self):
        self.link.abort()

    async def closed(self):
        return await soon(asyncio.shield(self._closed))

    # Called by the link.

    def receive_message(self, data):
        self._inbox.put_nowait(data)

    def closed_by_link(self, code, reason):
        self._closed.set_result((code, reason))


class _PeerSession:
    """The session that a memory link sees: it leads to a `MemoryPeer`."""

    def __init__(self, peer):
        self._peer = peer

    def receive(self, data):
        self._peer.receive_message(data)

    def closed(self, code, reason):
        self._peer.closed_by_link(code, reason)

    def violated(self, code, problem):
        self._peer.link.close(code, problem)


def memory_peer(link, subprotocol):
    peer = MemoryPeer(link, subprotocol)
    link.session = _PeerSession(peer)
    return peer


# A server under test.


class Place(ABC):
    """The address of a running server, and ways to connect to it."""

    has_frames = True
    """Messages travel in frames over a socket: fragments, TCP and its backpressure exist."""

    lets_go = True
    """A peer that does not read is cut after our own CLOSE_TIMEOUT."""

    @staticmethod
    def hears_close(code, reason):
        """What the application hears when a client has closed with this code and reason."""
        return code, reason

    def __init__(self, server, stack):
        self.server = server
        self._stack = stack

    @abstractmethod
    def _make_client(self, **options): ...

    @abstractmethod
    async def _make_peer(self, offer, target): ...

    async def empty(self):
        """Wait until the server has no connections."""
        async with asyncio.timeout(TIMEOUT):
            while self.server._hub.sockets.open:
                await asyncio.sleep(0)

    def client(self, **options):
        """A client that has not connected yet; it is closed with the place."""
        client = self._make_client(**options)
        self._stack.push_async_callback(client.close)
        return client

    async def connect(self, identity="ann", **options):
        """A connected client."""
        client = self.client(identity=identity, **options)
        await soon(client.connect())
        return client

    async def peer(self, *offer, target="/"):
        """A raw peer that offers these subprotocols, by default the JSON one."""
        peer = await self._make_peer(offer or (JSON,), target)
        self._stack.callback(peer.vanish)
        return peer

    async def unnamed_peer(self):
        """A raw peer that offers no subprotocol."""
        peer = await self._make_peer((), "/")
        self._stack.callback(peer.vanish)
        return peer


class SocketPlace(Place):
    def __init__(self, server, stack, url):
        super().__init__(server, stack)
        self.url = url

    def _make_client(self, **options):
        return WseClient(self.url, **options)

    async def _make_peer(self, offer, target):
        socket = await ws_connect(
            self.url + target,
            subprotocols=list(offer) or None,
            compression=None,
            ping_interval=None,
            max_size=None,
            max_queue=None,
            proxy=None,
        )
        return SocketPeer(socket)


class MemoryPlace(Place):
    has_frames = False

    def _make_client(self, **options):
        return WseClient(URL, connector=MemoryConnector(self.server), **options)

    async def _make_peer(self, offer, target):
        server = self.server
        await server._lifecycle.attach()
        ours, theirs = MemoryLink.pair(Limits(message_size=1 << 30), server._acceptor.limits)
        protocol = server._acceptor.select(offer)
        peer = memory_peer(ours, protocol and protocol.name)
        theirs.session = server._acceptor.open(theirs, HttpRequest(target, {}, ""), protocol)
        return peer


@asynccontextmanager
async def on_picows(server):
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.close)
        yield SocketPlace(server, stack, server.url)


@asynccontextmanager
async def in_memory(server):
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.close)
        yield MemoryPlace(server, stack)


def mounted(serve, handler, **differences):
    """A transport inside a web server of tests/support/frameworks.py, with what that server does differently."""

    @asynccontextmanager
    async def on_web_server(server):
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serve(handler(server)))
            stack.push_async_callback(server.close)
            place = SocketPlace(server, stack, f"ws://127.0.0.1:{port}")
            vars(place).update(differences)
            yield place

    return on_web_server


def asgi(server):
    return server.asgi


TRANSPORTS = {
    "picows": on_picows,
    "memory": in_memory,
    "uvicorn-socket": mounted(partial(frameworks.uvicorn_asgi, ws="wse.uvicorn:WebSocketProtocol"), asgi),
    "uvicorn-sansio": mounted(partial(frameworks.uvicorn_asgi, ws="websockets-sansio"), asgi),
    "uvicorn-wsproto": mounted(partial(frameworks.uvicorn_asgi, ws="wsproto"), asgi),
    # websockets' legacy API, which uvicorn deprecates, gives every peer its own 10 seconds, cancelled or not.
    "uvicorn-legacy": mounted(partial(frameworks.uvicorn_asgi, ws="websockets"), asgi, lets_go=False),
    # hypercorn 0.18 never passes on what the client's close frame says (protocol/ws_stream.py, StreamClosed).
    "hypercorn": mounted(frameworks.hypercorn_asgi, asgi, hears_close=lambda code, reason: (1006, "")),
    # granian 2.8 passes on the code of the client's close frame, but not the reason.
    "granian": mounted(frameworks.granian_asgi, asgi, hears_close=lambda code, reason: (code, "")),
    "aiohttp": mounted(frameworks.aiohttp_web, lambda server: server.aiohttp),
}
"""The transports of a server: context managers that run it somewhere and yield its `Place`."""

REPEATING = {"uvicorn-wsproto", "uvicorn-legacy", "aiohttp", "hypercorn"}
"""Those that repeat what another one shows: the same server with another library that parses frames, our own link on
another server's socket, or one more ASGI server."""


def transports(names=tuple(TRANSPORTS)):
    """Parameters of tests that run on these transports; on those that repeat others, in `make test-slow`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in REPEATING else name for name in names]


def make_server(identify=accept_all, **options):
    """A server that may listen on any free port."""
    options.setdefault("port", 0)
    return WseServer(identify, **options)


# A client under test.


class Exchange(ABC):
    """A place to which clients connect, and where the test plays the server."""

    has_frames = True

    def __init__(self, stack):
        self._stack = stack
        self._peers = asyncio.Queue()
        self.urls = []

    @abstractmethod
    def _make_client(self, **options): ...

    def client(self, **options):
        client = self._make_client(**options)
        self._stack.push_async_callback(client.close)
        return client

    async def peer(self):
        """The server's end of the next connection, whose hi has not been received yet."""
        peer = await soon(self._peers.get())
        self._stack.callback(peer.vanish)
        return peer

    async def welcomed(self, client, welcome=None):
        """Let the client connect, and return the server's end."""
        connecting = asyncio.ensure_future(client.connect())
        peer = await self.peer()
        assert (await peer.hear())[0] == "~wse:hi"
        await peer.say("~wse:welcome", welcome)
        assert await soon(connecting) == welcome
        return peer


class SocketExchange(Exchange):
    url: str

    def _make_client(self, **options):
        return WseClient(self.url, **options)

    async def handle(self, socket):
        self._peers.put_nowait(SocketPeer(socket))
        await socket.wait_closed()


class MemoryExchange(Exchange):
    """Its connector can simulate a missing server: `down` is how many more times."""

    has_frames = False

    def __init__(self, stack):
        super().__init__(stack)
        self.down = 0
        self.headers = None

    def _make_client(self, **options):
        return WseClient(options.pop("url", URL), connector=self.connector, **options)

    async def connector(self, url, protocol, headers, limits, open):
        self.urls.append(url)
        self.headers = headers
        if self.down:
            self.down -= 1
            raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": url}, "nobody is there")
        ours, theirs = MemoryLink.pair(limits, Limits(message_size=1 << 30))
        peer = memory_peer(theirs, protocol)
        ours.session = open(ours)
        self._peers.put_nowait(peer)


@asynccontextmanager
async def socket_exchange():
    async with AsyncExitStack() as stack:
        exchange = SocketExchange(stack)
        server = await stack.enter_async_context(
            ws_serve(
                exchange.handle,
                "127.0.0.1",
                0,
                subprotocols=[JSON, "wse-msgpack", "tiny"],
                compression=None,
                ping_interval=None,
                max_size=None,
                close_timeout=1,
            )
        )
        exchange.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        clients = await stack.enter_async_context(AsyncExitStack())
        exchange._stack = clients
        yield exchange


@asynccontextmanager
async def memory_exchange():
    async with AsyncExitStack() as stack:
        yield MemoryExchange(stack)


EXCHANGES = {
    "picows": socket_exchange,
    "memory": memory_exchange,
}
"""The transports of a client: context managers that yield an `Exchange`."""


# Bytes.

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=True):
    """A frame of RFC 6455 as bytes, legal or not."""
    payload = payload.encode() if isinstance(payload, str) else payload
    size = len(payload)
    bit = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def text(type, payload=None, stamp=None):
    """A masked frame with one JSON message."""
    return frame(TEXT, json.dumps([type, payload, stamp]))


def close_payload(code, reason=""):
    return struct.pack("!H", code) + reason.encode()


class RawSocket:
    """A TCP connection to a server, for bytes that a client would not send."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url):
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def request(self, target="/", method="GET", **headers):
        """Send an HTTP request (`_` in a header's name stands for `-`); the status, headers and body of the answer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await soon(self.reader.readuntil(b"\r\n\r\n"))).decode()
        first, *rest = head.strip().split("\r\n")
        answered = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = await soon(self.reader.readexactly(int(answered.get("content-length", 0))))
        return int(first.split()[1]), answered, body

    async def upgrade(self, target="/", *, protocol=JSON, connection="Upgrade", **headers):
        """Ask for a WebSocket."""
        return await self.request(
            target,
            Connection=connection,
            Upgrade="websocket",
            Sec_WebSocket_Version="13",
            Sec_WebSocket_Key=base64.b64encode(os.urandom(16)).decode(),
            Sec_WebSocket_Protocol=protocol,
            **headers,
        )

    def send(self, *frames):
        """Send everything in one segment, as far as possible."""
        self.writer.write(b"".join(frames))

    async def frame(self):
        """The next frame: its opcode and payload."""
        first, second = await soon(self.reader.readexactly(2))
        assert first & 0x80, "the server fragments"
        assert not second & 0x80, "the server masks"
        size = second
        if size == 126:
            (size,) = struct.unpack("!H", await soon(self.reader.readexactly(2)))
        elif size == 127:
            (size,) = struct.unpack("!Q", await soon(self.reader.readexactly(8)))
        return first & 0x0F, await soon(self.reader.readexactly(size))

    async def hear(self):
        opcode, payload = await self.frame()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    async def closed(self):
        """The code and reason of the server's close frame, which comes next."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        return (struct.unpack("!H", payload[:2])[0], payload[2:].decode()) if payload else (1005, "")

    async def eof(self):
        """Wait until the server has closed the socket."""
        with suppress(ConnectionError):
            rest = await soon(self.reader.read())
            assert rest == b"", rest

    @classmethod
    @asynccontextmanager
    async def user(cls, url, identity="ann"):
        """A socket of a user who has been welcomed."""
        async with await cls.open(url) as socket:
            status, _, _ = await socket.upgrade()
            assert status == 101
            socket.send(frame(TEXT, hi(identity)))
            assert (await socket.hear())[0] == "~wse:welcome"
            yield socket


# Protocols.


def tiny_protocol():
    """A protocol of the application's own: integers for WSE's types, in binary messages."""
    from wse import InternalTypes, Protocol

    class Tiny(Protocol):
        name = "tiny"
        internal_types = InternalTypes(hi=1, challenge=2, welcome=3, call=4, response=5, response_error=6)

        def pack(self, type, payload=None, stamp=None) -> bytes:
            return json.dumps({"t": type, "p": payload, "s": stamp}).encode()

        def unpack(self, data) -> tuple[Any, Any, Any]:
            message = json.loads(bytes(data))
            return message["t"], message["p"], message["s"]

    return Tiny()


class Unpackable:
    """No protocol can encode it."""

    __slots__ = ()


assert WseJSON.name == JSON
