"""Shows the cluster that a node lives, and the node that the broker delivers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.cluster.envelope import Canary
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.cluster.boards import Boards
    from wse.core.cluster.bus import Bus
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.reconciler import Reconciler
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.ports.broker import Lease
    from wse.core.ports.scheduling import Timer
    from wse.core.session.endpoint import Endpoint


RECONCILE_INTERVAL = 30.0
"""Seconds between two reconciliations when nothing has disturbed the cluster."""


REFUSED = "the engine is reached, and does not renew the node's lease"


class Liveness:
    """Renews the node's lease, looks for dead nodes, and sends the node a canary through the broker."""

    def __init__(
        self,
        bus: Bus,
        endpoint: Endpoint,
        settings: ClusterSettings,
        reconciler: Reconciler,
        rpc: NodeRpc,
        boards: Boards,
    ) -> None:
        self._bus = bus
        self._endpoint = endpoint
        self._scheduler = endpoint.scheduler
        self._settings = settings
        self._reconciler = reconciler
        self._rpc = rpc
        self._boards = boards
        self._timers: dict[str, Timer] = {}
        self._misses = 0  # canaries that have not come back; their age would say nothing about a node that slept
        self._deaf = False
        self._renewed = 0.0  # when the lease was renewed last
        self._renewed_since: float | None = None  # since when it has been without a gap
        self._renewing = False
        self._failing = False
        self._maintaining = False
        self._reconcile_at = 0.0

    def start(self) -> None:
        """Start: the node has just taken its lease."""
        self._misses = 0
        self._deaf = False
        self._renewed_since = None
        self._mark_renewed()
        self._every("canary", self._settings.canary_interval, self._send_canary)
        self._every("renew", self._settings.renew_interval, self.renew)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    @property
    def healthy(self) -> bool:
        """Whether the node's canaries come back and it holds its lease."""
        return not self._deaf and self._scheduler.time() - self._renewed < self._settings.lease_ttl

    @property
    def lease_age(self) -> float:
        """Seconds since the lease was renewed; 0 for a node that is not open."""
        return self._scheduler.time() - self._renewed if self._bus.is_open else 0.0

    # The canary.

    def _send_canary(self) -> None:
        if not self._bus.broker.connected:
            self._misses = 0  # the loss of the connection has been reported already
            return
        if self._misses >= self._settings.canary_misses and not self._deaf:
            self._deaf = True
            self._endpoint.report(WseError(ErrorCode.BROKER_DEAF))
        self._misses += 1
        self._bus.send_to(self._bus.node, Canary(self._bus.node))

    def canary_returned(self) -> None:
        """The canary has come back."""
        self._misses = 0
        if self._deaf:
            self._deaf = False
            self._reconciler.is_disturbed = True

    # The lease.

    def renew(self) -> None:
        """Renew the lease now, unless a renewal is in progress."""
        if self._bus.is_open and not self._renewing:
            self._renewing = True
            self._scheduler.spawn(self._renew())

    def connection_lost(self) -> None:
        """The broker is away."""
        self._renewed_since = None

    async def _renew(self) -> None:
        broker, reconciler = self._bus.broker, self._reconciler
        try:
            lease = await broker.renew(self._settings.lease_ttl, register=reconciler.register, peers=self._bus.peers)
            self._mark_renewed()
            reconciler.renewed(lease)
            if not self._maintaining:
                self._maintaining = True
                self._scheduler.spawn(self._maintain(lease))  # it may take longer than the lease lasts
            self._bus.catch_up()
            self._failing = False
        except WseError as exc:
            self._renewed_since = None  # the next renewal tries again
            if self._bus.broker.connected and not self._failing:  # else the loss of the connection is reported
                self._failing = True
                self._endpoint.report(WseError(ErrorCode.BROKER_UNAVAILABLE, {}, REFUSED), None, exc.__cause__)
        finally:
            self._renewing = False

    async def _maintain(self, lease: Lease) -> None:
        """Bring the register and this node into agreement, and see to dead nodes."""
        broker, reconciler = self._bus.broker, self._reconciler
        now = self._scheduler.time()
        try:
            if reconciler.is_disturbed or now >= self._reconcile_at:
                await reconciler.reconcile()
                self._reconcile_at = now + RECONCILE_INTERVAL
            else:
                await reconciler.settle()
            if lease.state != "kept":
                await broker.registered()
            if lease.has_pending:
                await reconciler.fire_pending(recovering=lease.is_recovering)
            # After the engine was away every lease has run out: all nodes must have had the time to renew theirs.
            since = self._renewed_since
            if since is not None and self._renewed - since >= self._settings.lease_ttl:
                nodes = await broker.nodes()
                self._bus.peers = nodes - {self._bus.node}
                self._rpc.alive(nodes)
                self._boards.alive(nodes)
                await reconciler.reap()
        except WseError:
            return  # the next renewal tries again
        finally:
            self._maintaining = False

    def _mark_renewed(self) -> None:
        now = self._scheduler.time()
        if self._renewed_since is None or now - self._renewed >= self._settings.lease_ttl:
            self._renewed_since = now
        self._renewed = now

    def _every(self, name: str, interval: float, do: Callable[[], None]) -> None:
        self._timers[name] = self._scheduler.call_later(interval, self._again, name, interval, do)

    def _again(self, name: str, interval: float, do: Callable[[], None]) -> None:
        self._every(name, interval, do)
        do()
