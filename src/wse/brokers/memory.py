"""Brokers without an engine, for the nodes of one process, and the default of a server on its own.

    cluster = MemoryCluster()
    one, two = MemoryBroker(cluster), MemoryBroker(cluster)

All nodes of one cluster run on one event loop. A cluster can simulate an engine that fails: see `pause` and `forget`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from wse.brokers.placement import admit, by_age
from wse.core.ports.broker import Gone
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wse.core.ports.broker import BrokerListener, Device, Joined

T = TypeVar("T")


class MemoryCluster:
    """Takes the place of the engine: topics, the register and the leases.

    Args:
        clock: Returns the time in seconds by which leases end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._brokers: dict[MemoryBroker, None] = {}
        self._under_way: deque[tuple[str, bytes]] = deque()
        self._users: dict[str, dict[Device, bool]] = {}  # by device, whether it was the first when it joined
        self._by_node: dict[str, dict[str, Device]] = {}
        self._leases: dict[str, float] = {}
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
        self._users.clear()
        self._by_node.clear()
        self._leases.clear()

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

    def join(self, device: Device, limit: int, fresh: bool) -> Joined:
        joined = admit(self._users.get(device.user, {}), device, limit, fresh)
        device = joined.device
        self._users.setdefault(device.user, {})[device] = joined.first
        self._by_node.setdefault(device.node, {})[device.conn_id] = device
        for other in joined.displaced:
            self.leave(other)
        return joined

    def leave(self, device: Device) -> bool:
        devices = self._users.get(device.user, {})
        registered = next((other for other in devices if other.conn_id == device.conn_id), None)
        if registered is None:
            return False
        del devices[registered]
        of_node = self._by_node[registered.node]
        del of_node[registered.conn_id]
        if not of_node:
            del self._by_node[registered.node]
        if devices:
            return False
        del self._users[device.user]
        return True

    def devices(self, user: str) -> list[Device]:
        return by_age(self._users.get(user, {}))

    def users(self) -> list[str]:
        return list(self._users)

    @property
    def online(self) -> int:
        return len(self._users)

    # Leases.

    def renew(self, node: str, ttl: float) -> bool:
        in_force = node in self.nodes()
        self._leases[node] = self._clock() + ttl
        return in_force

    def resign(self, node: str) -> None:
        self._leases.pop(node, None)

    def nodes(self) -> frozenset[str]:
        now = self._clock()
        return frozenset(node for node, until in self._leases.items() if until > now)

    def reap(self) -> list[Gone]:
        alive = self.nodes()
        self._leases = {node: until for node, until in self._leases.items() if node in alive}
        dead = [device for node, devices in self._by_node.items() if node not in alive for device in devices.values()]
        return [Gone(device, self.leave(device)) for device in dead]


class MemoryBroker:
    """A `wse.core.ports.broker.Broker` for one node of a cluster in this process.

    Args:
        cluster: The cluster that it shares with other nodes; by default one of its own.
    """

    def __init__(self, cluster: MemoryCluster | None = None) -> None:
        self.cluster = MemoryCluster() if cluster is None else cluster
        self._loop: asyncio.AbstractEventLoop | None = None  # of the node, while the broker is open
        self._listener: BrokerListener
        self._node = ""
        self._last: dict[str, bool] = {}  # by connection id, the answers of `leave` that were lost
        self._is_new = False  # the lease is new, and the answer that says so was lost

    @property
    def connected(self) -> bool:
        return self._loop is not None and self.cluster.reachable

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

    async def join(self, device: Device, limit: int, *, fresh: bool = True) -> Joined:
        joined = self._reach().join(device, limit, fresh)
        self._last.pop(device.conn_id, None)
        return self._answer(joined)

    async def leave(self, device: Device) -> bool:
        is_last = self._reach().leave(device) or self._last.get(device.conn_id, False)
        self._last[device.conn_id] = is_last
        self._answer(None)
        del self._last[device.conn_id]
        return is_last

    async def devices(self, user: str) -> list[Device]:
        return self._reach().devices(user)

    async def online(self) -> int:
        return self._reach().online

    async def users(self) -> AsyncIterator[str]:
        for user in self._reach().users():
            yield user

    # Leases.

    async def renew(self, ttl: float) -> bool:
        is_kept = self._reach().renew(self._node, ttl) and not self._is_new
        self._is_new = not is_kept
        self._answer(None)
        self._is_new = False
        return is_kept

    async def resign(self) -> None:
        self._reach().resign(self._node)

    async def nodes(self) -> frozenset[str]:
        return self._reach().nodes()

    async def reap(self) -> list[Gone]:
        return self._answer(self._reach().reap())

    def _answer(self, answer: T) -> T:
        if not self.cluster.answers:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from TimeoutError("the answer is lost")
        return answer

    def _reach(self) -> MemoryCluster:
        if not self.cluster.reachable:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the cluster is paused")
        return self.cluster
