"""Several servers of one cluster in this process, with logs of their clients and of their events."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import partial

from support.beats import when_renewed
from support.net import Log, ServerLog, accept_all
from wse import ClusterSettings, WseClient, WseServer
from wse.testing import URL, MemoryConnector

WAIT = 30.0
"""Seconds until a test that waits gives up; a test that passes never waits that long."""

FAST = ClusterSettings(lease_ttl=2.0, renew_interval=0.3, canary_interval=0.2, canary_misses=5, query_timeout=5.0)
"""A short lease; NATS counts whole seconds, and test machines are busy."""


async def until(condition):
    """Wait until the condition holds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition()


class Device(Log):
    """A client, and all messages that it has received."""

    def __init__(self, client):
        super().__init__()
        self.client = client
        client.when.ignored(lambda kind, payload, stamp: self.add(kind, payload))
        client.when.closed(lambda code, reason: self.add("closed", code, reason))

    def payloads(self, kind):
        return [payload for (payload,) in self.all(kind)]


class Nodes(list):
    """The servers, their events and their clients."""

    def __init__(self):
        super().__init__()
        self.logs = []
        self.devices = []
        self.renewals = []

    async def device(self, number, identity="ann", **options):
        """A connected client of one of the nodes."""
        client = WseClient(URL, identity=identity, connector=MemoryConnector(self[number]), **options)
        device = Device(client)
        self.devices.append(device)
        async with asyncio.timeout(WAIT):
            await client.connect()
        return device

    def fired(self, name, *start):
        """How often an event has fired, on all nodes together."""
        return sum(entry[: len(start)] == start for log in self.logs for entry in log.all(name))

    async def beat(self, count=4):
        """Wait until every node has renewed its lease some more times, so that late events have come: a second."""
        goals = [renewals + count for renewals in self.renewals]
        await until(lambda: all(now >= goal for now, goal in zip(self.renewals, goals, strict=True)))

    def _renewed(self, number):
        self.renewals[number] += 1

    def codes(self):
        return {str(error.code) for log in self.logs for error, _ in log.all("error")}


@asynccontextmanager
async def cluster_of(brokers, settings=FAST, **options):
    """Start a server on each of these brokers; `None` is a server alone."""
    nodes = Nodes()
    try:
        for broker in brokers:
            server = WseServer(accept_all, broker=broker, cluster=settings, port=0, **options)
            nodes.append(server)
            nodes.logs.append(ServerLog(server))
            nodes.renewals.append(0)
            if broker is not None:
                when_renewed(server, partial(nodes._renewed, len(nodes) - 1))
            await server.start()
        yield nodes
    finally:
        for device in nodes.devices:
            await device.client.close()
        for server in nodes:
            await server.close()
