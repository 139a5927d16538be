"""Brokers without an engine, for the nodes of one process, and the default of a server on its own.

    cluster = MemoryCluster()
    one, two = MemoryBroker(cluster), MemoryBroker(cluster)

All nodes of one cluster run on one event loop. A cluster can simulate an engine that fails: see `pause` and `forget`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Literal, TypeVar

from wse.brokers.memory_store import MemoryStore
from wse.brokers.placement import UserRecord, by_place
from wse.core.ports.broker import Lease
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator

    from wse.core.ports.broker import BrokerListener, Device, Joined, Step, Transition

T = TypeVar("T")


TOMBSTONE_TTL = 600.0
"""Seconds for which the numbers of a user without devices, and a node that was reaped, are remembered."""

PAGE = 500
"""Devices in a page of `mine`."""


@dataclass(slots=True)
class LeaseRecord:
    """A node's lease, as the register has it.

    Attributes:
        epoch: The unbroken series of renewals that it belongs to. Steps of another epoch are refused.
        until: When it runs out.
        state: What the node is told until it has registered its devices.
        is_reaped: Whether others have taken the node's devices out.
    """

    epoch: str
    until: float
    state: Literal["kept", "reaped", "new"] = "new"
    is_reaped: bool = False


class MemoryCluster:
    """Takes the place of the engine: topics, the register and the leases.

    Args:
        clock: Returns the time in seconds by which leases end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._brokers: dict[MemoryBroker, None] = {}
        self._under_way: deque[tuple[str, bytes]] = deque()
        self.forget()
        self.store = MemoryStore()
        self.topics: dict[str, dict[MemoryBroker, None]] = {}
        self.reachable = True
        self.answers = True
        """Whether steps of the register are answered. While False, they are made but their answers are lost."""

    # Simulated failures.

    def pause(self) -> None:
        """Be out of reach for all nodes, until `resume`; messages in flight are lost."""
        if self.reachable:
            self.reachable = False
            self._under_way.clear()
            for broker in self._brokers:
                broker.lose()

    def resume(self) -> None:
        """Be in reach again, with the register as it was."""
        if not self.reachable:
            self.reachable = True
            for broker in self._brokers:
                broker.restore()

    def forget(self) -> None:
        """Lose the register and all leases, like an engine that was restarted."""
        self._identity = token_hex(8)
        self._users: dict[str, UserRecord] = {}
        self._gone: dict[str, float] = {}  # users without devices, and until when their numbers are remembered
        self._leases: dict[str, LeaseRecord] = {}
        self._awaited: dict[str, float] = {}  # nodes that have not registered after a loss, and until when they may

    def attach(self, broker: MemoryBroker) -> None:
        self._brokers[broker] = None

    def detach(self, broker: MemoryBroker) -> None:
        self._brokers.pop(broker, None)

    # Messages.

    def publish(self, loop: asyncio.AbstractEventLoop, topic: str, data: bytes) -> None:
        if not self._under_way:
            loop.call_soon(self._deliver)
        self._under_way.append((topic, data))

    def _deliver(self) -> None:
        under_way, self._under_way = self._under_way, deque()
        for topic, data in under_way:
            for broker in tuple(self.topics.get(topic, ())):
                broker.deliver(topic, data)

    # The register.

    def join(self, device: Device, limit: int, generation: int, fresh: bool) -> Joined:
        record = self._record(device.user)
        dead = self._leases.keys() - self.nodes() if len(record.devices) >= limit else ()
        joined = record.join(device, limit, generation, fresh=fresh, recovering=self.is_recovering, dead=dead)
        self._keep(record)
        return joined

    def leave(self, device: Device, generation: int, code: int, reason: str) -> Step:
        record = self._record(device.user)
        step = record.leave(device, generation, code, reason, recovering=self.is_recovering)
        self._keep(record)
        return step

    def move(self, device: Device, origin: str) -> Joined | None:
        record = self._record(device.user)
        moved = record.move(device, origin)
        self._keep(record)
        return moved

    def set_away(self, device: Device) -> None:
        record = self._record(device.user)
        record.set_away(device)
        self._keep(record)

    def settle(self, node: str, undecided: Transition) -> Step:
        record = self._record(undecided.user)
        step = record.settle(node, undecided, recovering=self.is_recovering)
        self._keep(record)
        return step

    def reap(self, node: str) -> list[Transition]:
        dead: set[str] = set()
        transitions: list[Transition] = []
        living = self.nodes()
        for name in self._leases.keys() - living if node in living else ():  # a dead node leaves that to others
            lease = self._leases[name]
            if not lease.is_reaped:
                dead.add(name)
                lease.is_reaped = True
            elif lease.until + TOMBSTONE_TTL < self._clock():
                del self._leases[name]
        for record in list(self._users.values()) if dead else ():
            transitions += record.reap(dead, node, recovering=self.is_recovering)
            self._keep(record)
        return transitions

    def claim(self, node: str, transitions: Iterable[Transition]) -> list[Transition]:
        claimed: list[Transition] = []
        for transition in transitions:
            record = self._users.get(transition.user)
            if record is not None:
                claimed += record.claim(node, [transition])
        return claimed

    def fired(self, node: str, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            record = self._users.get(transition.user)
            if record is not None:
                record.fired(node, [transition])
                self._keep(record)

    def pending(self, node: str) -> list[Transition]:
        return [transition for record in self._users.values() for transition in record.of_node(node)]

    def mine(self, node: str) -> Iterator[list[Device]]:
        devices = [d for record in self._users.values() for d in record.devices.values() if d.node == node]
        return (devices[start : start + PAGE] for start in range(0, len(devices), PAGE))

    def devices(self, user: str) -> list[Device]:
        record = self._users.get(user)
        return [] if record is None else by_place(record.devices.values())

    def users(self) -> list[str]:
        return [user for user, record in self._users.items() if record.devices]

    def _record(self, user: str) -> UserRecord:
        now = self._clock()
        for gone in list(self._gone):
            if self._gone[gone] > now:
                break
            del self._gone[gone], self._users[gone]
        return self._users.setdefault(user, UserRecord(user))

    def _keep(self, record: UserRecord) -> None:
        """Remember the numbers of a user without devices for a while."""
        self._gone.pop(record.user, None)
        if record.is_empty:
            self._gone[record.user] = self._clock() + TOMBSTONE_TTL

    # Leases.

    @property
    def is_recovering(self) -> bool:
        now = self._clock()
        return any(until > now for until in self._awaited.values())

    def renew(self, node: str, epoch: str, fresh: str, ttl: float, known: str, peers: Collection[str]) -> str:
        """Renew a lease; the epoch that is in force from now on, which is the fresh one unless the old one was kept."""
        now = self._clock()
        lease = self._leases.get(node)
        if lease is None:
            lease = self._leases[node] = LeaseRecord(fresh, now)
        elif lease.is_reaped:
            lease.state, lease.is_reaped, lease.epoch = "reaped", False, fresh
        elif lease.epoch != epoch:
            lease.epoch = fresh
        lease.until = now + ttl
        if known and known != self._identity and lease.state != "kept":
            for name in (node, *peers):
                other = self._leases.get(name)
                if other is None or other.state != "kept":
                    self._awaited.setdefault(name, now + ttl)
        return lease.epoch

    def lease(self, node: str) -> Lease:
        has_pending = any(record.of_node(node) for record in self._users.values() if record.pending)
        return Lease(self._identity, self._leases[node].state, self.is_recovering, has_pending)

    def registered(self, node: str) -> None:
        self._leases[node].state = "kept"
        self._awaited.pop(node, None)

    def is_in_force(self, node: str, epoch: str) -> bool:
        lease = self._leases.get(node)
        return lease is not None and lease.epoch == epoch and not lease.is_reaped

    def resign(self, node: str) -> None:
        lease = self._leases.get(node)
        if lease is not None:
            lease.until = self._clock()

    def nodes(self) -> frozenset[str]:
        now = self._clock()
        return frozenset(node for node, lease in self._leases.items() if lease.until > now)


class MemoryBroker:
    """A `wse.core.ports.broker.Broker` for one node of a cluster in this process.

    Args:
        cluster: The cluster that it shares with other nodes; by default one of its own.
    """

    spreads = False

    def __init__(self, cluster: MemoryCluster | None = None) -> None:
        self.cluster = MemoryCluster() if cluster is None else cluster
        self._loop: asyncio.AbstractEventLoop | None = None  # of the node, while the broker is open
        self._listener: BrokerListener
        self._node = ""
        self._epoch = ""

    @property
    def connected(self) -> bool:
        return self._loop is not None and self.cluster.reachable

    @property
    def store(self) -> MemoryStore:
        """Keeps messages, for all nodes of the cluster."""
        return self.cluster.store

    async def open(self, node: str, listener: BrokerListener) -> None:
        self._reach()
        self._node = node
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.cluster.attach(self)

    async def close(self, within: float = 3.0) -> None:
        self._loop = None
        self.cluster.detach(self)
        for topic in [topic for topic, brokers in self.cluster.topics.items() if self in brokers]:
            self.unsubscribe(topic)

    # Called by the cluster.

    def deliver(self, topic: str, data: bytes) -> None:
        # The message before may have led to closing or unsubscribing.
        if self in self.cluster.topics.get(topic, ()) and self.connected:
            self._listener.received(topic, data)

    def lose(self) -> None:
        self._epoch = ""
        self._tell_soon(self._listener.connection_lost, ConnectionError("the cluster is paused"), [])

    def restore(self) -> None:
        self._tell_soon(self._listener.connection_restored)

    def _tell_soon(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        self._loop.call_soon(self._tell, callback, *args)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            callback(*args)

    # Messages.

    def publish(self, topic: str, data: bytes) -> None:
        if self._loop is not None and self.cluster.reachable:
            self.cluster.publish(self._loop, topic, data)

    def subscribe(self, topic: str) -> None:
        self.cluster.topics.setdefault(topic, {})[self] = None

    def unsubscribe(self, topic: str) -> None:
        brokers = self.cluster.topics.get(topic, {})
        brokers.pop(self, None)
        if not brokers:
            self.cluster.topics.pop(topic, None)

    async def flush(self) -> None:
        self._reach()

    # The register.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        return self._answer(self._step().join(device, limit, generation, fresh))

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        return self._answer(self._step().leave(device, generation, code, reason))

    async def move(self, device: Device, origin: str) -> Joined | None:
        return self._answer(self._step().move(device, origin))

    async def set_away(self, device: Device) -> None:
        self._step().set_away(device)
        self._answer(None)

    async def settle(self, undecided: Transition) -> Step:
        return self._answer(self._step().settle(self._node, undecided))

    async def reap(self) -> list[Transition]:
        cluster = self._step()
        if self._node not in cluster.nodes():
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the node's lease has run out")
        return self._answer(cluster.reap(self._node))

    async def pending(self) -> list[Transition]:
        return sorted(self._step().pending(self._node), key=lambda transition: transition.generation)

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        return self._answer(self._step().claim(self._node, transitions))

    def fired(self, transitions: Iterable[Transition]) -> None:
        if self.connected and self.cluster.answers:
            self.cluster.fired(self._node, transitions)

    async def mine(self) -> AsyncIterator[list[Device]]:
        for page in self._step().mine(self._node):
            yield page

    async def devices(self, user: str) -> list[Device]:
        return self._reach().devices(user)

    async def online(self) -> int:
        return len(self._reach().users())

    async def users(self) -> AsyncIterator[str]:
        for user in self._reach().users():
            yield user

    # Leases.

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        cluster = self._reach()
        epoch = cluster.renew(self._node, self._epoch, token_hex(8), ttl, register, peers)
        lease = self._answer(cluster.lease(self._node))
        self._epoch = epoch
        return lease

    async def registered(self) -> None:
        self._step().registered(self._node)

    async def resign(self) -> None:
        self._reach().resign(self._node)

    async def nodes(self) -> frozenset[str]:
        return self._reach().nodes()

    def _step(self) -> MemoryCluster:
        """The cluster, if this node's lease lets it change the register."""
        cluster = self._reach()
        if not cluster.is_in_force(self._node, self._epoch):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the node's lease is not in force")
        return cluster

    def _answer(self, answer: T) -> T:
        if not self.cluster.answers:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from TimeoutError("the answer is lost")
        return answer

    def _reach(self) -> MemoryCluster:
        if not self.cluster.reachable:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the cluster is paused")
        return self.cluster
