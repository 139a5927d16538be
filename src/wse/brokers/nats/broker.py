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
"""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from itertools import islice
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit
from zlib import crc32

from wse.brokers.nats.connection import NatsConnection, OutdatedError
from wse.brokers.nats.records import new_generation, read_record, write_record
from wse.brokers.placement import UserRecord, by_place
from wse.brokers.reconnecting import ANSWER_TIMEOUT, ReconnectingBroker, answer, take
from wse.core.ports.broker import Device, Joined, Lease, Step, Transition
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

    from wse.core.ports.broker import BrokerListener

MAX_ATTEMPTS = 40
"""How often a step is tried when others change the same user at the same time."""

MAX_CONCURRENT_CHANGES = 100
"""Users that a dead node's devices are taken from at the same time, and told of together."""

CLAIM_TTL = 60
"""Seconds for which a record without devices is kept: the node that has claimed its last transition may ask again."""

MAX_WRITTEN = 1000
"""Records that are remembered as they were written."""

TOMBSTONE_TTL = 600
"""Seconds for which it is remembered that a node was reaped."""

OUTBOX = "-"
"""Stands in a hint for a connection when the node holds none, and its outbox may hold transitions of the user."""

SCAN = 60.0
"""Seconds that reading all hints of a node may take."""

_STATES: dict[str, Literal["kept", "reaped", "new"]] = {"kept": "kept", "reaped": "reaped", "new": "new"}

S = TypeVar("S", bound=Step)
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
        self._lease = 0  # the revision of the lease, as far as is known
        self._lease_ends = 0.0  # by the clock of the event loop; never later than by the server's
        self._state = "new"
        self._recovering = False
        # Creating buckets takes a leader of the whole cluster. A node that reconnects must not wait for its election.
        self._is_prepared = False
        self._held: dict[str, set[str]] = {}  # by user, the connections that this node has registered
        self._outbox: dict[str, None] = {}  # users whose record may have transitions for this node
        self._written: dict[str, tuple[int, bytes]] = {}  # by user, the record that this node wrote last
        # By dead node, users to reap, and the revisions of its hints; None when it is to be found out.
        self._doomed: dict[str, dict[str, int]] | None = None
        self._fired: dict[str, list[Transition]] = {}  # by user, `left` events whose claims are to be taken out
        self._cleaner: asyncio.Task[None] | None = None

    def publish(self, topic: str, data: bytes) -> None:
        connection = self._connection
        if connection is not None and len(data) > connection.message_size:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": connection.message_size})
        super().publish(topic, data)

    async def open(self, node: str, listener: BrokerListener) -> None:
        self._lease, self._lease_ends, self._state = 0, 0.0, "new"
        self._held.clear()
        self._outbox.clear()
        self._written.clear()
        self._doomed = None
        self._fired.clear()
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

    # The register.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        living = await self.nodes() if limit < 2 or device.user in self._held else None

        def step(record: UserRecord) -> Joined:
            others = {other.node for other in record.devices.values()}
            dead = others - living if living is not None else ()
            if not record.devices and not record.generation and not generation and not self._recovering:
                record.generation = new_generation()
            return record.join(device, limit, generation, fresh=fresh, recovering=self._recovering, dead=dead)

        self._hint(device.user, device.conn_id, held=True)
        joined = await self._step(device.user, step, likely_none=True)
        for other in joined.displaced:
            if other.node == self._node:  # any other node corrects its hint itself
                self._hint(other.user, other.conn_id, held=False)
        return joined

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        def step(record: UserRecord) -> Step:
            return record.leave(device, generation, code, reason, recovering=self._recovering)

        result = await self._step(device.user, step)
        self._hint(device.user, device.conn_id, held=False)
        return result

    async def move(self, device: Device, origin: str) -> Joined | None:
        self._check_lease()
        self._hint(device.user, device.conn_id, held=True)
        moved = await self._change(device.user, partial(UserRecord.move, device=device, origin=origin))
        if moved is None:
            self._hint(device.user, device.conn_id, held=False)
        return moved

    async def set_away(self, device: Device) -> None:
        self._check_lease()
        await self._change(device.user, partial(UserRecord.set_away, device=device))

    async def settle(self, undecided: Transition) -> Step:
        def step(record: UserRecord) -> Step:
            return record.settle(self._node, undecided, recovering=self._recovering)

        return await self._step(undecided.user, step)

    async def pending(self) -> list[Transition]:
        found: list[Transition] = []
        for user in list(self._outbox):
            transitions = (await self._record(user)).of_node(self._node)
            found += transitions
            if not transitions:
                self._emptied(user)
        return sorted(found, key=lambda transition: transition.generation)

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        self._check_lease()
        claimed: list[Transition] = []

        async def claim(user: str, of_user: list[Transition]) -> None:
            def step(record: UserRecord) -> tuple[list[Transition], bool]:
                return record.claim(self._node, of_user), bool(record.of_node(self._node))

            mine, is_rest = await self._change(user, step)
            claimed.extend(mine)
            if not is_rest:
                self._emptied(user)

        by_user = _by_user(transitions)
        results = await asyncio.gather(*[claim(*item) for item in by_user.items()], return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return claimed

    def fired(self, transitions: Iterable[Transition]) -> None:
        # A record with devices keeps its claims until it is written the next time; without, it is to be deleted.
        for transition in transitions:
            if not transition.is_joined and not self._delete_at_once(transition):
                self._fired.setdefault(transition.user, []).append(transition)
        self._clean()

    def _delete_at_once(self, fired: Transition) -> bool:
        """Delete the record if this node wrote it last, and nothing else is in it. If that fails, it runs out."""
        written = self._written.get(fired.user)
        if written is None or not self._ready or self._connection is None:
            return False
        revision, value = written
        record = read_record(fired.user, value)
        record.fired(self._node, [fired])
        if record.is_empty:
            del self._written[fired.user]
            self._connection.delete_soon(revision)
        return record.is_empty

    def _clean(self) -> None:
        """Begin to take claims of fired transitions out of records, so that those without devices are deleted."""
        if self._fired and self._ready and (self._cleaner is None or self._cleaner.done()):
            self._cleaner = asyncio.get_running_loop().create_task(self._take_out())

    async def _take_out(self) -> None:
        async def take_out(user: str) -> bool:
            fired = self._fired.pop(user)
            try:
                await self._change(user, partial(UserRecord.fired, node=self._node, transitions=fired))
            except WseError:
                self._fired[user] = fired + self._fired.get(user, [])
                return False
            return True

        while self._fired:
            if not all(await asyncio.gather(*map(take_out, [*islice(self._fired, MAX_CONCURRENT_CHANGES)]))):
                return  # the next renewal tries again

    async def mine(self) -> AsyncIterator[list[Device]]:
        self._check_lease()
        for user, _, conn_ids in await self._hints(self._node):
            yield [Device(user, conn_id, self._node) for conn_id in conn_ids if conn_id != OUTBOX]

    async def _hints(self, node: str) -> list[tuple[str, int, list[str]]]:
        async def scan(connection: NatsConnection) -> list[tuple[str, int, list[str]]]:
            return [hint async for hint in connection.hints(node)]

        return await self.ask(scan, within=SCAN)

    async def devices(self, user: str) -> list[Device]:
        return by_place((await self._record(user)).devices.values())

    async def _record(self, user: str) -> UserRecord:
        _, value = await self.ask(lambda connection: connection.get(f"user.{user}"))
        return read_record(user, value)

    async def online(self) -> int:
        others, count = await self.ask(lambda connection: connection.keys("node.*.*"))
        meta, _ = await self.ask(lambda connection: connection.keys("meta.>"))
        return count - len(others) - len(meta)

    async def users(self) -> AsyncIterator[str]:
        offset = 0
        while True:
            keys, _ = await self.ask(partial(NatsConnection.keys, which="user.*", offset=offset))
            if not keys:
                return
            for key in keys:
                yield key.removeprefix("user.")
            offset += len(keys)

    async def _step(self, user: str, step: Callable[[UserRecord], S], *, likely_none: bool = False) -> S:
        """A step of this node's lease that may cause transitions."""
        self._check_lease()
        was_empty = user not in self._outbox
        self._outbox[user] = None  # also if the answer is lost
        result = await self._change(user, step, likely_none=likely_none)
        if was_empty and not result.transitions and not self._recovering:
            self._emptied(user)
        return result

    def _emptied(self, user: str) -> None:
        """The user's record has no transitions for this node."""
        if self._outbox.pop(user, self) is None and user not in self._held and self._connection is not None:
            self._connection.hint(self._node, user, ())

    async def _change(self, user: str, step: Callable[[UserRecord], T], *, likely_none: bool = False) -> T:
        """Make a step, which changes the user's record, from what nobody else has changed meanwhile.

        Most users that join have no record, and what this node wrote last is mostly still there. So a step starts from
        such a guess, and reads the record only if it was wrong or the step changes nothing.
        """
        return await self.ask(lambda connection: self._compare_and_set(connection, user, step, likely_none))

    async def _compare_and_set(
        self, connection: NatsConnection, user: str, step: Callable[[UserRecord], T], likely_none: bool
    ) -> T:
        key = f"user.{user}"
        written = self._written.pop(user, None)
        is_guess = likely_none or written is not None
        if written is not None:
            revision, value = written
        else:
            revision, value = (0, b"") if likely_none else await connection.get(key)
        for attempt in range(MAX_ATTEMPTS):
            record = read_record(user, value)
            result = step(record)
            after = write_record(record)
            if after == value:
                if not is_guess:
                    return result
                is_guess = False
                revision, value = await connection.get(key)
                continue
            try:
                if after:
                    ttl = None if record.devices or record.pending else CLAIM_TTL
                    revision = await connection.put(key, after, revision, ttl)
                    self._written[user] = revision, after
                    if len(self._written) > MAX_WRITTEN:
                        del self._written[next(iter(self._written))]
                else:
                    await connection.delete(revision)
            except OutdatedError:
                if attempt or not is_guess:
                    await asyncio.sleep(random.random() * min(0.1, 0.002 * 2**attempt))  # noqa: S311 - no secret
            else:
                return result
            is_guess = False
            revision, value = await connection.get(key)
        raise OutdatedError(f"other nodes changed the record of this user {MAX_ATTEMPTS} times at the same moment")

    def _hint(self, user: str, conn_id: str, *, held: bool) -> None:
        """Note which connections of the user this node holds."""
        held_now = self._held.setdefault(user, set())
        if held:
            held_now.add(conn_id)
        else:
            held_now.discard(conn_id)
        if not held_now:
            del self._held[user]
        if self._connection is not None:
            # A node that reaps this one must find its outbox as well.
            self._connection.hint(self._node, user, held_now or [OUTBOX] * (user in self._outbox))

    # Leases.

    def _check_lease(self) -> None:
        """Refuse a step without a lease in force: others may have reaped this node, and then forgotten it."""
        connection = self._connection
        if connection is not None and (
            not connection.register or asyncio.get_running_loop().time() >= self._lease_ends
        ):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the node's lease is not in force")

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        return await self.ask(lambda connection: self._renew(connection, math.ceil(ttl), register, peers), urgent=True)

    async def _renew(self, connection: NatsConnection, ttl: int, register: str, peers: Collection[str]) -> Lease:
        lease_ends = asyncio.get_running_loop().time() + ttl
        identity = connection.register or await self._identify(connection)
        lease, known = f"node.lease.{self._node}", f"node.known.{self._node}"
        is_kept = False
        if self._lease:
            try:
                self._lease = await connection.put(lease, b"", self._lease, ttl)
                is_kept = self._state == "kept"
            except OutdatedError:
                pass  # the lease has run out or is lost, or the answer to the last renewal was lost
        if not is_kept:
            if connection.register:  # the register may have been lost, and the connection not
                identity = await self._identify(connection)
            # The lease comes first, or a node that reaps between the two would find one that is to be forgotten.
            self._lease = await connection.put(lease, b"", ttl=ttl)
            _, state = await connection.get(known)
            if state in (b"", b"reaping"):
                _, marker = await connection.get(f"node.reaped.{self._node}")
                state = b"reaped" if marker or state else b"new"
                await connection.put(known, state)
            self._state = state.decode()
        self._lease_ends = lease_ends
        if register and register != identity and self._state != "kept":
            for node in (self._node, *peers):
                if (await connection.get(f"node.known.{node}"))[1] != b"kept":
                    try:
                        await connection.put(f"meta.await.{node}", b"", 0, ttl)
                    except OutdatedError:
                        continue  # another node waits for it already
        awaited, _ = await connection.keys("meta.await.*")
        self._recovering = bool(awaited)
        connection.register = identity
        self._clean()
        return Lease(identity, _STATES[self._state], self._recovering, bool(self._outbox))

    async def _identify(self, connection: NatsConnection) -> str:
        """The identity of the register; the first node that asks makes it."""
        try:
            identity = token_hex(8)
            await connection.put("meta.register", identity.encode(), 0)
        except OutdatedError:
            identity = (await connection.get("meta.register"))[1].decode()
        return identity

    async def registered(self) -> None:
        self._check_lease()
        await self._put(f"node.known.{self._node}", b"kept")
        self._state = "kept"
        await self._purge(f"node.reaped.{self._node}")
        await self._purge(f"meta.await.{self._node}")

    async def resign(self) -> None:
        self._lease, self._lease_ends = 0, 0.0
        await self._purge(f"node.lease.{self._node}")

    async def nodes(self) -> frozenset[str]:
        return frozenset((await self._nodes())["lease"])

    async def _nodes(self) -> dict[str, set[str]]:
        """The nodes by what there is of them, of one moment."""
        kinds: dict[str, set[str]] = {"lease": set(), "known": set(), "reaped": set()}
        keys, _ = await self.ask(lambda connection: connection.keys("node.*.*"))
        for key in keys:
            _, kind, node = key.split(".")
            kinds[kind].add(node)
        return kinds

    # Dead nodes.

    async def reap(self) -> list[Transition]:
        self._check_lease()
        if self._doomed is None:
            self._doomed = await self._find_dead()
        try:
            while self._doomed:
                dead, users = next(iter(self._doomed.items()))
                if dead in await self.nodes():
                    users.clear()  # it only slept
                some = [*islice(users, MAX_CONCURRENT_CHANGES)]
                reaped = await self._take_over(dead, {user: users.pop(user) for user in some})
                if not users:
                    del self._doomed[dead]
                    await self.flush()  # the hints are gone
                if reaped:
                    return reaped
        except BaseException:
            self._doomed = None
            raise
        self._doomed = None  # the next time it sees to what is left
        return []

    async def _find_dead(self) -> dict[str, dict[str, int]]:
        """Find what is to be reaped, and forget nodes that have been reaped."""
        doomed: dict[str, dict[str, int]] = {}
        kinds = await self._nodes()
        for node in kinds["known"] - kinds["lease"] - {self._node}:
            await self._put(f"node.known.{node}", b"reaping")
            users = {user: revision for user, revision, _ in await self._hints(node)}
            if not users:
                # Only now: until then another node goes on if this one dies.
                await self._put(f"node.reaped.{node}", b"1", TOMBSTONE_TTL)
                await self._purge(f"node.known.{node}")
                continue
            # All survivors reap now, so each begins with a share of its own, and then sees to the rest.
            survivors = sorted(kinds["lease"])
            share = {user: revision for user, revision in users.items() if self._is_mine(user, survivors)}
            doomed[node] = share or users
        return doomed

    def _is_mine(self, user: str, survivors: list[str]) -> bool:
        return not survivors or survivors[crc32(user.encode()) % len(survivors)] == self._node

    async def _take_over(self, dead: str, users: Mapping[str, int]) -> list[Transition]:
        """Take a dead node's devices and outbox over; what this node must fire.

        Args:
            dead: The node.
            users: Users of whom it has devices or transitions, and the revisions of its hints about them.
        """
        reaped: list[Transition] = []

        async def take(user: str) -> None:
            self._outbox[user] = None

            def step(record: UserRecord) -> tuple[Transition, ...]:
                return record.reap((dead,), self._node, recovering=self._recovering)

            reaped.extend(await self._change(user, step))
            if self._connection is not None:
                # If it only slept, and is back, it has a newer hint by now.
                self._connection.hint(dead, user, (), users[user])

        for result in await asyncio.gather(*map(take, users), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        return reaped

    async def _put(self, key: str, value: bytes, ttl: int | None = None) -> None:
        await self.ask(lambda connection: connection.put(key, value, ttl=ttl))

    async def _purge(self, keys: str) -> None:
        await self.ask(lambda connection: connection.purge(keys))


def _by_user(transitions: Iterable[Transition]) -> dict[str, list[Transition]]:
    by_user: dict[str, list[Transition]] = {}
    for transition in transitions:
        by_user.setdefault(transition.user, []).append(transition)
    return by_user
