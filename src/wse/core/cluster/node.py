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
    Membership joins the cluster, and leaves it
    Watching   finds out whether a message is got on other nodes
    Inbox      hands what the broker delivers to the part that handles it

`ClusterNode` makes the parts, and is what the hub knows of them. None of them knows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.cluster import envelope
from wse.core.cluster.boards import Boards
from wse.core.cluster.bus import Bus
from wse.core.cluster.claims import Claims
from wse.core.cluster.delivery import Delivery
from wse.core.cluster.departures import Departures
from wse.core.cluster.envelope import ROOM, USER, topic
from wse.core.cluster.firing import Firing
from wse.core.cluster.inbox import Inbox
from wse.core.cluster.liveness import Liveness
from wse.core.cluster.membership import Membership
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
from wse.errors import WseError

if TYPE_CHECKING:
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
        self.bus = Bus(broker, hub.endpoint, backlog=settings.backlog, backlog_bytes=settings.backlog_bytes)
        self.delivery = Delivery(self.bus, hub, readers)
        self.rpc = NodeRpc(self.bus, hub, settings.query_timeout)
        registrations, self.firing = Registrations(), Firing(self.bus, hub)
        self.steps = Steps(self.bus, hub, registrations, self.firing)
        self.reconciler = Reconciler(broker, hub.endpoint.scheduler, registrations, self.steps, self.firing)
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
        self.membership = Membership(
            self.bus,
            hub.endpoint,
            settings,
            self.inbox,
            self.reconciler,
            self.liveness,
            self.departures,
            self.presence,
            self.rpc,
        )
        self._ending: frozenset[str] = frozenset()  # nodes that close

    @property
    def node(self) -> str:
        """The id of this node: a new one each time that it starts."""
        return self.bus.node

    async def open(self) -> None:
        await self.membership.open()

    async def close(self) -> None:
        await self.membership.close()

    @property
    def healthy(self) -> bool:
        """Whether messages reach this node and leave it: the broker is connected and delivers, and the lease holds."""
        return self.membership.healthy

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
        return take_brief(self.hub, uptime=self.membership.uptime)

    def _here(self, conn_ids: str) -> Any:
        """Answer whether this node is there, or where the devices of some connections are."""
        return self.claims.places(conn_ids) if conn_ids else self.node
