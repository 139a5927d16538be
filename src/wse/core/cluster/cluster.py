"""One node of a cluster: what its hub does reaches the other nodes, and what they say reaches its hub.

Local delivery comes first, synchronously; then a message is published once, packed. Its own messages that come back are
dropped. A node subscribes to the users and rooms that it holds, and to nothing else.

    Bus        topics, and what waits while the broker is away
    Delivery   messages of the application
    Asks       questions to other nodes, and calls to their devices
    Register   this node's devices in the register of all
    Vitals     the lease, and the canary

`Cluster` makes them, opens and closes them, and hands on what the broker tells; none of them knows it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from wse.core.cluster import envelope
from wse.core.cluster.asks import Asks, RemoteDevice
from wse.core.cluster.bus import Bus
from wse.core.cluster.delivery import Delivery
from wse.core.cluster.envelope import ALL, NODE, ROOM, USER, decode_name, encode_name, topic
from wse.core.cluster.register import Register
from wse.core.cluster.vitals import Vitals
from wse.core.hub.network import DeviceInfo
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable

    from wse.core.cluster.settings import ClusterSettings
    from wse.core.hub.calls import Callee
    from wse.core.hub.connection import ServerSession, WseConnection, WseIdentity
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.broker import Broker
    from wse.core.ports.protocol import Protocol
    from wse.types import ClientId, MessageType, RoomName


PATIENCE = 0.25
"""Seconds between two questions whether other nodes are back."""

LEAVING = 0.6
"""The part of the farewell in which the devices leave. Others take out what is left of them."""

RESIGNING = 0.8
"""The part of it after which the lease is given up, or runs out by itself. The rest is for what is still to be sent."""


class Cluster:
    """This server as a node of its cluster: `server.cluster`.

    Args:
        hub: The connections of this node.
        broker: The way to the others.
        settings: Times and bounds.
        clock: Seconds since the epoch.
        readers: Message protocols to read what nodes of other protocols have packed.
    """

    reaches_others = True

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        settings: ClusterSettings,
        *,
        clock: Callable[[], float],
        readers: Iterable[Protocol],
    ) -> None:
        self.hub = hub
        self.broker = broker
        self.settings = settings
        self._endpoint = hub.endpoint
        self._scheduler = hub.endpoint.scheduler
        self.bus = Bus(broker, hub.endpoint, backlog=settings.backlog, backlog_bytes=settings.backlog_bytes)
        self.delivery = Delivery(self.bus, hub, readers)
        self.asks = Asks(self.bus, hub, settings.query)
        self.register = Register(self.bus, hub, self.asks, clock)
        self.asks.queries |= {"reaped": self.register.reaped, "members": self._members_here, "here": self._here}
        self._vitals = Vitals(self.bus, hub.endpoint, settings, self.register, self.asks)
        self._opening: list[asyncio.Future[None]] | None = None  # while one opens it: the others, who wait
        self._resuming = False

    @property
    def node(self) -> str:
        """The id of this node; a new one each time that it starts."""
        return self.bus.node

    @property
    def lost(self) -> int:
        """How many messages to other nodes were lost because the broker was out of reach for too long. What was under
        way when it went is not among them: nobody knows what became of that.
        """
        return self.bus.lost

    # Life cycle.

    async def open(self) -> None:
        """Become a node of the cluster, unless it is one; of several that ask at the same time, one does it.

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
                await self._open()
            finally:
                others, self._opening = self._opening, None
                for opened in others:
                    if not opened.done():  # it waits no longer
                        opened.set_result(None)

    async def _open(self) -> None:
        bus = self.bus
        bus.node = secrets.token_hex(8)
        await self.broker.open(bus.node, self)
        try:
            for topic in (ALL, NODE + bus.node):
                self.broker.subscribe(topic)
            await self.broker.renew(self.settings.lease)
            bus.peers = await self.broker.nodes() - {bus.node}
            self.broker.publish(ALL, envelope.encode(envelope.Hello(bus.node)))
            await self.broker.flush()
        except BaseException:
            await self.broker.close()
            raise
        bus.release()
        bus.is_open = True
        self._vitals.start()

    async def close(self) -> None:
        """Leave the cluster, when all connections have ended; harmless when it is not open."""
        if not self.bus.is_open:
            return
        self._vitals.stop()
        start, farewell = self._scheduler.time(), self.settings.farewell
        if self.broker.connected:
            await self.register.close(LEAVING * farewell)
            await self._resign(start + RESIGNING * farewell - self._scheduler.time())
        self.bus.is_open = False
        self.register.reset()
        self.asks.close()
        self.bus.clear()
        await self.broker.close(max(0.0, start + farewell - self._scheduler.time()))

    async def _resign(self, within: float) -> None:
        """Give the lease up, if the broker takes that in time."""
        resigned = self._scheduler.create_future()

        def end(cause: Exception | None) -> None:
            if not resigned.done():
                resigned.set_result(None)
                if cause is not None:
                    error = WseError(ErrorCode.BROKER_UNAVAILABLE, {}, "the node could not sign off")
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
        """Whether this node hears and is heard: the broker is reached, delivers, and holds the node's lease."""
        return self.bus.is_open and self.broker.connected and self._vitals.healthy

    # Network: what the hub and its rooms ask.

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        self.register.admit(session, cid, welcome)

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, is_last_here: bool) -> None:
        self.register.leave(conn, identity, code, reason)

    def drop_joining(self, cid: ClientId, reason: str) -> None:
        self.register.drop_joining(cid, reason)

    def send(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
    ) -> None:
        self.delivery.send(topic(kind, name), conns, type, payload, not_conn, not_user)

    def drop(self, cid: ClientId, reason: str) -> None:
        self.bus.say(topic(USER, cid), envelope.Drop(self.node, str(reason)))

    def want_room(self, name: RoomName) -> None:
        self.bus.want(topic(ROOM, name))

    def unwant_room(self, name: RoomName) -> None:
        self.bus.unwant(topic(ROOM, name))

    def enter(self, name: RoomName, cid: ClientId, *, enter: bool) -> None:
        self.bus.say(topic(USER, cid), envelope.Enter(self.node, encode_name(name), enter))

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        devices = await self.broker.devices(encode_name(cid))
        return [DeviceInfo(cid, device.conn_id, device.node) for device in devices]

    async def online(self) -> int:
        return await self.broker.online()

    async def users(self) -> AsyncIterator[ClientId]:
        async for user in self.broker.users():
            yield decode_name(user)

    async def callees(self, cid: ClientId) -> list[Callee]:
        """The user's devices, the oldest first; without the broker, those of this node.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, when this node has none either.
        """
        here = {session.conn.conn_id: session for session in self.hub.sessions_of(cid)}
        try:
            devices = await self.broker.devices(encode_name(cid))
        except WseError:
            if not here:
                raise
            return [*here.values()]
        callees: list[Callee] = []
        for device in devices:
            if device.node != self.node:
                callees.append(RemoteDevice(self.asks, device.node, device.conn_id))
            elif device.conn_id in here:
                callees.append(here.pop(device.conn_id))
        return [*callees, *here.values()]  # an engine that has come back empty does not know of all of them yet

    async def members(self, name: RoomName) -> frozenset[ClientId]:
        """The users in a room on other nodes, as far as these answer in time.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, also when a node that answers could not tell.
        """
        answers = await self.asks.query("members", encode_name(name), strict=True)
        return frozenset(decode_name(user) for users in answers for user in users)

    def _members_here(self, room: str) -> list[str]:
        return [encode_name(cid) for cid in self.hub.rooms.local_users(decode_name(room))]

    def _here(self, _: str) -> str:
        return self.node

    # BrokerListener: what the broker tells.

    def received(self, topic: str, data: bytes) -> None:
        try:
            said = envelope.decode(data)
            if said.origin != self.node or isinstance(said, envelope.Canary):
                self._heard(topic, said)
        except Exception as exc:  # another version's, or a stranger's who can reach the broker
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"topic": topic}, "what another node said makes no sense")
            self._endpoint.report(error, None, exc)

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        self._vitals.lose_touch()
        self.register.doubt.connection_lost()
        self.bus.take_back(unsent)
        self._endpoint.report(WseError(ErrorCode.BROKER_UNAVAILABLE), None, cause)

    def connection_restored(self) -> None:
        self.bus.hold()
        self.register.check_all()
        self._vitals.beat()
        if not self._resuming:
            self._resuming = True
            self._scheduler.spawn(self._resume())

    async def _resume(self) -> None:
        """Say what was kept when the others hear again, too: they have lost their connections as we have ours."""
        missing = set(self.bus.peers)
        deadline = self._scheduler.time() + self.settings.lease  # who is not back by then is dead
        try:
            while self.broker.connected and missing and self._scheduler.time() < deadline:
                missing -= set(await self.asks.query_nodes(missing, "here", "", PATIENCE))
        finally:
            self._resuming = False
            self.bus.release()  # when the connection was lost again, its return will hold it anew
        self.bus.catch_up()

    def _heard(self, topic: str, said: Any) -> None:
        match said:
            case envelope.Message():
                self.delivery.received(topic, said)
            case envelope.Drop():
                self.hub.drop_here(decode_name(topic.removeprefix(USER)), said.reason)
            case envelope.Enter():
                self._enter_here(decode_name(topic.removeprefix(USER)), decode_name(said.room), enter=said.enter)
            case envelope.Displaced():
                self.register.displaced(said.conn_id)
            case envelope.Check():
                self.register.check(topic.removeprefix(USER))
            case envelope.Vouch():
                self.register.doubt.vouched(topic.removeprefix(USER))
            case envelope.Hello():
                self.bus.peers |= {said.origin}
            case envelope.Reaped():
                self.register.reaped_by_another(said.users)
            case envelope.Canary():
                self._vitals.heard()
            case envelope.Call():
                self.asks.called(said)
            case envelope.Query():
                self.asks.queried(said)
            case envelope.Answer():
                self.asks.answered(said)
            case _:
                self.asks.cancelled(said)

    def _enter_here(self, cid: ClientId, room: RoomName, *, enter: bool) -> None:
        rooms = self.hub.rooms
        for session in self.hub.sessions_of(cid):
            (rooms.add if enter else rooms.discard)(room, session.conn)
