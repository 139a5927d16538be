"""What dead nodes have left in the register on NATS, and how others take it over.

The dead node's hints lead to its users. Each of those that reap begins with a share of its own. The next time it goes
through the rest, of which nothing is left if the others have not died meanwhile. The hints are deleted when nothing is
left behind them: until then another node goes on if this one dies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

from wse.brokers.nats.hints import TURN
from wse.brokers.nats.leases import nodes

if TYPE_CHECKING:
    from wse.brokers.nats.broker import NatsBroker
    from wse.brokers.nats.changes import Changes
    from wse.brokers.nats.leases import OwnLease
    from wse.brokers.nats.outbox import Outbox
    from wse.brokers.placement import UserRecord
    from wse.core.ports.broker import Transition

MAX_TAKEN = 250
"""Users that a dead node's devices are taken from, and told of, together."""

TOMBSTONE_TTL = 600
"""Seconds for which it is remembered that a node was reaped."""


@dataclass(slots=True)
class Estate:
    """What a dead node has left.

    Attributes:
        users: Those that are to be looked at now.
        rest: Those of others' shares.
        last: The highest revision of its hints.
        open: Users about whom this node, or another one (True), has still to fire something.
    """

    users: deque[str] = field(default_factory=deque)
    rest: list[str] = field(default_factory=list)
    last: int = 0
    open: dict[str, bool] = field(default_factory=dict)


class Reaping:
    """Takes dead nodes' devices and outboxes over.

    Args:
        broker: The way to the register.
        lease: This node's lease.
        changes: Changes users' records.
        outbox: This node's outbox.
    """

    def __init__(self, broker: NatsBroker, lease: OwnLease, changes: Changes, outbox: Outbox) -> None:
        self._broker = broker
        self._lease = lease
        self._changes = changes
        self._outbox = outbox
        self._estates: dict[str, Estate] = {}  # by dead node
        self._is_under_way = False  # whether all dead nodes are in it, as far as is known

    def reset(self, node: str) -> None:
        """The broker of this node is being opened."""
        self._node = node
        self._give_up()

    def _give_up(self) -> None:
        self._estates.clear()
        self._is_under_way = False

    async def reap(self) -> list[Transition]:
        """See `wse.core.ports.broker.Broker.reap`."""
        try:
            if not self._is_under_way:
                await self._look()
                self._is_under_way = True
            for dead in [*self._estates]:
                if transitions := await self._go_on(dead, self._estates[dead]):
                    return transitions
        except BaseException:
            self._give_up()
            raise
        self._is_under_way = False
        return []

    async def _look(self) -> None:
        """Find what is to be reaped, and forget nodes of which nothing is left."""
        found = await self._broker.ask(nodes)
        survivors = sorted(found.lease)
        emptied: list[str] = []
        for node in found.dead - {self._node} - self._estates.keys():
            await self._broker.put(f"node.known.{node}", b"reaping")
            hints = await self._broker.hints(node)
            if not hints:
                emptied.append(node)
                continue
            estate = Estate()
            for number, (user, revision, _) in enumerate(hints):
                if not number % TURN:
                    await asyncio.sleep(0)
                (estate.users if self._is_mine(user, survivors) else estate.rest).append(user)
                estate.last = max(estate.last, revision)
            estate.rest.reverse()  # others begin at the other end
            self._estates[node] = estate
        # A node that died while it reaped another is in that one's estate, and may have transitions there.
        for node in emptied if not self._estates else ():
            await self._broker.put(f"node.reaped.{node}", b"1", TOMBSTONE_TTL)
            await self._broker.purge(f"node.known.{node}")

    def _is_mine(self, user: str, survivors: list[str]) -> bool:
        return not survivors or survivors[crc32(user.encode()) % len(survivors)] == self._node

    async def _go_on(self, dead: str, estate: Estate) -> list[Transition]:
        """Look at users until there is something that this node must fire, or nobody is left."""
        while estate.users:
            found = await self._broker.ask(nodes)
            if dead in found.lease:  # it only slept
                del self._estates[dead]
                return []
            if transitions := await self._take_over(estate, found.dead - {self._node}):
                return transitions
        # What this node had to fire it has claimed meanwhile. What others have is looked at once more the next time.
        estate.users.extend(user for user, is_of_others in estate.open.items() if is_of_others or user in self._outbox)
        estate.users.extend(estate.rest)
        estate.open.clear()
        estate.rest.clear()
        if not estate.users:
            del self._estates[dead]
            await self._broker.ask(lambda connection: connection.hints.purge(dead, estate.last))
        return []

    async def _take_over(self, estate: Estate, dead: frozenset[str]) -> list[Transition]:
        """Take over what dead nodes have of some users; what this node must fire."""
        users = [estate.users.popleft() for _ in range(min(MAX_TAKEN, len(estate.users)))]
        known = {user for user in users if self._outbox.expect(user, is_hinted=False)}

        def step(record: UserRecord) -> tuple[tuple[Transition, ...], set[str]]:
            transitions = record.reap(dead, self._node, recovering=self._lease.is_recovering)
            return transitions, {owner for owner, _ in record.pending}

        told: list[Transition] = []
        for user, (transitions, owners) in (await self._changes.change_many(users, step)).items():
            told += transitions
            if owners:
                estate.open[user] = owners != {self._node}
            if self._node not in owners and user not in known:
                self._outbox.emptied(user)
        return told
