"""Clusters of brokers under test: nodes that log the messages they receive, and an engine that can fail."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, contextmanager

import nats
import pytest
import redis.asyncio

from support.net import Log
from wse import ErrorCode, WseError
from wse.brokers import from_url, reconnecting
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.brokers.nats import broker as nats_broker
from wse.brokers.nats import connection as nats_connection
from wse.brokers.nats import requests as nats_requests
from wse.brokers.nats.bucket import OutdatedError
from wse.core.ports.broker import Device

WAIT = 30.0
"""Seconds until a test that waits for an engine gives up; a test that passes never waits that long."""


async def until(condition):
    """Wait until the asynchronous condition holds. It polls, because engines do not report the end of a lease."""
    async with asyncio.timeout(WAIT):
        while not await condition():
            await asyncio.sleep(0.01)


async def unavailable(awaitable):
    """Check that the step fails as when the engine is away; returns the error of the engine's library."""
    with pytest.raises(WseError) as caught:
        async with asyncio.timeout(WAIT):
            await awaitable
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    assert caught.value.__cause__ is not None
    return caught.value.__cause__


def be_patient(monkeypatch):
    """No step fails because the engine takes a while: it does on a busy machine, with hundreds of steps at once."""
    original = reconnecting.answer

    async def answer(connection, question, within):
        return await original(connection, question, max(within, WAIT))

    for module in (reconnecting, nats_broker):
        monkeypatch.setattr(module, "answer", answer)
    for module in (reconnecting, nats_connection, nats_requests):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", WAIT)


class Node(Log):
    """A node that only listens."""

    def __init__(self, name, broker):
        super().__init__()
        self.name = name
        self.broker = broker
        self.unsent = []  # the messages that it was given back

    def received(self, topic, data):
        self.add("received", topic, data)

    def connection_lost(self, cause, unsent):
        self.unsent += unsent
        self.add("lost", cause)

    def connection_restored(self):
        self.add("restored")

    def device(self, user, conn_id):
        return Device(user, conn_id, self.name)

    async def open(self):
        await self.broker.open(self.name, self)

    async def subscribe(self, *topics):
        for topic in topics:
            self.broker.subscribe(topic)
        await self.broker.flush()

    async def connected(self):
        await until(self._is_connected)

    async def _is_connected(self):
        return self.broker.connected


class BrokerCluster:
    """Nodes that share one engine, with a prefix of their own."""

    ttl = 0.05
    """The shortest lease, in seconds."""

    message_size: int | None = None

    keeps_the_register = True
    """Whether messages survive a stop of the engine."""

    def __init__(self, stack):
        self._stack = stack
        self._names = iter(f"node{n}" for n in range(1000))

    def broker(self):
        raise NotImplementedError

    def stop(self):
        raise NotImplementedError

    def start(self):
        raise NotImplementedError

    async def forget(self, *nodes):
        """The engine loses the register, and nothing else happens."""
        raise NotImplementedError

    def lose_answers(self, node):
        """While this context is open, the engine makes the node's steps, but their answers are lost."""
        raise NotImplementedError

    def closed_node(self):
        node = Node(next(self._names), self.broker())
        self._stack.push_async_callback(node.broker.close)
        return node

    async def node(self, *topics):
        """A node that is open, has a lease and has subscribed to the topics."""
        node = self.closed_node()
        await node.open()
        await node.broker.renew(WAIT)
        await node.broker.registered()
        await node.subscribe(*topics)
        return node

    async def nodes(self, count, *topics):
        return [await self.node(*topics) for _ in range(count)]

    async def dead_node(self, *devices):
        """A node whose lease has run out, with devices of these users and connection ids."""
        node, other = await self.nodes(2)
        await asyncio.gather(*[node.broker.join(node.device(*device), 10) for device in devices])
        await node.broker.resign()
        await node.broker.close()
        await other.broker.close()
        return node


class MemoryClusterOfBrokers(BrokerCluster):
    def __init__(self, stack):
        super().__init__(stack)
        self._cluster = MemoryCluster()

    def broker(self):
        return MemoryBroker(self._cluster)

    @contextmanager
    def lose_answers(self, node):
        self._cluster.answers = False
        yield
        self._cluster.answers = True

    async def forget(self, *nodes):
        self._cluster.forget()

    def stop(self):
        self._cluster.pause()

    def start(self):
        self._cluster.resume()


class EngineCluster(BrokerCluster):
    keeps_the_register = False

    changes: tuple[str, ...]
    """The methods of `register` that change it."""

    def register(self, node):
        """The part of the adapter's connection that has the register."""
        return node.broker._connection

    def is_made(self, answer):
        """Whether the register was changed, as its answer says."""
        return True

    def __init__(self, stack, engine):
        super().__init__(stack)
        self.engine = engine
        self.prefix = secrets.token_hex(4)

    def broker(self):
        return from_url(self.engine.url(self.prefix))

    @contextmanager
    def lose_answers(self, node):
        register = self.register(node)

        def lose(change):
            async def made_but_not_told(*args, **kwargs):
                answer = await change(*args, **kwargs)
                if self.is_made(answer):
                    raise TimeoutError("the answer is lost")
                return answer

            return made_but_not_told

        for name in self.changes:
            setattr(register, name, lose(getattr(register, name)))
        yield
        for name in self.changes:
            delattr(register, name)

    def stop(self):
        self.engine.stop()

    def start(self):
        if not self.engine.running:
            self.engine.start()


class NatsCluster(EngineCluster):
    ttl = 1
    message_size = 1024 * 1024
    changes = ("put", "write_many")

    def register(self, node):
        return node.broker._connection.bucket

    def is_made(self, answer):
        return not (isinstance(answer, list) and isinstance(answer[0], OutdatedError))

    async def forget(self, *nodes):
        client = await nats.connect(self.engine.url())
        for name in f"KV_{self.prefix}-v2", f"KV_{self.prefix}-v2-hints":
            await client.jetstream().delete_stream(name)
        await client.close()
        for node in nodes:
            try:
                await node.broker.renew(WAIT)
            except WseError:  # so it has found out
                await node.until("restored")


class RedisCluster(EngineCluster):
    message_size = 8 * 1024 * 1024
    changes = ("run", "run_apart")

    async def forget(self, *nodes):
        async with redis.asyncio.Redis(port=self.engine.port) as client:
            keys = await client.keys(f"{self.prefix}:*")
            await client.delete(*keys)


CLUSTERS = {"memory": MemoryClusterOfBrokers, "nats": NatsCluster, "redis": RedisCluster}
ENGINES = {"nats": "nats", "redis": "valkey"}
"""The fixtures of the brokers that need an engine."""


async def forget_boxes(store):
    """Let the engine of a store lose all that it keeps for users and rooms."""
    if type(store).__name__.startswith("Nats"):
        for stream in (store._messages, store._cursors):
            await store._broker.connection.requests.stream.delete_stream(stream)
    else:

        async def forget(connection):
            for kind in ("ib", "ih", "ik"):
                for key in await connection.command("KEYS", f"{store._keys}{kind}:*"):
                    await connection.command("DEL", key)

        await store._broker.ask(forget)


async def run_cluster(kind, request):
    """A cluster on the engine of its fixture; at the end all nodes are closed, and the engine runs."""
    engines = [request.getfixturevalue(ENGINES[kind])] if kind in ENGINES else []
    async with AsyncExitStack() as stack:
        cluster = CLUSTERS[kind](stack, *engines)
        yield cluster
        cluster.start()
