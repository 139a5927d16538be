"""How a node joins the cluster, and leaves it."""

from __future__ import annotations

import itertools
import logging
import secrets
from typing import TYPE_CHECKING

from wse.backoff import Backoff
from wse.core.cluster import envelope
from wse.core.cluster.envelope import ALL, NODE
from wse.errors import ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.departures import Departures
    from wse.core.cluster.inbox import Inbox
    from wse.core.cluster.liveness import Liveness
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.presence import Presence
    from wse.core.cluster.reconciler import Reconciler
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.session.endpoint import Endpoint

logger = logging.getLogger("wse")

RETRY = Backoff(base=0.25, cap=5.0)
"""The waits between two attempts to reach the broker at the start."""

LEAVE_SHARE = 0.6
"""The part of `close_timeout` in which the devices leave. Other nodes remove the devices that are left."""

RESIGN_SHARE = 0.8
"""The part of `close_timeout` by which the lease is resigned, or left to run out. The rest is for unsent messages."""


class Membership:
    """Opens and closes the parts of a node, in the order that loses nothing.

    Args:
        bus: The connection to the other nodes.
        endpoint: Reports errors; time and tasks.
        settings: Times and bounds.
        inbox: Takes what the broker delivers.
        reconciler: Knows the register.
        liveness: Renews the lease.
        departures: Sessions that go to other nodes.
        presence: The devices of this node.
        rpc: Queries to other nodes.
    """

    def __init__(
        self,
        bus: Bus,
        endpoint: Endpoint,
        settings: ClusterSettings,
        inbox: Inbox,
        reconciler: Reconciler,
        liveness: Liveness,
        departures: Departures,
        presence: Presence,
        rpc: NodeRpc,
    ) -> None:
        self._bus = bus
        self._broker = bus.broker
        self._endpoint = endpoint
        self._scheduler = endpoint.scheduler
        self._settings = settings
        self._inbox = inbox
        self._reconciler = reconciler
        self._liveness = liveness
        self._departures = departures
        self._presence = presence
        self._rpc = rpc
        self._opened_at = 0.0
        self._pausing: asyncio.Future[None] | None = None  # between two attempts to reach the broker at the start
        self._opening: list[asyncio.Future[None]] | None = None  # callers that wait for the one that opens it

    @property
    def healthy(self) -> bool:
        """Whether messages reach this node and leave it: the broker is connected and delivers, and the lease holds."""
        return self._bus.is_open and self._broker.connected and self._liveness.healthy

    @property
    def uptime(self) -> float:
        """Seconds since the node has joined."""
        return self._scheduler.time() - self._opened_at

    async def open(self) -> None:
        """Join the cluster, unless the node has joined already; of several concurrent callers, one does it.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        while self._opening is not None:
            opened = self._scheduler.create_future()
            self._opening.append(opened)
            await opened
        if not self._bus.is_open:
            self._opening = []
            try:
                await self._open_in_time()
            finally:
                others, self._opening = self._opening, None
                for opened in others:
                    wake(opened)

    async def _open_in_time(self) -> None:
        """Try again while the broker cannot be reached, for `wait_for_broker` seconds."""
        end = self._scheduler.time() + self._settings.wait_for_broker
        for attempt in itertools.count():
            try:
                await self._open()
            except WseError as exc:
                rest = end - self._scheduler.time()
                if exc.code != ErrorCode.BROKER_UNAVAILABLE or rest <= 0:
                    raise
                if not attempt:
                    logger.warning(
                        "the broker cannot be reached (%s); trying again",
                        exc.__cause__,
                        extra={"kind": "broker-unreached", "code": str(exc.code)},
                    )
            else:
                return
            self._pausing = self._scheduler.create_future()
            timer = self._scheduler.call_later(min(rest, RETRY.delay(attempt)), self._try_again)
            try:
                await self._pausing
            finally:
                timer.cancel()
                self._pausing = None

    def _try_again(self) -> None:
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_result(None)

    async def _open(self) -> None:
        bus = self._bus
        bus.node = secrets.token_hex(8)
        await self._broker.open(bus.node, self._inbox)
        try:
            for topic in (ALL, NODE + bus.node):
                self._broker.subscribe(topic)
            self._reconciler.renewed(await self._broker.renew(self._settings.lease_ttl))
            await self._broker.registered()  # a node that starts has no devices
            self._reconciler.is_disturbed = False
            bus.peers = await self._broker.nodes() - {bus.node}
            self._broker.publish(ALL, envelope.encode(envelope.Hello(bus.node)))
            await self._broker.flush()
        except BaseException:
            await self._broker.close()
            raise
        bus.release()
        bus.is_open = True
        self._opened_at = self._scheduler.time()
        self._liveness.start()

    async def close(self) -> None:
        """Leave the cluster, after all connections have ended; does nothing if the node is not open."""
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_exception(WseError(ErrorCode.BROKER_UNAVAILABLE, {}, "the server was closed meanwhile"))
        if not self._bus.is_open:
            return
        await self._departures.close()
        self._liveness.stop()
        start, timeout = self._scheduler.time(), self._settings.close_timeout
        if self._broker.connected:
            await self._presence.close(LEAVE_SHARE * timeout)
            await self._resign(start + RESIGN_SHARE * timeout - self._scheduler.time())
        self._rpc.close()
        self._bus.is_open = False
        self._presence.reset()
        self._bus.clear()
        await self._broker.close(max(0.0, start + timeout - self._scheduler.time()))

    async def _resign(self, within: float) -> None:
        """Give the lease up, if the broker answers in time."""
        resigned = self._scheduler.create_future()

        def end(cause: Exception | None) -> None:
            if not resigned.done():
                resigned.set_result(None)
                if cause is not None:
                    error = WseError(ErrorCode.BROKER_UNAVAILABLE, {}, "the node could not resign its lease")
                    self._endpoint.report(error, None, cause)

        async def resign() -> None:
            try:
                await self._broker.resign()
            except WseError as exc:
                end(exc)
            else:
                end(None)

        timer = self._scheduler.call_later(within, end, TimeoutError(f"the broker did not answer in {within:.1f} s"))
        self._scheduler.spawn(resign())
        try:
            await resigned
        finally:
            timer.cancel()
