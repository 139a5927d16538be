"""One node of a cluster: it connects its hub to the hubs of the other nodes.

A message is first delivered locally, synchronously, and then published once, packed. The node drops its own messages
when they come back. It subscribes to the users and rooms that it holds, and to nothing else.

    Bus        topics, and the backlog while the broker is away
    Delivery   messages of the application
    NodeRpc    queries to other nodes, and calls to their devices; with RemoteAsking and RemoteServing for streams
    Claims     sessions that come from other nodes; Departures, those that go there
    Presence   users come and go; with Registrations, Steps, Firing and Reconciler
    Boards     the presence of rooms
    Liveness   the lease, and the canary
    Watching   finds out whether a message is got on other nodes
    Inbox      hands what the broker delivers to the part that handles it

`ClusterNode` makes the parts, opens and closes them. None of them knows it.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from typing import TYPE_CHECKING, Any

from wse.backoff import Backoff
from wse.core.cluster import envelope
from wse.core.cluster.boards import Boards
from wse.core.cluster.bus import Bus
from wse.core.cluster.claims import Claims
from wse.core.cluster.delivery import Delivery
from wse.core.cluster.departures import Departures
from wse.core.cluster.envelope import ALL, NODE, ROOM, USER, topic
from wse.core.cluster.firing import Firing
from wse.core.cluster.inbox import Inbox
from wse.core.cluster.liveness import Liveness
from wse.core.cluster.node_rpc import NodeRpc
from wse.core.cluster.presence import Presence
from wse.core.cluster.reconciler import Reconciler
from wse.core.cluster.registration import Registrations
from wse.core.cluster.remote_asking import RemoteDevice
from wse.core.cluster.steps import Steps
from wse.core.cluster.watching import Watching
from wse.core.hub.census import take_brief
from wse.core.hub.network import DeviceInfo
from wse.core.names import decode_name, encode_name
from wse.core.ports.broker import Away
from wse.errors import ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Sequence

    from wse.core.cluster.claims import Fetched
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.hub.calls import Callee
    from wse.core.hub.connection import ServerSession, WseConnection, WseIdentity
    from wse.core.hub.fallback import Watch
    from wse.core.hub.handshake import Returning
    from wse.core.hub.hub import Hub
    from wse.core.hub.presence.board import Board, Entry
    from wse.core.hub.tickets import Claim, Refusal
    from wse.core.packed import Packed
    from wse.core.ports.broker import Broker
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.store import Record
    from wse.types import ClientId, MessageKey, MessageType, RoomName


logger = logging.getLogger("wse")

RETRY = Backoff(base=0.25, cap=5.0)
"""The waits between two attempts to reach the broker at the start."""

LEAVE_SHARE = 0.6
"""The part of `close_timeout` in which the devices leave. Other nodes remove the devices that are left."""

RESIGN_SHARE = 0.8
"""The part of `close_timeout` by which the lease is resigned, or left to run out. The rest is for unsent messages."""


class ClusterNode:
    """One node of a cluster; a `wse.core.hub.network.Network`.

    Args:
        hub: The connections of this node.
        broker: The connection to the other nodes.
        settings: Times and bounds.
        readers: Message protocols to read what nodes of other protocols have packed.
    """

    reaches_others = True

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        settings: ClusterSettings,
        *,
        readers: Iterable[Protocol],
    ) -> None:
        self.hub = hub
        self.broker = broker
        self.settings = settings
        self._endpoint = hub.endpoint
        self._scheduler = hub.endpoint.scheduler
        self.bus = Bus(broker, hub.endpoint, backlog=settings.backlog, backlog_bytes=settings.backlog_bytes)
        self.delivery = Delivery(self.bus, hub, readers)
        self.rpc = NodeRpc(self.bus, hub, settings.query_timeout)
        registrations, self.firing = Registrations(), Firing(self.bus, hub)
        self.steps = Steps(self.bus, hub, registrations, self.firing)
        self.reconciler = Reconciler(broker, self._scheduler, registrations, self.steps, self.firing)
        self.presence = Presence(self.bus, hub, registrations, self.steps, self.firing, self.reconciler)
        self.claims = Claims(self.bus, hub, self.delivery, self.rpc, self.presence)
        self.departures = Departures(self.bus, hub, self.delivery, self.rpc, self.presence)
        self.boards = Boards(self.bus, hub, self.rpc, settings)
        self.liveness = Liveness(self.bus, hub.endpoint, settings, self.reconciler, self.rpc, self.boards)
        self.watching = Watching(self.bus, hub)
        self.inbox = Inbox(
            self.bus,
            hub,
            self.delivery,
            self.rpc,
            self.claims,
            self.departures,
            self.steps,
            self.reconciler,
            self.liveness,
            self.watching,
            self.boards,
            restore_within=settings.lease_ttl,
        )
        self.rpc.queries |= {"members": self._members_here, "here": self._here, "end": self._peer_ends}
        self.rpc.queries["stats"] = self._stats
        self._opened_at = 0.0
        self._ending: frozenset[str] = frozenset()  # nodes that close
        self._pausing: asyncio.Future[None] | None = None  # between two attempts to reach the broker at the start
        self._opening: list[asyncio.Future[None]] | None = None  # callers that wait for the one that opens it

    @property
    def node(self) -> str:
        """The id of this node: a new one each time that it starts."""
        return self.bus.node

    # Life cycle.

    async def open(self) -> None:
        """Join the cluster, unless the node has joined already; of several concurrent callers, one does it.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        while self._opening is not None:
            opened = self._scheduler.create_future()
            self._opening.append(opened)
            await opened
        if not self.bus.is_open:
            self._opening = []
            try:
                await self._open_in_time()
            finally:
                others, self._opening = self._opening, None
                for opened in others:
                    wake(opened)

    async def _open_in_time(self) -> None:
        """Try again while the broker cannot be reached, for `wait_for_broker` seconds."""
        end = self._scheduler.time() + self.settings.wait_for_broker
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
        bus = self.bus
        bus.node = secrets.token_hex(8)
        await self.broker.open(bus.node, self.inbox)
        try:
            for topic in (ALL, NODE + bus.node):
                self.broker.subscribe(topic)
            self.reconciler.renewed(await self.broker.renew(self.settings.lease_ttl))
            await self.broker.registered()  # a node that starts has no devices
            self.reconciler.is_disturbed = False
            bus.peers = await self.broker.nodes() - {bus.node}
            self.broker.publish(ALL, envelope.encode(envelope.Hello(bus.node)))
            await self.broker.flush()
        except BaseException:
            await self.broker.close()
            raise
        bus.release()
        bus.is_open = True
        self._opened_at = self._scheduler.time()
        self.liveness.start()

    async def close(self) -> None:
        """Leave the cluster, after all connections have ended; does nothing if the node is not open."""
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_exception(WseError(ErrorCode.BROKER_UNAVAILABLE, {}, "the server was closed meanwhile"))
        if not self.bus.is_open:
            return
        await self.departures.close()
        self.liveness.stop()
        start, timeout = self._scheduler.time(), self.settings.close_timeout
        if self.broker.connected:
            await self.presence.close(LEAVE_SHARE * timeout)
            await self._resign(start + RESIGN_SHARE * timeout - self._scheduler.time())
        self.rpc.close()
        self.bus.is_open = False
        self.presence.reset()
        self.bus.clear()
        await self.broker.close(max(0.0, start + timeout - self._scheduler.time()))

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
                await self.broker.resign()
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

    @property
    def healthy(self) -> bool:
        """Whether messages reach this node and leave it: the broker is connected and delivers, and the lease holds."""
        return self.bus.is_open and self.broker.connected and self.liveness.healthy

    # The methods of `Network`, for the hub and its rooms.

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        self.presence.admit(session, cid, welcome)

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, grace: float | None) -> None:
        self.presence.leave(conn, identity, code, reason, grace or 0.0)

    @property
    def name(self) -> str:
        return self.node

    @property
    def has_others(self) -> bool:
        return self.bus.is_current and bool(self.bus.peers - self._ending)

    def announce_end(self) -> None:
        for peer in self.bus.peers:
            self.bus.send_to(peer, envelope.Query(self.node, 0, "end", self.node))

    def _peer_ends(self, node: str) -> None:
        """Another node closes. If all close, none waits for clients that would take their sessions to another."""
        self._ending = (self._ending & self.bus.peers) | {node}
        if self.hub.resumption is not None and not self.has_others:
            self.hub.resumption.stop_waiting()

    async def fetch(
        self, holder: str, claim: Claim, cid: ClientId, protocol: str, is_wanted: Callable[[], bool]
    ) -> Fetched | Refusal:
        return await self.claims.fetch(holder, claim, cid, protocol, is_wanted)

    async def find(self, holder: str, claim: Claim) -> Returning | None:
        return await self.claims.find(holder, claim)

    def mark(self, conn: WseConnection) -> None:
        self.presence.mark(conn)

    def moved(self, conn: WseConnection, to: str) -> None:
        self.presence.moved(conn)

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None:
        self.presence.drop_joining(cid, reason, code)
        self.claims.dropped(encode_name(cid), reason, code)

    def send(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
        key: MessageKey | None,
    ) -> None:
        self.delivery.send(topic(kind, name), conns, type, payload, not_conn, not_user, key)

    def kept(self, kind: str, name: Hashable, record: Record) -> None:
        self.delivery.kept(topic(kind, name), record)

    def watch(self, watch: Watch) -> None:
        self.watching.watch(watch)

    def drop(self, cid: ClientId, reason: str, code: int) -> None:
        self.bus.publish(topic(USER, cid), envelope.Drop(self.node, str(reason), code))

    async def subscribed(self) -> None:
        await self.broker.flush()

    def want_room(self, name: RoomName) -> None:
        self.bus.want(topic(ROOM, name))

    def unwant_room(self, name: RoomName) -> None:
        self.bus.unwant(topic(ROOM, name))

    def enter(self, name: RoomName, cid: ClientId, *, enter: bool) -> None:
        self.bus.publish(topic(USER, cid), envelope.Enter(self.node, encode_name(name), enter))

    def open_board(self, board: Board) -> None:
        self.boards.open(board)

    def close_board(self, board: Board) -> None:
        self.boards.close(board)

    def post(self, board: Board, entries: list[Entry]) -> None:
        self.boards.post(board, entries)

    async def gathered(self, board: Board) -> None:
        await self.boards.gathered(board)

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        devices = await self.broker.devices(encode_name(cid))
        return [
            DeviceInfo(cid, device.conn_id, device.node, device.away is Away.DETACHED)
            for device in devices
            if device.away is not Away.GONE
        ]

    async def online(self) -> int:
        return await self.broker.online()

    async def users(self) -> AsyncIterator[ClientId]:
        async for user in self.broker.users():
            yield decode_name(user)

    async def callees(self, cid: ClientId) -> list[Callee]:
        """The user's devices, those that are away first, and the oldest before newer ones; while the broker is away,
        only those of this node.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: the broker is away, and the user has no device on this node.
        """
        here = {session.conn.conn_id: session for session in self.hub.sessions_of(cid)}
        try:
            devices = await self.broker.devices(encode_name(cid))
        except WseError:
            if not here:
                raise
            return [*here.values()]
        away: list[Callee] = []
        present: list[Callee] = []
        for device in devices:
            session = here.pop(device.conn_id, None)
            if session is not None:
                (present if session.conn.attached else away).append(session)
            elif device.node != self.node and device.away is not Away.GONE:
                remote = RemoteDevice(self.rpc, device.node, device.conn_id)
                (away if device.away else present).append(remote)
        # An engine that has come back empty does not know all of them yet.
        return [*away, *present, *here.values()]

    async def locate(self, callees: Sequence[Callee]) -> list[Callee]:
        return await self.rpc.asking.locate(callees)

    async def members(self, name: RoomName) -> frozenset[ClientId]:
        """The users in a room on the other nodes that answer in time.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: the broker is away, or a node answers with an error.
        """
        answers = await self.rpc.query("members", encode_name(name), strict=True)
        return frozenset(decode_name(user) for users in answers for user in users)

    def _members_here(self, room: str) -> list[str]:
        return [encode_name(cid) for cid in self.hub.rooms.local_users(decode_name(room))]

    def _stats(self, _: str) -> dict[str, float]:
        """What `wse top` shows of this node."""
        return take_brief(self.hub, uptime=self._scheduler.time() - self._opened_at)

    def _here(self, conn_ids: str) -> Any:
        """Answer whether this node is there, or where the devices of some connections are."""
        return self.claims.places(conn_ids) if conn_ids else self.node
