"""Publishers send to the users of a cluster from outside: from scripts, workers and other services."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload
from urllib.parse import urlsplit

import msgspec

from wse.brokers import as_broker, store_of
from wse.core.closing import check_close
from wse.core.cluster.bus import Bus
from wse.core.cluster.envelope import ALL, NODE, OUTSIDE, ROOM, USER, Answer, Drop, Kept, topic
from wse.core.cluster.envelope import decode as decode_message
from wse.core.cluster.envelope import encode as encode_message
from wse.core.cluster.envelope import message as pack_message
from wse.core.cluster.node_rpc import NodeRpc
from wse.core.cluster.remote_asking import RemoteDevice
from wse.core.hub.calls import call_user, check_mode
from wse.core.hub.kept.form import box_of, packed_for_store
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
    from collections.abc import Callable, Iterable

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import WseConnection
    from wse.core.ports.broker import Broker
    from wse.core.ports.protocol import Protocol

CALL_TIMEOUT: Final = 20.0
"""Seconds that a call waits for its answer, unless it says otherwise; as for servers."""

QUERY_TIMEOUT: Final = 1.0
"""Seconds for the answers to queries, of which publishers make none."""


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
        inbox: The limits for messages that are kept, as for the servers.

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
        self._inbox = inbox or Inbox()
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
        data = packed_for_store(self._inbox, self._endpoint.protocols, type, payload, ttl)
        store = store_of(self._inbox.store, self._broker)
        record, is_new = await store.keep(box_of(kind, name), data, self._inbox.bounds, key=key, ttl=ttl)
        kept = Kept(self._origin, record.number, record.at, data if is_new else b"")
        if self._broker.connected:  # otherwise the servers find it in the store
            self._broker.publish(topic(kind, name), encode_message(kept))
        return record.number

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


class BlockingPublisher:
    """A `Publisher` for code without asyncio, such as Celery tasks and Django views.

    Its methods return when the broker has taken the message. It connects at the first call, in a thread of its own, and
    again after a fork. If it cannot connect, all calls that wait for the connection fail, and the next call tries
    again. One object may serve any number of threads for as long as the process lives; `close`, or leaving the context,
    ends it.

    Args:
        broker: The URL of the cluster's broker.
        protocol: As for `Publisher`.

    Raises:
        ValueError: As `Publisher`.
    """

    def __init__(self, broker: str, *, protocol: Protocol | Iterable[Protocol] | None = None) -> None:
        self._url = broker
        self._protocols = as_protocols(protocol)
        broker_of(broker)  # for its imports: after a fork during an import, the import lock would be held for ever
        # By process. A forked process has a lock of its own, as the parent's may be held by a thread that the child
        # does not have. It keeps the parent's event loop, because closing that would disturb the shared selector.
        self._locks: dict[int, threading.Lock] = {}
        self._threads: dict[int, PublisherThread] = {}

    def send(self, cid: ClientId, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """As `Publisher.send`."""
        self._do(lambda publisher: publisher.send(cid, type, payload, key=key))

    def broadcast(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: ClientId | None = None,
        key: MessageKey | None = None,
    ) -> None:
        """As `Publisher.broadcast`."""
        self._do(lambda publisher: publisher.broadcast(type, payload, exclude=exclude, key=key))

    def room(self, name: RoomName) -> BlockingRoom:
        """Return the room of that name, to send to it."""
        return BlockingRoom(self, name)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """As `Publisher.drop_client`."""
        self._do(lambda publisher: publisher.drop_client(cid, reason, code))

    @overload
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        timeout: float | None = None,
    ) -> list[Any]: ...
    @overload
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any: ...
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any:
        """As `Publisher.call`."""
        return self._do(lambda publisher: publisher.call(cid, name, payload, mode=mode, timeout=timeout))

    def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """As `Publisher.devices`."""
        devices: list[DeviceInfo] = self._do(lambda publisher: publisher.devices(cid))
        return devices

    def online(self) -> int:
        """As `Publisher.online`."""
        number: int = self._do(lambda publisher: publisher.online())
        return number

    def close(self) -> None:
        """Disconnect after the calls of other threads have ended; the next call connects again.

        Does nothing if it is not connected.
        """
        with self._lock:
            thread = self._threads.pop(os.getpid(), None)
        if thread is not None:
            thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _do(self, step: Callable[[Publisher], Any]) -> Any:
        with self._lock:
            thread = self._threads.get(os.getpid())
            if thread is None:
                thread = PublisherThread(Publisher(self._url, protocol=self._protocols), self._forget)
                self._threads[os.getpid()] = thread
            call = thread.call(step)
        try:
            return call.result()
        except BaseException:
            call.cancel()  # the wait may have been interrupted
            raise

    @property
    def _lock(self) -> threading.Lock:
        """The lock of this process; its holder never waits for anything else."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _forget(self, thread: PublisherThread) -> None:
        with self._lock:
            if self._threads.get(os.getpid()) is thread:
                del self._threads[os.getpid()]


class PublisherThread:
    """A thread with an event loop, and a publisher that it opens at once.

    It ends when it is closed, or when the publisher cannot be opened. All calls that were made before end first.

    Args:
        publisher: The publisher, for this thread's use only.
        ends: Called in the thread before it ends; no calls may be made from then on.
    """

    def __init__(self, publisher: Publisher, ends: Callable[[PublisherThread], None]) -> None:
        self._publisher = publisher
        self._ends = ends
        self._calls: set[Future[Any]] = set()  # in progress
        self._closed: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._opening = self._loop.create_task(publisher.open())
        self._thread = threading.Thread(target=self._run, name="wse-publisher", daemon=True)
        self._thread.start()

    def call(self, step: Callable[[Publisher], Any]) -> Future[Any]:
        """Make a step once the publisher is open. The future is done when the broker has taken the step's messages, or
        with the result of a step that is async.
        """
        call = asyncio.run_coroutine_threadsafe(self._make(step), self._loop)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def close(self) -> None:
        """Close the publisher, once; no calls may be made from then on."""
        self._closed.set_result(None)
        self._thread.join()

    async def _make(self, step: Callable[[Publisher], Any]) -> Any:
        await asyncio.shield(self._opening)  # others wait for it as well
        result = step(self._publisher)
        if isawaitable(result):
            return await result
        await self._publisher.flush()
        return None

    def _run(self) -> None:
        with closing(self._loop):
            self._loop.run_until_complete(self._open_until_closed())

    async def _open_until_closed(self) -> None:
        with suppress(Exception, asyncio.CancelledError):  # every call raises the error
            await self._opening
            await asyncio.wrap_future(self._closed)
        self._ends(self)
        await asyncio.gather(*map(asyncio.wrap_future, self._calls), return_exceptions=True)
        await self._publisher.close()


class BlockingRoom:
    """A room, as a blocking publisher sees it."""

    def __init__(self, publisher: BlockingPublisher, name: RoomName) -> None:
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
        """As `PublisherRoom.send`."""
        self._publisher._do(lambda publisher: publisher.room(self.name).send(type, payload, exclude=exclude, key=key))
