"""The broker on NATS: core publish and subscribe, and the register in JetStream.

The server is NATS 2.11.10 or later but 2.12.0: older ones let no key run out while others are written.

    nats://[[user]:password@]host[:port][,host[:port]...][?prefix=app&replicas=3]       tls:// never without TLS

The register is a bucket as the key/value tools know it, `app-v2` (2 is the version of its format), in memory, on
`replicas` servers, changed by compare-and-set:

    user.<user>         the user's record: numbers, devices, and the transitions that nodes have still to fire
    node.lease.<node>   for as long as the lease is in force: the server takes it away
    node.known.<node>   until the node has been reaped: the state of its lease
    node.reaped.<node>  for ten minutes after that
    meta.register       the identity of the register
    meta.await.<node>   while the register recovers, for as long as the node is waited for

A second bucket has hints, `<node>.<user>`, with the connections that the node holds of the user: what a node holds is
found without reading the whole register. Hints are sent without waiting for an answer. They may lag behind, and
reconciliation repairs them.

Every topic is a subject, so that the servers send a node what it asks for and nothing else. nats-py connects, and
manages streams; messages and the steps of the register pass it by (`wse.brokers.nats.wire`).

    changes      changes of users' records
    outbox       what this node holds, and has still to fire
    leases       leases, and who lives
    reaping      what dead nodes have left
    connection   topics and messages, and the two buckets:
    bucket       the register
    hints        the hints
    requests     requests to JetStream
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from wse.brokers.nats.changes import Changes
from wse.brokers.nats.connection import NatsConnection
from wse.brokers.nats.leases import OwnLease, nodes
from wse.brokers.nats.outbox import Outbox
from wse.brokers.nats.reaping import Reaping
from wse.brokers.nats.records import new_generation, read_record
from wse.brokers.nats.store import NatsStore
from wse.brokers.placement import UserRecord, by_place
from wse.brokers.reconnecting import ANSWER_TIMEOUT, ReconnectingBroker, answer, take
from wse.core.ports.broker import Device, Joined, Lease, Step, Transition
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from wse.core.ports.broker import BrokerListener

PAGE = 500
"""Users whose records are compared with hints at a time."""

SCAN = 60.0
"""Seconds that reading all hints of a node may take."""

S = TypeVar("S", bound=Step)


class NatsBroker(ReconnectingBroker[NatsConnection]):
    """A `wse.core.ports.broker.Broker` on NATS servers with JetStream.

    Args:
        url: The addresses of the servers. Its `prefix`, by default `wse`, starts the names of all subjects and buckets,
            so that several applications can share the servers; `replicas`, by default 1, is the number of servers that
            keep the register.
        options: Further options for `nats.connect`, such as `tls`, `user_credentials` and `nkeys_seed`.

    Attributes:
        store: Keeps messages.

    A lease lasts whole seconds here, so `renew` rounds up.
    """

    spreads = True

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__()
        url, ours = take(url, replicas="1")
        self._prefix = ours["prefix"]
        self._replicas = int(ours["replicas"])
        parts = urlsplit(url)
        credentials, _, hosts = parts.netloc.rpartition("@")
        name, _, password = credentials.partition(":")
        if password:
            options |= {"user": unquote(name), "password": unquote(password)}
        elif name:
            options |= {"token": unquote(name)}
        self._servers = [f"{parts.scheme}://{host}" for host in hosts.split(",")]
        self._options = options
        # Creating buckets takes a leader of the whole cluster. A node that reconnects must not wait for its election.
        self._is_prepared = False
        self.store = NatsStore(self, self._prefix, self._replicas)
        self._lease = OwnLease()
        self._changes = Changes(self)
        self._outbox = Outbox(self, self._changes)
        self._reaping = Reaping(self, self._lease, self._changes, self._outbox)

    def publish(self, topic: str, data: bytes) -> None:
        connection = self._connection
        if connection is not None and len(data) > connection.message_size:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": connection.message_size})
        super().publish(topic, data)

    async def open(self, node: str, listener: BrokerListener) -> None:
        self._lease.reset(node)
        self._changes.reset()
        self._outbox.reset(node)
        self._reaping.reset(node)
        self._is_prepared = False
        await super().open(node, listener)

    async def _connect(self) -> NatsConnection:
        connection = NatsConnection(self._prefix, self.received)
        try:
            await connection.connect(self._servers, {"name": f"wse {self._node}", **self._options})
            # A server that refuses these may say so, and end the connection, without an answer.
            if not (self._is_prepared and await answer(connection, connection.has_buckets(), ANSWER_TIMEOUT)):
                await answer(connection, connection.prepare(self._replicas), ANSWER_TIMEOUT)
                self._is_prepared = True
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def connection(self) -> NatsConnection | None:
        """The connection, if it is ready."""
        return self._connection if self._ready else None

    # The register.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        is_likely_full = limit < 2 or device.user in self._outbox.held
        living = await self.nodes() if is_likely_full else None

        def step(record: UserRecord) -> Joined:
            is_full = device.conn_id not in record.devices and len(record.devices) >= limit
            if is_full and living is None:
                return Joined(record.generation)  # once more, with the nodes
            if not record.devices and not record.generation and not generation and not self._lease.is_recovering:
                record.generation = new_generation()
            dead = {other.node for other in record.devices.values()} - living if living is not None else ()
            return record.join(device, limit, generation, fresh=fresh, recovering=self._lease.is_recovering, dead=dead)

        self._outbox.hint(device.user, device.conn_id, held=True)
        joined = await self._step(device.user, step, likely_none=True)
        if not joined.device.conn_id:
            living = await self.nodes()
            joined = await self._step(device.user, step)
        for other in joined.displaced:
            if other.node == self._node:  # any other node corrects its hint itself
                self._outbox.hint(other.user, other.conn_id, held=False)
        return joined

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        def step(record: UserRecord) -> Step:
            return record.leave(device, generation, code, reason, recovering=self._lease.is_recovering)

        result = await self._step(device.user, step)
        self._outbox.hint(device.user, device.conn_id, held=False)
        return result

    async def move(self, device: Device, origin: str) -> Joined | None:
        self._lease.check(self._connection)
        self._outbox.hint(device.user, device.conn_id, held=True)
        moved = await self._changes.change(device.user, lambda record: record.move(device, origin))
        if moved is None:
            self._outbox.hint(device.user, device.conn_id, held=False)
        return moved

    async def set_away(self, device: Device) -> None:
        self._lease.check(self._connection)
        await self._changes.change(device.user, lambda record: record.set_away(device))

    async def settle(self, undecided: Transition) -> Step:
        def step(record: UserRecord) -> Step:
            return record.settle(self._node, undecided, recovering=self._lease.is_recovering)

        return await self._step(undecided.user, step)

    async def _step(self, user: str, step: Callable[[UserRecord], S], *, likely_none: bool = False) -> S:
        """A step of this node's lease that may cause transitions."""
        self._lease.check(self._connection)
        was_known = self._outbox.expect(user)
        result = await self._changes.change(user, step, likely_none=likely_none)
        if not was_known and not result.transitions and not self._lease.is_recovering:
            self._outbox.emptied(user)
        return result

    async def pending(self) -> list[Transition]:
        return await self._outbox.pending()

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        self._lease.check(self._connection)
        return await self._outbox.claim(transitions)

    def fired(self, transitions: Iterable[Transition]) -> None:
        self._outbox.fired(transitions)

    async def reap(self) -> list[Transition]:
        self._lease.check(self._connection)
        return await self._reaping.reap()

    async def mine(self) -> AsyncIterator[list[Device]]:
        self._lease.check(self._connection)
        hinted = {user: conn_ids for user, _, conn_ids in await self.hints(self._node)}
        users = [*hinted]
        for start in range(0, len(users), PAGE):
            page = {user: hinted[user] for user in users[start : start + PAGE]}
            yield await self.ask(partial(self._outbox.listed, page))

    async def devices(self, user: str) -> list[Device]:
        _, value = await self.ask(lambda connection: connection.bucket.get(f"user.{user}"))
        return by_place(read_record(user, value).devices.values())

    async def online(self) -> int:
        others, count = await self.ask(lambda connection: connection.bucket.keys("node.*.*"))
        meta, _ = await self.ask(lambda connection: connection.bucket.keys("meta.>"))
        return count - len(others) - len(meta)

    async def users(self) -> AsyncIterator[str]:
        offset = 0

        async def page(connection: NatsConnection) -> list[str]:
            return (await connection.bucket.keys("user.*", offset))[0]

        while keys := await self.ask(page):
            for key in keys:
                yield key.removeprefix("user.")
            offset += len(keys)

    # Leases.

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        async def renew(connection: NatsConnection) -> Lease:
            return await self._lease.renew(connection, math.ceil(ttl), register, peers, has_pending=bool(self._outbox))

        lease = await self.ask(renew, urgent=True)
        self._outbox.clean()
        return lease

    async def registered(self) -> None:
        self._lease.check(self._connection)
        await self.ask(self._lease.registered)

    async def resign(self) -> None:
        self._lease.end()
        await self.ask(self._lease.resign)

    async def nodes(self) -> frozenset[str]:
        return (await self.ask(nodes)).lease

    # What the parts ask.

    async def hints(self, node: str) -> list[tuple[str, int, list[str]]]:
        """Users of whom a node holds connections, the revision of the hint, and which connections."""
        return await self.ask(lambda connection: connection.hints.of(node), within=SCAN)

    async def put(self, key: str, value: bytes, ttl: int | None = None) -> None:
        """Set a key of the register."""
        await self.ask(lambda connection: connection.bucket.put(key, value, ttl=ttl))

    async def purge(self, keys: str) -> None:
        """Delete keys of the register; `*` stands for any part."""
        await self.ask(lambda connection: connection.bucket.purge(keys))
