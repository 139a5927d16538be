"""Nodes of this process, each behind a proxy of its own to a real engine, for faults that are made on purpose."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from support.net import accept_all
from support.proxy import TcpProxy
from wse import WseClient, WseServer
from wse.brokers import from_url

WAIT = 30.0
"""Seconds until a test that waits gives up."""

PREFIX = "lab"


class Node:
    """A server, the proxy between it and the engine, and the events that it fired."""

    def __init__(self, name, proxy, server):
        self.name, self.proxy, self.server = name, proxy, server
        self.events = []

    @property
    def cluster(self):
        return self.server.cluster

    @property
    def presence(self):
        return self.server._hub.network.presence

    def cut_off(self):
        self.proxy.accepts = False
        self.proxy.cut()

    def heal(self):
        self.proxy.accepts = True
        self.proxy.delay = 0.0
        self.proxy.stall(False)

    async def healthy(self):
        await until(lambda: self.cluster.healthy)

    def codes(self):
        return [str(what) for event, what in self.events if event == "error"]


class Lab:
    def __init__(self, engine, stack):
        self.engine = engine
        self.events = []
        self._stack = stack

    def url(self, port=None):
        address = urlsplit(self.engine.url(PREFIX))
        return address._replace(netloc=f"127.0.0.1:{port or self.engine.port}").geturl()

    async def proxy(self):
        return await self._stack.enter_async_context(TcpProxy(self.engine.port))

    async def node(self, name, **options):
        proxy = await self.proxy()
        options = {"auth_timeout": 60, "timeout": 60, "watchdog": None} | options
        server = WseServer(accept_all, port=0, broker=self.url(proxy.port), **options)
        node = Node(name, proxy, server)

        def note(event, what):
            node.events.append((event, what))
            self.events.append((event, what))

        server.when.joined(lambda identity, meta: note("joined", identity.cid))
        server.when.left(lambda identity, code, reason: note("left", identity.cid))
        server.when.error(lambda error, conn: note("error", error.code))
        await server.start()
        self._stack.push_async_callback(server.close)
        return node

    async def client(self, node, identity="ann", **options):
        client = WseClient(node.server.url, identity=identity, timeout=60, **options)
        client.when.error(lambda error: None)
        await client.connect()
        self._stack.push_async_callback(client.close)
        return client

    async def observer(self):
        """A broker that looks at the register."""
        broker = from_url(self.url())
        await broker.open("observer", Deaf())
        self._stack.push_async_callback(broker.close)
        return broker

    def fired(self, cid="ann"):
        return [event for event, what in self.events if what == cid]


class Deaf:
    """A listener of a broker that hears nothing."""

    def received(self, topic, data): ...

    def connection_lost(self, cause, unsent): ...

    def connection_restored(self): ...


@asynccontextmanager
async def lab_of(engine):
    async with AsyncExitStack() as stack:
        with engine:
            yield Lab(engine, stack)
            await stack.aclose()


async def until(condition, within=WAIT):
    """Wait until the condition holds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        await asyncio.sleep(0.02)


async def until_register(condition, within=WAIT):
    """Wait until what is asked of the register is so."""
    end = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        await asyncio.sleep(0.1)
