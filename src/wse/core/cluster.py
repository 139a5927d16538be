"""One node of a cluster: what its hub does reaches the other nodes, and what they say reaches its hub.

Local delivery comes first, synchronously; then a message is published once, packed. Its own messages that come back are
dropped. A node subscribes to the users and rooms that it holds, and to nothing else.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wse.core import envelope
from wse.core.asks import Asks, RemoteDevice
from wse.core.envelope import ALL, NODE, ROOM, USER, decode_name, encode_name
from wse.core.fanout import deliver, without
from wse.core.packed import Packed, encode
from wse.core.register import Register
from wse.core.rooms import open_rooms
from wse.core.vitals import Vitals
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

    from wse.core.broker import Broker
    from wse.core.calls import Callee
    from wse.core.connection import WseConnection
    from wse.core.hub import Hub
    from wse.core.ports import Protocol
    from wse.types import ClientId, MessageType, RoomName


PATIENCE = 0.25
"""Seconds between two questions whether other nodes are back."""

LEAVING = 0.6
"""The part of the farewell in which the devices leave. Others take out what is left of them."""

RESIGNING = 0.8
"""The part of it after which the lease is given up, or runs out by itself. The rest is for what is still to be sent."""

CAUGHT_UP = 16 * 1024 * 1024
"""Bytes of the backlog that are published at a time: brokers take no more than 64 MiB at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """The times and bounds of a cluster; the same for all its nodes.

    Args:
        lease: Seconds after which a node that does not renew its lease is dead. Others begin to take its devices out
            `renew` seconds after that at the latest; on NATS, whose leases end at whole seconds, one more.
        renew: Seconds between two renewals, and between two looks for dead nodes.
        canary: Seconds between two messages that a node sends itself through the broker.
        deaf_after: How many of these may fail to come back until the node says that the broker is deaf.
        query: Seconds that other nodes have to tell who of theirs is in a room.
        backlog: How many messages to other nodes are kept while the broker cannot be reached.
        backlog_bytes: How many bytes they may have.
        farewell: Seconds that a node takes at most to sign off when it closes; to cut the connection to an engine that
            hangs takes up to one more.
    """

    lease: float = 5.0
    renew: float = 1.0
    canary: float = 1.0
    deaf_after: int = 3
    query: float = 1.0
    backlog: int = 10_000
    backlog_bytes: int = 16 * 1024 * 1024
    farewell: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.renew < self.lease:
            raise ValueError(f"a lease of {self.lease} s must be renewed before it ends, not every {self.renew} s")
        if min(self.canary, self.query, self.farewell) <= 0 or self.deaf_after < 1:
            raise ValueError("the times of a cluster are seconds above 0, and deaf_after is at least 1")
        if min(self.backlog, self.backlog_bytes) < 0:
            raise ValueError("a backlog cannot be less than empty")


class Cluster:
    """This server as a node of its cluster: `server.cluster`.

    Args:
        hub: The connections of this node.
        broker: The way to the others.
        settings: Times and bounds.
        clock: Seconds since the epoch.
        readers: Message protocols to read what nodes of other protocols have packed.

    Attributes:
        node: The id of this node; a new one each time that it starts.
        lost: How many messages to other nodes were lost because the broker was out of reach for too long. What was
            under way when it went is not among them: nobody knows what became of that.
    """

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
        self.clock = clock
        self.node = ""
        self.lost = 0
        self.register = Register(self)
        self.peers: frozenset[str] = frozenset()  # the other nodes, when all was well
        self.asks = Asks(self, {"reaped": self.register.reaped, "members": self._members_here, "here": self._here})
        self._endpoint = hub.endpoint
        self._scheduler = hub.endpoint.scheduler
        self._readers = {protocol.name: protocol for protocol in (*readers, *hub.endpoint.protocols)}
        self.is_open = False
        self._opening: list[asyncio.Future[None]] | None = None  # while one opens it: the others, who wait
        self._interest: dict[str, int] = {}
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._backlog_bytes = 0
        self._lost_now = 0  # since the connection was lost
        self._waits_for_peers = False
        self._resuming = False
        self._vitals = Vitals(self)

    # Life cycle.

    async def attend(self) -> None:
        """Become a node of the cluster, unless it is one; of several that ask at the same time, one does it.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        while self._opening is not None:
            opened = self._scheduler.create_future()
            self._opening.append(opened)
            await opened
        if not self.is_open:
            self._opening = []
            try:
                await self._open()
            finally:
                others, self._opening = self._opening, None
                for opened in others:
                    if not opened.done():  # it waits no longer
                        opened.set_result(None)

    async def _open(self) -> None:
        self.node = secrets.token_hex(8)
        await self.broker.open(self.node, self)
        try:
            for topic in (ALL, NODE + self.node):
                self.broker.subscribe(topic)
            await self.broker.renew(self.settings.lease)
            self.peers = await self.broker.nodes() - {self.node}
            self.broker.publish(ALL, envelope.encode(envelope.Hello(self.node)))
            await self.broker.flush()
        except BaseException:
            await self.broker.close()
            raise
        self._waits_for_peers = False
        self.is_open = True
        self._vitals.start()

    async def close(self) -> None:
        """Leave the cluster, when all connections have ended; harmless when it is not open."""
        if not self.is_open:
            return
        self._vitals.stop()
        start, farewell = self._scheduler.time(), self.settings.farewell
        if self.broker.connected:
            await self.register.close(LEAVING * farewell)
            await self._resign(start + RESIGNING * farewell - self._scheduler.time())
        self.is_open = False
        self.register.reset()
        self.asks.close()
        self._interest.clear()
        self._backlog.clear()
        self._backlog_bytes = 0
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
        return self.is_open and self.broker.connected and self._vitals.healthy

    # Interest.

    def want(self, topic: str) -> bool:
        """One more here wants the topic; whether it is the first."""
        count = self._interest.get(topic, 0)
        self._interest[topic] = count + 1
        if not count:
            self.broker.subscribe(topic)
        return not count

    def unwant(self, topic: str) -> None:
        """One less here wants the topic."""
        count = self._interest.get(topic, 0)
        if count > 1:
            self._interest[topic] = count - 1
        elif count:
            del self._interest[topic]
            self.broker.unsubscribe(topic)

    # What the hub and its rooms say.

    def send(
        self,
        topic: str,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
    ) -> None:
        """Send a message to connections of this node, and to those of other nodes that want the topic.

        Args:
            topic: Who wants it.
            conns: Who gets it here.
            type: The message's type.
            payload: What it carries.
            not_conn: A connection that does not get it elsewhere.
            not_user: A user who does not get it elsewhere.

        Raises:
            WseError: As `WseConnection.send`, if a connection of this node cannot get it, or none anywhere.
            TypeError, ValueError: Who is excluded has a `cid` that cannot be a user's in a cluster.
        """
        self._endpoint.check_type(type)
        packed: dict[Protocol, Packed] = {}
        failure: WseError | None = None
        for protocol in self._endpoint.protocols:
            try:
                packed[protocol] = encode(protocol, type, payload)
            except WseError as exc:  # one protocol may carry what another one cannot
                failure = exc
        if failure is not None and not (packed and all(conn._session.protocol in packed for conn in conns)):
            raise failure
        data = envelope.message(self.node, type, packed, not_conn, not_user)
        deliver(self._endpoint, conns, type, packed)
        self.publish(topic, data)

    def say(self, topic: str, said: envelope.Said) -> None:
        """Say something to the nodes that want the topic."""
        self.publish(topic, envelope.encode(said))

    def tell(self, node: str, said: envelope.Said) -> None:
        """Say something to one node, if it can be said now: later it would be of no use."""
        if self.is_open and self.broker.connected:
            self._publish(NODE + node, envelope.encode(said))

    def publish(self, topic: str, data: bytes) -> None:
        """Publish, or keep it until the broker is reached again."""
        if not self.is_open:
            return
        if not self._backlog and not self._waits_for_peers and self.broker.connected:
            self._publish(topic, data)
        else:
            self._keep(topic, data)

    def _keep(self, topic: str, data: bytes) -> None:
        if len(self._backlog) < self.settings.backlog and self._backlog_bytes + len(data) <= (
            self.settings.backlog_bytes
        ):
            self._backlog.append((topic, data))
            self._backlog_bytes += len(data)
        else:
            self._lost_now += 1
            self.lost += 1

    def _publish(self, topic: str, data: bytes) -> None:
        try:
            self.broker.publish(topic, data)
        except WseError as exc:
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"topic": topic}, "a message cannot cross to other nodes")
            self._endpoint.report(error, None, exc)

    def catch_up(self) -> None:
        """Say what was kept, and what could not be."""
        if self._waits_for_peers:
            return
        published = 0
        while self._backlog and self.broker.connected and published < CAUGHT_UP:
            topic, data = self._backlog.popleft()
            self._backlog_bytes -= len(data)
            published += len(data)
            self._publish(topic, data)
        if self._lost_now:
            lost, self._lost_now = self._lost_now, 0
            self._endpoint.report(WseError(ErrorCode.BROKER_LOST_MESSAGES, {"lost": lost}))

    # Who is there.

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

    async def members(self, room: RoomName) -> frozenset[ClientId]:
        """The users in a room on other nodes, as far as these answer in time.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, also when a node that answers could not tell.
        """
        answers = await self.asks.query("members", encode_name(room), strict=True)
        return frozenset(decode_name(user) for users in answers for user in users)

    def _members_here(self, room: str) -> list[str]:
        rooms = self.hub.rooms
        return [] if rooms is None else [encode_name(cid) for cid in rooms.local_users(decode_name(room))]

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
        if unsent and self.is_open:
            newer, self._backlog, self._backlog_bytes = self._backlog, deque(), 0
            for topic, data in (*unsent, *newer):
                if not topic.startswith(NODE):  # what one node is told is of no use to it later
                    self._keep(topic, data)
        self._endpoint.report(WseError(ErrorCode.BROKER_UNAVAILABLE), None, cause)

    def connection_restored(self) -> None:
        self._waits_for_peers = True
        self.register.check_all()
        self._vitals.beat()
        if not self._resuming:
            self._resuming = True
            self._scheduler.spawn(self._resume())

    async def _resume(self) -> None:
        """Say what was kept when the others hear again, too: they have lost their connections as we have ours."""
        missing = set(self.peers)
        deadline = self._scheduler.time() + self.settings.lease  # who is not back by then is dead
        try:
            while self.broker.connected and missing and self._scheduler.time() < deadline:
                missing -= set(await self.asks.query_nodes(missing, "here", "", PATIENCE))
        finally:
            self._resuming = False
            self._waits_for_peers = False  # when the connection was lost again, its return will set it anew
        self.catch_up()

    def _here(self, _: str) -> str:
        return self.node

    def _heard(self, topic: str, said: Any) -> None:
        match said:
            case envelope.Message():
                self._deliver(self._receivers(topic), said)
            case envelope.Drop():
                self.hub.drop_here(decode_name(topic.removeprefix(USER)), said.reason)
            case envelope.Enter():
                self._enter(decode_name(topic.removeprefix(USER)), decode_name(said.room), enter=said.enter)
            case envelope.Displaced():
                self.register.displaced(said.conn_id)
            case envelope.Check():
                self.register.check(topic.removeprefix(USER))
            case envelope.Vouch():
                self.register.doubt.vouched(topic.removeprefix(USER))
            case envelope.Hello():
                self.peers |= {said.origin}
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

    def _receivers(self, topic: str) -> Collection[WseConnection]:
        if topic == ALL:
            return self.hub.connections.values()
        if topic.startswith(USER):
            return [session.conn for session in self.hub.sessions_of(decode_name(topic.removeprefix(USER)))]
        rooms = self.hub.rooms
        return () if rooms is None else rooms.local(decode_name(topic.removeprefix(ROOM)))

    def _deliver(self, conns: Collection[WseConnection], message: envelope.Message) -> None:
        if message.not_conn is not None or message.not_user is not None:
            cid = None if message.not_user is None else decode_name(message.not_user)
            conns = without(conns, message.not_conn, cid)
        if conns:
            spoken: Iterable[Protocol] = self._endpoint.protocols
            if len(self._endpoint.protocols) > 1:
                spoken = {conn._session.protocol for conn in conns}
            forms: dict[Protocol, Packed] = {}
            for protocol in spoken:
                try:
                    forms[protocol] = self._packed(protocol, message)
                except Exception as exc:
                    problem = f"what another node sent does not reach clients of {protocol.name}"
                    self._endpoint.report(WseError(ErrorCode.MSG_PROCESSING_ERROR, {}, problem), None, exc)
                    conns = [conn for conn in conns if conn._session.protocol is not protocol]
            if forms:
                deliver(self._endpoint, conns, message.kind, forms)

    def _packed(self, protocol: Protocol, message: envelope.Message) -> Packed:
        """The message as it came, or, for a protocol that its sender does not have, packed anew."""
        form = message.forms.get(protocol.name)
        if form is not None:
            return Packed(form[1], form[0])
        for name, (_, data) in message.forms.items():
            reader = self._readers.get(name)
            if reader is not None:
                type_, payload, _ = reader.unpack(data)
                return encode(protocol, type_, payload)
        raise ValueError(f"it is packed in protocols that this node does not have: {', '.join(message.forms)}")

    def _enter(self, cid: ClientId, room: RoomName, *, enter: bool) -> None:
        rooms = open_rooms(self.hub)
        for session in self.hub.sessions_of(cid):
            (rooms.add if enter else rooms.discard)(room, session.conn)
