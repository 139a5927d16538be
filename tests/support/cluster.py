"""Several servers of one cluster in this process, and what their clients and their listeners have heard."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from support.net import TIMEOUT, Log, ServerLog, accept_all, soon
from wse import WseClient, WseServer
from wse.core.cluster import ClusterSettings
from wse.testing import URL, MemoryConnector

FAST = ClusterSettings(lease=0.6, renew=0.1, canary=0.1, query=0.5, farewell=2.0)


async def until(condition):
    """Wait until it holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


class Node:
    """A server of the cluster."""

    def __init__(self, server, stack, log):
        self.server = server
        self._stack = stack
        self.log = log

    @property
    def cluster(self):
        return self.server.cluster

    async def client(self, identity="ann", **options):
        """A connected client of this node, which keeps what it hears."""
        client = WseClient(URL, identity=identity, connector=MemoryConnector(self.server), **options)
        self._stack.append(client)
        heard = client.heard = Log()
        client.when.ignored(lambda kind, payload, stamp: heard.add(kind, payload))
        client.when.closed(lambda code, reason: heard.add("closed", code, reason))
        await soon(client.connect())
        return client


class Nodes(list):
    """All nodes, with what any of them tells in one log."""

    def __init__(self):
        super().__init__()
        self.clients = []

    def all(self, name):
        """What was fired under that name on any node."""
        return [entry for node in self for entry in node.log.all(name)]

    def count(self, name, *start):
        return sum(entry[: len(start)] == start for entry in self.all(name))


@asynccontextmanager
async def cluster_of(brokers, settings=FAST, **options):
    """Servers on these brokers."""
    nodes = Nodes()
    try:
        for broker in brokers:
            server = WseServer(accept_all, broker=broker, cluster=settings, port=0, **options)
            node = Node(server, nodes.clients, ServerLog(server))
            await server._attach()
            nodes.append(node)
        yield nodes
    finally:
        for client in nodes.clients:
            await client.close()
        for node in nodes:
            await node.server.close()
