"""The broker on NATS: core publish and subscribe, and the register in JetStream.

The server must be NATS 2.11.10 or later, except 2.12.0: in others, keys do not expire while other keys are written.

    nats://[[user]:password@]host[:port][,host[:port]...][?prefix=app&replicas=3]       tls:// never without TLS

The register is a bucket, readable by key/value tools, in the memory of `replicas` servers, changed by compare-and-set:

    user.<user>               a line "connection-id node epoch since first" for each device; `first` is whether it was
                              the user's first device when it joined
    node.lease.<node>.<epoch> exists while the lease is in force: the server removes it
    node.known.<node>.<epoch> exists until the node has been reaped

An epoch is an unbroken series of renewals. A node whose lease has run out begins the next epoch, and its devices belong
to that one as soon as the node has joined them anew. So reaping the old epoch cannot remove living devices.

Every topic is a subject, so the servers send a node the messages that it has subscribed to and nothing else. nats-py
gives each subscription a task and a queue, 4.7 KiB. Here all share one inbox, which is called from nats-py's parser,
and a topic costs 0.6 KiB (`bench/brokers.py`; see `Inbox`).
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
"""How often a step is tried when other nodes change the same user meanwhile."""

AT_ONCE = 100
"""Users whose dead devices are removed at the same time."""


class Mark(NamedTuple):
    """The rest of a device's record: its node's epoch, and whether it was its user's first device when it joined."""

    epoch: str
    first: bool


Records = dict[Device, Mark]
"""A user's devices, the oldest first."""

Entry = tuple[int, Records]
"""The revision of a user's key, and the records in it; zero and empty where they are unknown."""

T = TypeVar("T")


class NatsBroker(ReconnectingBroker[NatsConnection]):
    """A `wse.core.ports.broker.Broker` on NATS servers with JetStream.

    Args:
        url: The addresses of the servers. Its `prefix`, by default `wse`, starts the names of all subjects and buckets,
            so that several applications can share the servers; `replicas`, by default 1, is the number of servers that
            keep the register.
        options: Further options for `nats.connect`, such as `tls`, `user_credentials` and `nkeys_seed`.

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
        self._lease_ends = 0.0  # by the clock of the event loop; never later than by the server's

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
        if not self._is_known():  # this process has slept meanwhile
            await self.ask(self._announce)
        return joined

    async def leave(self, device: Device) -> bool:
        # A deleted key leaves no trace, so the outcome of an earlier attempt is concluded from the devices since then.
        repeated = device.conn_id in self._unanswered
        with self._remember(device) as asked:

            def step(records: Records) -> tuple[bool, Records]:
                nonlocal repeated
                after = {other: mark for other, mark in records.items() if other.conn_id != device.conn_id}
                if len(after) == len(records):
                    return repeated and (not after or any(mark.first for mark in after.values())), after
                if after:  # other devices had come, so the earlier attempt was not made
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
        """Make a step, which is a function of the user's devices, if no other node changes them meanwhile.

        Most users who join have no device. With `likely_none` the step first assumes so, which saves a question.
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
        raise OutdatedError(f"other nodes changed the same user {ATTEMPTS} times meanwhile")

    # Leases.

    async def renew(self, ttl: float) -> bool:
        return await self.ask(lambda connection: self._renew(connection, math.ceil(ttl)))

    def _is_known(self) -> bool:
        """Whether every node that reaps surely knows this epoch: this register has it, and its lease is in force.

        After the lease has run out, other nodes may have removed the epoch with its devices. A node that joins a device
        then, for example because it has just woken up, must announce the epoch anew.
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
                pass  # the lease has run out or is lost, or the answer to the last renewal was lost
            else:
                self._lease_ends = lease_ends
                return True
        # The lease comes first, or another node that reaps between the two steps would find an epoch without a lease.
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
        """The nodes by epoch, of one moment: of epochs whose lease is in force, and of all that were not reaped."""
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
            # Not before: a node that did not know that it was considered dead could have gone on with its epoch.
            for epoch in dead:
                await self._purge(f"node.known.*.{epoch}")
            return []
        # All survivors reap now, so each begins with a share of its own, and then takes the users that are left.
        survivors = sorted(set(leases.values()))
        share = {user: entry for user, entry in found.items() if self._is_mine(user, survivors)}
        gone: list[Gone] = []
        try:
            await self._take_out(share or found, dead, gone)
        except WseError:
            if not gone:
                raise
            # Only this node knows of the removed devices; the others wait for the next time.
        return gone

    def _is_mine(self, user: str, survivors: list[str]) -> bool:
        return not survivors or survivors[crc32(user.encode()) % len(survivors)] == self._node

    async def _take_out(self, found: dict[str, Entry], dead: Container[str], gone: list[Gone]) -> None:
        """Remove devices of dead epochs, and add each to `gone`."""

        def step(records: Records) -> tuple[list[Gone], Records]:
            after = {device: mark for device, mark in records.items() if mark.epoch not in dead}
            reaped = [device for device in records if device not in after]
            return [Gone(device, not after and device is reaped[-1]) for device in reaped], after

        # Most users have no other device. Their keys are simply deleted, many at a time.
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
        """The users who may have devices of these epochs, with their entries; this reads the whole register."""
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
        # The scan may lack users who came or changed meanwhile.
        offset = 0
        while page := await self._user_keys(offset):
            found |= {key.removeprefix("user."): (0, {}) for key in page if key not in seen}
            offset += len(page)
        return found


def batches(items: list[T], size: int) -> Iterator[list[T]]:
    """Split a list into lists of at most `size` items."""
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
