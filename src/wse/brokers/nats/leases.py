"""The leases of nodes in the register on NATS."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from typing import TYPE_CHECKING, Literal, NamedTuple

from wse.brokers.nats.bucket import OutdatedError
from wse.core.ports.broker import Lease
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Collection

    from wse.brokers.nats.bucket import Bucket
    from wse.brokers.nats.connection import NatsConnection

_STATES: dict[str, Literal["kept", "reaped", "new"]] = {"kept": "kept", "reaped": "reaped", "new": "new"}


class Nodes(NamedTuple):
    """The nodes by what there is of them, of one moment."""

    lease: frozenset[str]
    known: frozenset[str]

    @property
    def dead(self) -> frozenset[str]:
        """Those that are to be reaped."""
        return self.known - self.lease


class OwnLease:
    """This node's lease.

    Attributes:
        is_recovering: Whether the register is recovering, as of the last renewal.
    """

    def __init__(self) -> None:
        self.reset("")

    def reset(self, node: str) -> None:
        """The broker of this node is being opened."""
        self._node = node
        self._revision = 0  # as far as is known
        self._ends = 0.0  # by the clock of the event loop; never later than by the server's
        self._state = "new"
        self.is_recovering = False

    def check(self, connection: NatsConnection | None) -> None:
        """Refuse a step without a lease in force: others may have reaped this node, and then forgotten it."""
        if connection is not None and (not connection.register or asyncio.get_running_loop().time() >= self._ends):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the node's lease is not in force")

    async def renew(
        self, connection: NatsConnection, ttl: int, register: str, peers: Collection[str], *, has_pending: bool
    ) -> Lease:
        """See `wse.core.ports.broker.Broker.renew`."""
        bucket = connection.bucket
        ends = asyncio.get_running_loop().time() + ttl
        identity = connection.register or await _identify(bucket)
        lease, known = f"node.lease.{self._node}", f"node.known.{self._node}"
        is_kept = False
        if self._revision:
            try:
                self._revision = await bucket.put(lease, b"", self._revision, ttl)
                is_kept = self._state == "kept"
            except OutdatedError:
                pass  # the lease has run out or is lost, or the answer to the last renewal was lost
        if not is_kept:
            if connection.register:  # the register may have been lost, and the connection not
                identity = await _identify(bucket)
            # The lease comes first, or a node that reaps between the two would find one that is to be forgotten.
            self._revision = await bucket.put(lease, b"", ttl=ttl)
            _, state = await bucket.get(known)
            if state in (b"", b"reaping"):
                _, marker = await bucket.get(f"node.reaped.{self._node}")
                state = b"reaped" if marker or state else b"new"
                await bucket.put(known, state)
            self._state = state.decode()
        self._ends = ends
        if register and register != identity and self._state != "kept":
            for node in (self._node, *peers):
                if (await bucket.get(f"node.known.{node}"))[1] != b"kept":
                    try:
                        await bucket.put(f"meta.await.{node}", b"", 0, ttl)
                    except OutdatedError:
                        continue  # another node waits for it already
        awaited, _ = await bucket.keys("meta.await.*")
        self.is_recovering = bool(awaited)
        connection.register = identity
        return Lease(identity, _STATES[self._state], self.is_recovering, has_pending)

    async def registered(self, connection: NatsConnection) -> None:
        """See `wse.core.ports.broker.Broker.registered`."""
        await connection.bucket.put(f"node.known.{self._node}", b"kept")
        self._state = "kept"
        await connection.bucket.purge(f"node.reaped.{self._node}")
        await connection.bucket.purge(f"meta.await.{self._node}")

    async def resign(self, connection: NatsConnection) -> None:
        """See `wse.core.ports.broker.Broker.resign`."""
        await connection.bucket.purge(f"node.lease.{self._node}")

    def end(self) -> None:
        """The node makes no more steps."""
        self._revision, self._ends = 0, 0.0


async def nodes(connection: NatsConnection) -> Nodes:
    """All nodes."""
    kinds: dict[str, set[str]] = {"lease": set(), "known": set(), "reaped": set()}
    keys, _ = await connection.bucket.keys("node.*.*")
    for key in keys:
        _, kind, node = key.split(".")
        kinds[kind].add(node)
    return Nodes(frozenset(kinds["lease"]), frozenset(kinds["known"]))


async def _identify(bucket: Bucket) -> str:
    """The identity of the register; the first node that asks makes it."""
    try:
        identity = token_hex(8)
        await bucket.put("meta.register", identity.encode(), 0)
    except OutdatedError:
        identity = (await bucket.get("meta.register"))[1].decode()
    return identity
