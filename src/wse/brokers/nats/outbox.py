"""What a node holds in the register on NATS: its devices and its outbox, and the hints that lead to both."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from wse.brokers.nats.records import read_record
from wse.brokers.placement import UserRecord
from wse.core.ports.broker import Away, Device
from wse.errors import WseError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from wse.brokers.nats.broker import NatsBroker
    from wse.brokers.nats.changes import Changes
    from wse.brokers.nats.connection import NatsConnection
    from wse.core.ports.broker import Transition

MAX_CONCURRENT_CHANGES = 100
"""Users whose claims are taken out of their records at the same time."""

OUTBOX = "-"
"""Stands in a hint for a connection when the node holds none, and its outbox may hold transitions of the user."""


class Outbox:
    """This node's devices and outbox, as far as it knows without asking.

    Args:
        broker: The way to the register.
        changes: Changes users' records.

    Attributes:
        held: By user, the connections that this node has registered.
    """

    def __init__(self, broker: NatsBroker, changes: Changes) -> None:
        self._broker = broker
        self._changes = changes
        self.held: dict[str, set[str]] = {}
        self._users: dict[str, bool] = {}  # whose record may have transitions for this node; whether a hint says so
        self._fired: dict[str, list[Transition]] = {}  # by user, `left` events whose claims are to be taken out
        self._cleaner: asyncio.Task[None] | None = None

    def reset(self, node: str) -> None:
        """The broker of this node is being opened."""
        self._node = node
        self.held.clear()
        self._users.clear()
        self._fired.clear()

    def __bool__(self) -> bool:
        return bool(self._users)

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def hint(self, user: str, conn_id: str, *, held: bool) -> None:
        """Note which connections of the user this node holds."""
        held_now = self.held.setdefault(user, set())
        if held:
            held_now.add(conn_id)
        else:
            held_now.discard(conn_id)
        if not held_now:
            del self.held[user]
        connection = self._broker.connection
        if connection is not None:
            # A node that reaps this one must find its outbox as well.
            connection.hints.put(self._node, user, held_now or [OUTBOX] * (user in self._users))

    def expect(self, user: str, *, is_hinted: bool = True) -> bool:
        """A step may write transitions into the outbox, also if its answer is lost; whether that was known before."""
        was_known = user in self._users
        self._users[user] = is_hinted or self._users.get(user, False)
        return was_known

    def emptied(self, user: str) -> None:
        """The user's record has no transitions for this node."""
        connection = self._broker.connection
        if self._users.pop(user, False) and user not in self.held and connection is not None:
            connection.hints.put(self._node, user, ())

    async def listed(self, hinted: Mapping[str, Collection[str]], connection: NatsConnection) -> list[Device]:
        """This node's devices of the users of whom hints speak; gone if only the hint has them.

        A hint lags behind when another node has displaced a device, and stays if this node was never told. It lacks a
        device that was registered late, after the node had given it up.
        """
        keys = {user: f"user.{user}" for user in hinted}
        said = {user: set(conn_ids) - {OUTBOX} for user, conn_ids in hinted.items()}
        seen = await connection.bucket.glance([*keys.values()])
        held = {user: self._held_in(user, seen[key][1]) for user, key in keys.items() if key in seen}
        # What was seen may be out of date.
        doubtful = [user for user, conn_ids in said.items() if held.get(user) != conn_ids]
        found = await connection.bucket.get_many([keys[user] for user in doubtful])
        held |= {user: self._held_in(user, value) for user, (_, value) in zip(doubtful, found, strict=True)}
        return [
            Device(user, conn_id, self._node, away=Away.HERE if conn_id in held[user] else Away.GONE)
            for user, conn_ids in said.items()
            for conn_id in conn_ids | held[user]
        ]

    def _held_in(self, user: str, value: bytes) -> set[str]:
        devices = read_record(user, value).devices.values()
        return {device.conn_id for device in devices if device.node == self._node}

    async def pending(self) -> list[Transition]:
        """See `wse.core.ports.broker.Broker.pending`."""
        users = [*self._users]
        values = await self._broker.ask(lambda connection: connection.bucket.get_many([f"user.{u}" for u in users]))
        found: list[Transition] = []
        for user, (_, value) in zip(users, values, strict=True):
            transitions = read_record(user, value).of_node(self._node)
            found += transitions
            if not transitions:
                self.emptied(user)
        return sorted(found, key=lambda transition: transition.generation)

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        """See `wse.core.ports.broker.Broker.claim`."""
        by_user: dict[str, list[Transition]] = {}
        for transition in transitions:
            by_user.setdefault(transition.user, []).append(transition)

        def step(record: UserRecord) -> tuple[list[Transition], bool]:
            return record.claim(self._node, by_user[record.user]), bool(record.of_node(self._node))

        claimed: list[Transition] = []
        for user, (mine, is_rest) in (await self._changes.change_many(by_user, step)).items():
            claimed += mine
            if not is_rest:
                self.emptied(user)
        return claimed

    def fired(self, transitions: Iterable[Transition]) -> None:
        """See `wse.core.ports.broker.Broker.fired`."""
        # A record with devices keeps its claims until it is written the next time; without, it is to be deleted.
        connection = self._broker.connection
        for transition in transitions:
            if transition.is_joined:
                continue
            revision = self._changes.take_fired(self._node, transition) if connection is not None else None
            if connection is not None and revision is not None:
                connection.bucket.delete_soon(revision)  # if that fails, it runs out
            else:
                self._fired.setdefault(transition.user, []).append(transition)
        self.clean()

    def clean(self) -> None:
        """Begin to take claims of fired transitions out of records, so that those without devices are deleted."""
        if self._fired and self._broker.connected and (self._cleaner is None or self._cleaner.done()):
            self._cleaner = asyncio.get_running_loop().create_task(self._take_out())

    async def _take_out(self) -> None:
        async def take_out(user: str) -> bool:
            fired = self._fired.pop(user)
            try:
                await self._changes.change(user, partial(UserRecord.fired, node=self._node, transitions=fired))
            except WseError:
                self._fired[user] = fired + self._fired.get(user, [])
                return False
            return True

        while self._fired:
            if not all(await asyncio.gather(*map(take_out, [*islice(self._fired, MAX_CONCURRENT_CHANGES)]))):
                return  # the next renewal tries again
