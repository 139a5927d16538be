"""The broker on NATS: core publish and subscribe, and the register in JetStream.

The server is NATS 2.11.10 or later but 2.12.0: older ones let no key run out while others are written.

    nats://[[user]:password@]host[:port][,host[:port]...][?prefix=app&replicas=3]       tls:// never without TLS

The register is a bucket as the key/value tools know it, in memory, on `replicas` servers, changed by compare-and-set:

    user.<user>               a line "connection-id node epoch since first" for each device; whether it was the user's
                              first when it joined
    node.lease.<node>.<epoch> for as long as the lease is in force: the server takes it away
    node.known.<node>.<epoch> until the node has been reaped

An epoch is an unbroken series of renewals. A node that has let its lease run out begins the next one, and its devices
belong to that from when it has joined them anew, so nobody who reaps the old one can take out what is alive.

Every topic is a subject, so that the servers send a node what it asks for and nothing else. nats-py gives each
subscription a task and a queue, 4.7 KiB; here all share one inbox, which is called from its parser, and a topic costs
0.6 KiB (`bench/brokers.py`; see `Inbox`).
"""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit
from zlib import crc32

from wse.brokers.nats.connection import NatsConnection, OutdatedError
from wse.brokers.placement import admit, by_age
from wse.brokers.reconnecting import SUBSCRIBED, ReconnectingBroker, take
from wse.core.ports.broker import Device, Gone, Joined
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Iterator

    from wse.core.ports.broker import BrokerListener

ATTEMPTS = 40
"""How often a step is tried that others come in between of."""

AT_ONCE = 100
"""Users that a dead node's devices are taken from at the same time."""


class Mark(NamedTuple):
    """What a device's record says beside the device: its node's epoch, and whether it was the first when it joined."""

    epoch: str
    first: bool


Records = dict[Device, Mark]
"""A user's devices, the oldest first."""

Entry = tuple[int, Records]
"""What a user's key had, and its revision then; empty where that is not known."""

T = TypeVar("T")


class NatsBroker(ReconnectingBroker[NatsConnection]):
    """A `wse.core.ports.broker.Broker` on NATS servers with JetStream.

    Args:
        url: Where the servers are. Its `prefix`, `wse` by default, starts the names of all subjects and buckets, so
            that several applications can share them; `replicas`, 1 by default, is how many servers keep the register.
        options: For `nats.connect`, beside what the URL says: `tls`, `user_credentials`, `nkeys_seed`.

    A lease lasts whole seconds here, so `renew` rounds up.
    """

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
        self._epoch = ""
        self._lease = 0  # the revision of the lease, as far as is known
        self._lease_ends = 0.0  # by the clock of the event loop, and not later than by the server's

    def publish(self, topic: str, data: bytes) -> None:
        connection = self._connection
        if connection is not None and len(data) > connection.message_size:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": connection.message_size})
        super().publish(topic, data)

    async def open(self, node: str, listener: BrokerListener) -> None:
        self._epoch, self._lease, self._lease_ends = token_hex(8), 0, 0.0
        await super().open(node, listener)

    async def _connect(self) -> NatsConnection:
        connection = NatsConnection(self._prefix, self.received)
        try:
            await connection.connect(self._servers, {"name": f"wse {self._node}", **self._options})
            await connection.prepare(self._replicas)
        except BaseException:
            await connection.close()
            raise
        return connection

    # The register.

    async def join(self, device: Device, limit: int, *, fresh: bool = True) -> Joined:
        def step(records: Records) -> tuple[Joined, Records]:
            present = {other: mark.first for other, mark in records.items()}
            joined = admit(present, device, limit, fresh)
            after = {**records, joined.device: Mark(self._epoch, joined.first)}
            for other in joined.displaced:
                del after[other]
            return joined, after

        self._unanswered.pop(device.conn_id, None)
        if not self._is_known():
            await self.ask(self._announce)
        joined = await self._change(device.user, step, likely_none=True)
        if not self._is_known():  # we slept meanwhile
            await self.ask(self._announce)
        return joined

    async def leave(self, device: Device) -> bool:
        # A key that is deleted leaves no trace, so what an earlier attempt has done is concluded from who came since.
        repeated = device.conn_id in self._unanswered
        with self._remember(device) as asked:

            def step(records: Records) -> tuple[bool, Records]:
                nonlocal repeated
                after = {other: mark for other, mark in records.items() if other.conn_id != device.conn_id}
                if len(after) == len(records):
                    return repeated and (not after or any(mark.first for mark in after.values())), after
                if after:  # others had come, so an earlier attempt was not made
                    repeated = False
                    self._unanswered.pop(device.conn_id, None)
                else:
                    asked()
                return not after, after

            return await self._change(device.user, step)

    async def devices(self, user: str) -> list[Device]:
        _, value = await self.ask(lambda connection: connection.get(f"user.{user}"))
        return list(_read(user, value))

    async def online(self) -> int:
        others, count = await self.ask(lambda connection: connection.keys("node.*.*.*"))
        return count - len(others)

    async def users(self) -> AsyncIterator[str]:
        offset = 0
        while page := await self._user_keys(offset):
            for key in page:
                yield key.removeprefix("user.")
            offset += len(page)

    async def _user_keys(self, offset: int) -> list[str]:
        keys, _ = await self.ask(lambda connection: connection.keys("user.*", offset))
        return keys

    async def _change(self, user: str, step: Callable[[Records], tuple[T, Records]], *, likely_none: bool = False) -> T:
        """Make a step, which is a function of the user's devices, from what nobody else has changed meanwhile.

        Most users who join have no device, and need not be asked for: a step that adds one can start from there.
        """
        return await self.ask(lambda connection: self._compare_and_set(connection, user, step, likely_none))

    async def _compare_and_set(
        self, connection: NatsConnection, user: str, step: Callable[[Records], tuple[T, Records]], likely_none: bool
    ) -> T:
        key = f"user.{user}"
        revision, value = (0, b"") if likely_none else await connection.get(key)
        for attempt in range(ATTEMPTS):
            before = _read(user, value)
            result, after = step(before)
            if after == before:
                return result
            try:
                if after:
                    await connection.put(key, _write(after), revision)
                else:
                    await connection.delete(revision)
            except OutdatedError:
                if attempt or not likely_none:
                    await asyncio.sleep(random.random() * min(0.1, 0.002 * 2**attempt))  # noqa: S311 - no secret
            else:
                return result
            revision, value = await connection.get(key)
        raise OutdatedError(f"others changed the same user {ATTEMPTS} times meanwhile")

    # Leases.

    async def renew(self, ttl: float) -> bool:
        return await self.ask(lambda connection: self._renew(connection, math.ceil(ttl)))

    def _is_known(self) -> bool:
        """Whether who reaps surely knows this epoch: it has been announced to this register, and its lease is in force.

        Without one, others may have taken its devices out, and then have forgotten it: whoever joins a device all the
        same, because it has just woken up, say, announces it anew.
        """
        connection = self._connection
        is_announced = connection is None or connection.announced == self._epoch
        return is_announced and asyncio.get_running_loop().time() < self._lease_ends

    async def _announce(self, connection: NatsConnection) -> None:
        await connection.put(f"node.known.{self._node}.{self._epoch}", b"")
        connection.announced = self._epoch

    async def _renew(self, connection: NatsConnection, ttl: int) -> bool:
        lease_ends = asyncio.get_running_loop().time() + ttl
        if self._lease:
            try:
                lease = f"node.lease.{self._node}.{self._epoch}"
                self._lease = await connection.put(lease, b"", self._lease, ttl)
            except OutdatedError:
                pass  # it has run out, or is lost, or an answer is
            else:
                self._lease_ends = lease_ends
                return True
        # The lease comes first, or who reaps between the two would find a node that is to be forgotten.
        epoch = token_hex(8)
        lease_of_epoch = await connection.put(f"node.lease.{self._node}.{epoch}", b"", ttl=ttl)
        await connection.put(f"node.known.{self._node}.{epoch}", b"")
        self._epoch = connection.announced = epoch
        self._lease, self._lease_ends = lease_of_epoch, lease_ends
        return False

    async def resign(self) -> None:
        self._lease, self._lease_ends = 0, 0.0
        await self._purge(f"node.lease.{self._node}.*")

    async def nodes(self) -> frozenset[str]:
        leases, _ = await self._epochs()
        return frozenset(leases.values())

    async def _epochs(self) -> tuple[dict[str, str], dict[str, str]]:
        """The nodes of the epochs whose lease is in force, and of all that were not reaped; of one moment."""
        kinds: dict[str, dict[str, str]] = {"lease": {}, "known": {}}
        keys, _ = await self.ask(lambda connection: connection.keys("node.*.*.*"))
        for key in keys:
            _, kind, node, epoch = key.split(".")
            kinds[kind][epoch] = node
        return kinds["lease"], kinds["known"]

    async def reap(self) -> list[Gone]:
        leases, known = await self._epochs()
        dead = known.keys() - leases.keys()
        if not dead:
            return []
        found = await self._users_of(dead)
        if not found:
            # Only now: a node that did not know that it was dead could have gone on with its epoch.
            for epoch in dead:
                await self._purge(f"node.known.*.{epoch}")
            return []
        # All survivors reap now, so each begins with a share of its own, and then sees to whoever is left.
        survivors = sorted(set(leases.values()))
        share = {user: entry for user, entry in found.items() if self._is_mine(user, survivors)}
        gone: list[Gone] = []
        try:
            await self._take_out(share or found, dead, gone)
        except WseError:
            if not gone:
                raise
            # Nobody else is told of these; the others are left for the next time.
        return gone

    def _is_mine(self, user: str, survivors: list[str]) -> bool:
        return not survivors or survivors[crc32(user.encode()) % len(survivors)] == self._node

    async def _take_out(self, found: dict[str, Entry], dead: Container[str], gone: list[Gone]) -> None:
        """Take devices of dead epochs out, and put them into `gone`, one by one."""

        def step(records: Records) -> tuple[list[Gone], Records]:
            after = {device: mark for device, mark in records.items() if mark.epoch not in dead}
            reaped = [device for device in records if device not in after]
            return [Gone(device, not after and device is reaped[-1]) for device in reaped], after

        # Most users have no other device. Their entries are simply deleted, many at a time.
        last = {
            revision: (user, records)
            for user, (revision, records) in found.items()
            if records and all(mark.epoch in dead for mark in records.values())
        }

        def deleted(revision: int) -> None:
            user, records = last[revision]
            gone.extend(step(records)[0])
            del found[user]

        for revisions in batches(list(last), AT_ONCE):
            await self.ask(partial(NatsConnection.delete_each, revisions=revisions, deleted=deleted))
        for users in batches(list(found), AT_ONCE):
            changes = [self._change(user, step) for user in users]
            results = await asyncio.gather(*changes, return_exceptions=True)
            gone += [device for result in results if isinstance(result, list) for device in result]
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _purge(self, keys: str) -> None:
        await self.ask(lambda connection: connection.purge(keys))

    async def _users_of(self, epochs: Container[str]) -> dict[str, Entry]:
        """The users who may have devices of these epochs, with what is known of them; this reads the whole register."""
        found: dict[str, Entry] = {}
        seen: set[str] = set()

        async def scan(connection: NatsConnection) -> None:
            async for key, revision, value in connection.scan("user.*"):
                seen.add(key)
                user = key.removeprefix("user.")
                records = _read(user, value)
                if any(mark.epoch in epochs for mark in records.values()):
                    found[user] = revision, records

        await self.ask(scan, within=SUBSCRIBED)
        # Who came or changed meanwhile may not be in it.
        offset = 0
        while page := await self._user_keys(offset):
            found |= {key.removeprefix("user."): (0, {}) for key in page if key not in seen}
            offset += len(page)
        return found


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    """All of them, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _read(user: str, value: bytes) -> Records:
    records = {}
    for line in value.decode().splitlines():
        conn_id, node, epoch, since, first = line.split()
        records[Device(user, conn_id, node, float(since))] = Mark(epoch, first == "1")
    return {device: records[device] for device in by_age(records)}


def _write(records: Records) -> bytes:
    lines = [f"{d.conn_id} {d.node} {mark.epoch} {d.since!r} {mark.first:d}\n" for d, mark in records.items()]
    return "".join(lines).encode()
