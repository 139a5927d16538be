"""A node shows the cluster that it lives, and itself that it hears."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.cluster.envelope import Canary
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.cluster.asks import Asks
    from wse.core.cluster.bus import Bus
    from wse.core.cluster.register import Register
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.ports.scheduling import Timer
    from wse.core.session.endpoint import Endpoint


class Vitals:
    """Renews the node's lease, looks for dead nodes, and sends the node a canary through the broker."""

    def __init__(self, bus: Bus, endpoint: Endpoint, settings: ClusterSettings, register: Register, asks: Asks) -> None:
        self._bus = bus
        self._endpoint = endpoint
        self._scheduler = endpoint.scheduler
        self._settings = settings
        self._register = register
        self._asks = asks
        self._timers: dict[str, Timer] = {}
        self._unheard = 0  # canaries that have not come back, and not their age: a node that slept is not deaf
        self._deaf = False
        self._renewed = 0.0  # when the lease was renewed last
        self._in_touch: float | None = None  # since when it has been without a gap
        self._beating = False
        self._reaping = False

    def start(self) -> None:
        """The lease has just been taken."""
        self._unheard = 0
        self._deaf = False
        self._in_touch = None
        self._touch()
        self._every("canary", self._settings.canary, self._send_canary)
        self._every("beat", self._settings.renew, self.beat)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    @property
    def healthy(self) -> bool:
        """Whether the node hears itself and holds its lease."""
        return not self._deaf and self._scheduler.time() - self._renewed < self._settings.lease

    # The canary.

    def _send_canary(self) -> None:
        if not self._bus.broker.connected:
            self._unheard = 0  # which is another trouble, and known
            return
        if self._unheard >= self._settings.deaf_after and not self._deaf:
            self._deaf = True
            self._endpoint.report(WseError(ErrorCode.BROKER_DEAF))
        self._unheard += 1
        self._bus.tell(self._bus.node, Canary(self._bus.node))

    def heard(self) -> None:
        """The canary has come back."""
        self._unheard = 0
        if self._deaf:
            self._deaf = False
            self._register.check_all()

    # The lease.

    def beat(self) -> None:
        """Renew the lease now, unless that is under way."""
        if self._bus.is_open and not self._beating:
            self._beating = True
            self._scheduler.spawn(self._renew())

    def lose_touch(self) -> None:
        """The broker is away."""
        self._in_touch = None

    async def _renew(self) -> None:
        broker, register = self._bus.broker, self._register
        try:
            is_kept = await broker.renew(self._settings.lease)
            self._touch()
            if is_kept and not register.must_ask:
                register.doubt.lease_kept()
            else:
                await register.lost()
            # When the engine has been away every lease has run out: all must have had the time to renew theirs.
            is_calm = self._in_touch is not None and self._renewed - self._in_touch >= self._settings.lease
            self._scheduler.spawn(self._settle(is_calm))  # with many devices it may take longer than a lease
            if is_calm:
                nodes = await broker.nodes()
                self._bus.peers = nodes - {self._bus.node}
                self._asks.alive(nodes)
                if not self._reaping:
                    self._reaping = True
                    self._scheduler.spawn(self._reap())  # likewise: our own lease must not run out meanwhile
            self._bus.catch_up()
        except WseError:
            self._in_touch = None  # `connection_lost` tells, and the next beat tries again
        finally:
            self._beating = False

    async def _reap(self) -> None:
        try:
            await self._register.reap()
        except WseError:
            return  # the next beat tries again
        finally:
            self._reaping = False

    async def _settle(self, is_calm: bool) -> None:
        try:
            await self._register.settle(is_calm)
        except WseError:
            return  # the next beat tries again

    def _touch(self) -> None:
        now = self._scheduler.time()
        if self._in_touch is None or now - self._renewed >= self._settings.lease:
            self._in_touch = now
        self._renewed = now

    def _every(self, name: str, interval: float, do: Callable[[], None]) -> None:
        self._timers[name] = self._scheduler.call_later(interval, self._again, name, interval, do)

    def _again(self, name: str, interval: float, do: Callable[[], None]) -> None:
        self._every(name, interval, do)
        do()
