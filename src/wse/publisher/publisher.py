"""The publisher, for programs with asyncio."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload
from urllib.parse import urlsplit

import msgspec

from wse.brokers import as_broker, store_of
from wse.core.closing import check_close
from wse.core.cluster.bus import Bus
from wse.core.cluster.envelope import ALL, NODE, OUTSIDE, ROOM, USER, Answer, Drop, Kept, Unread, topic
from wse.core.cluster.envelope import decode as decode_message
from wse.core.cluster.envelope import encode as encode_message
from wse.core.cluster.envelope import message as pack_message
from wse.core.cluster.node_rpc import NodeRpc
from wse.core.cluster.remote_asking import RemoteDevice
from wse.core.hub.calls import call_user, check_mode
from wse.core.hub.kept.form import box_of, packed_for_store
from wse.core.hub.kept.limits import announced
from wse.core.hub.network import DeviceInfo
from wse.core.inbox import Inbox
from wse.core.limits import Limits
from wse.core.names import encode_name
from wse.core.packed import encode
from wse.core.session.endpoint import Endpoint
from wse.errors import CloseReason, ErrorCode, WseError
from wse.protocols.choice import as_protocols
from wse.scheduler import AsyncioScheduler
from wse.types import ClientId, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import WseConnection
    from wse.core.ports.broker import Broker
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.store import Record, Store

CALL_TIMEOUT: Final = 20.0
"""Seconds that a call waits for its answer, unless it says otherwise; as for servers."""

QUERY_TIMEOUT: Final = 1.0
"""Seconds for the answers to queries, of which publishers make none."""


LIMITS_TTL: Final = 60.0
"""Seconds for which the limits of the servers are taken for true."""


def broker_of(broker: str | Broker) -> Broker:
    """The broker of a publisher.

    Raises:
        ValueError: The URL is `memory:`, or as `wse.brokers.from_url`.
        ImportError: As `wse.brokers.from_url`.
    """
    if isinstance(broker, str) and urlsplit(broker).scheme == "memory":
        raise ValueError(
            "a publisher on 'memory:' has a cluster of its own and reaches no server: give it the URL of the servers' "
            "NATS, Redis or Valkey; in a test, give Publisher a MemoryBroker on the servers' MemoryCluster"
        )
    return as_broker(broker)


class Publisher:
    """Sends to users, rooms and everyone, without a server: `async with Publisher("nats://...") as publisher`.

    The methods pass messages to the broker, in order, and do not wait. `flush`, and the end of the context, wait until
    the broker has taken all of them. A message reaches the devices that are connected at that time, as with
    `WseServer.send`.

    Args:
        broker: The URL of the cluster's broker, or a broker.
        protocol: The message protocol of the servers, or several; by default JSON. Each message is packed once per
            protocol. A server that speaks another protocol packs it anew.
        inbox: The limits for messages that are kept; by default those of the servers, which stand in the store.

    Raises:
        ValueError: There is no broker for the URL, or the URL is `memory:`, which would not reach any server.
    """

    def __init__(
        self,
        broker: str | Broker,
        *,
        protocol: Protocol | Iterable[Protocol] | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._broker = broker_of(broker)
        self._inbox = inbox
        self._limits: tuple[Inbox, float] | None = None  # those of the servers, and until when they are taken for true
        self._endpoint = Endpoint(
            (),
            protocols=as_protocols(protocol),
            scheduler=AsyncioScheduler(),
            timeout=CALL_TIMEOUT,
            limits=Limits(),
            debug=False,
            report=lambda error, session: None,  # errors are raised
        )
        self._origin = OUTSIDE + secrets.token_hex(8)
        self._seq = 0
        self._bus = Bus(self._broker, self._endpoint, backlog=0, backlog_bytes=0)
        self._bus.node = self._origin
        self._rpc = NodeRpc(self._bus, _NoDevices(self._endpoint), QUERY_TIMEOUT)
        self._hears = False  # the answers to calls
        self._loss = _Loss(self._rpc)

    async def open(self) -> None:
        """Connect to the broker.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        await self._broker.open(self._origin, self._loss)
        self._bus.is_open = True

    async def close(self) -> None:
        """Send the messages that still wait, and disconnect. Calls that wait for their answers fail."""
        self._rpc.close()
        self._bus.is_open = self._hears = False
        await self._broker.close()

    async def flush(self) -> None:
        """Return when the broker has taken everything that was sent since the last flush.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: messages may be lost, because the connection was lost or the broker does not
                answer. The next flush covers only messages that are sent after this.
        """
        self._loss.check()
        try:
            await self._broker.flush()
        finally:
            self._loss.is_due = False
        self._loss.check()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, exc_type: object, *rest: object) -> None:
        try:
            if exc_type is None:
                await self.flush()
        finally:
            await self.close()

    def send(self, cid: ClientId, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """Send a message to all devices of a user; nothing happens if the user is not connected.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: the message was not sent. `PROTOCOL_VIOLATION`, `MSG_PROCESSING_ERROR`: as
                `WseConnection.send`. `LIMIT_EXCEEDED`: the message is larger than the broker accepts.
            TypeError, ValueError: The `cid` is neither a string nor an integer, or too long.
        """
        self._send(topic(USER, cid), type, payload, None, key)

    async def keep(
        self, cid: ClientId, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """Keep a message for a user, and send it to the user's devices; see `WseServer.keep`.

        Raises:
            WseError, TypeError, ValueError: As `WseServer.keep`.
        """
        return await self._keep(USER, cid, type, payload, key, ttl)

    async def _keep(
        self, kind: str, name: RoomName, type: MessageType, payload: Any, key: str | None, ttl: float | None
    ) -> int:
        self._endpoint.check_type(type)
        store = store_of(None if self._inbox is None else self._inbox.store, self._broker)
        inbox = self._inbox or await self._find_limits(store)
        data = packed_for_store(inbox, self._endpoint.protocols, type, payload, key, ttl)
        record, is_new = await store.keep(box_of(kind, name), data, inbox.bounds, key=key, ttl=ttl)
        if self._broker.connected:  # otherwise the servers find it in the store
            self._seq += 1
            kept = Kept(self._origin, record.number, record.at, data if is_new else b"", record.epoch, self._seq)
            self._broker.publish(topic(kind, name), encode_message(kept))
        if inbox.undelivered is not None and kind == USER:
            await self._hand_over(encode_name(name), record)
        return record.number

    async def _find_limits(self, store: Store) -> Inbox:
        """The limits of the servers: others would cut what they keep."""
        now = self._endpoint.scheduler.time()
        if self._limits is not None and self._limits[1] >= now:
            return self._limits[0]
        found = await announced(store)
        if found is None:  # no server has been there
            return Inbox()
        self._limits = found, now + LIMITS_TTL
        return found

    async def _hand_over(self, user: str, record: Record) -> None:
        """Let a server look whether a message is read."""
        with suppress(WseError):  # the message is kept all the same
            nodes = sorted(await self._broker.nodes())
            if nodes and self._broker.connected:
                message = Unread(self._origin, user, record.number, record.epoch)
                self._broker.publish(NODE + secrets.choice(nodes), encode_message(message))

    def broadcast(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: ClientId | None = None,
        key: MessageKey | None = None,
    ) -> None:
        """Send a message to every connection, except those of an excluded user.

        Raises:
            WseError: As `send`.
        """
        self._send(ALL, type, payload, exclude, key)

    def room(self, name: RoomName) -> PublisherRoom:
        """Return the room of that name, to send to it."""
        return PublisherRoom(self, name)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect all devices of a user.

        Args:
            cid: The user.
            reason: As for `WseServer.drop_client`.
            code: As for `WseServer.drop_client`.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
            ValueError: A code or reason that a close frame cannot carry.
        """
        check_close(code, reason)
        self._publish(topic(USER, cid), encode_message(Drop(self._origin, str(reason), code)))

    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        timeout: float | None = None,
    ) -> list[Any]: ...
    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any: ...
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any:
        """Call a procedure on a user's devices.

        Args:
            cid: The user.
            name: The procedure, as the clients registered it.
            payload: The procedure's argument.
            mode: As for `WseServer.call`.
            timeout: Seconds to wait for an answer; `None` means 20, 0 for ever.

        Raises:
            WseError: `BROKER_UNAVAILABLE`; as `WseServer.call`.
            TypeError, ValueError: The `cid` cannot be a user's in a cluster, or there is no such mode.
        """
        check_mode(mode)
        if not self._hears:
            self._broker.subscribe(NODE + self._origin)
            await self._broker.flush()
            self._hears = True
        devices = await self._broker.devices(encode_name(cid))
        callees = [RemoteDevice(self._rpc, device.node, device.conn_id) for device in devices if not device.away]
        scheduler = self._endpoint.scheduler
        return await call_user(scheduler, callees, cid, name, payload, mode, timeout, CALL_TIMEOUT)

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """Return the user's devices, the oldest first.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        devices = await self._broker.devices(encode_name(cid))
        return [DeviceInfo(cid, device.conn_id, device.node) for device in devices if not device.away]

    async def online(self) -> int:
        """Return the number of connected users.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        return await self._broker.online()

    def _send(
        self, topic: str, type: MessageType, payload: Any, exclude: ClientId | None, key: MessageKey | None
    ) -> None:
        self._endpoint.check_type(type)
        packed = {protocol: encode(protocol, type, payload, key) for protocol in self._endpoint.protocols}
        excluded = None if exclude is None else encode_name(exclude)
        self._seq += 1
        self._publish(topic, pack_message(self._origin, self._seq, type, packed, None, excluded, key))

    def _publish(self, topic: str, data: bytes) -> None:
        if not self._broker.connected:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self._loss.is_due = True
        self._broker.publish(topic, data)


class _NoDevices:
    """The `wse.core.cluster.node_rpc.Devices` of a publisher, which nobody can call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.connections: dict[str, WseConnection] = {}


class _Loss:
    """The `wse.core.ports.broker.BrokerListener` of a publisher: notes that messages may be lost, and takes answers.

    Args:
        rpc: The calls that wait for their answers.

    Attributes:
        is_due: Whether messages were sent since the last flush.
        cause: Why they may not have arrived; None while all is well.
    """

    def __init__(self, rpc: NodeRpc) -> None:
        self._rpc = rpc
        self.is_due = False
        self.cause: BaseException | None = None

    def received(self, topic: str, data: bytes) -> None:
        with suppress(msgspec.MsgspecError):  # of another version, or another program
            message = decode_message(data)
            if isinstance(message, Answer):
                self._rpc.answered(message)

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        if self.is_due:
            self.cause = cause or ConnectionError("the connection to the broker was lost")

    def connection_restored(self) -> None: ...

    def check(self) -> None:
        """Raise what has happened since the last check.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        cause, self.cause = self.cause, None
        if cause is not None:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE, {}, "messages may be lost since the last flush") from cause


class PublisherRoom:
    """A room, as a publisher sees it."""

    def __init__(self, publisher: Publisher, name: RoomName) -> None:
        self._publisher = publisher
        self.name = name

    def send(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: ClientId | None = None,
        key: MessageKey | None = None,
    ) -> None:
        """Send a message to every connection in the room, except those of an excluded user.

        Raises:
            WseError: As `Publisher.send`.
        """
        self._publisher._send(topic(ROOM, self.name), type, payload, exclude, key)

    async def keep(
        self, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """Keep a message for the room, and send it to every connection in the room; see `Room.keep`.

        Raises:
            WseError, TypeError, ValueError: As `WseServer.keep`.
        """
        return await self._publisher._keep(ROOM, self.name, type, payload, key, ttl)
