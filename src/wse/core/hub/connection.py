"""One device at the server, and the user that it belongs to: the sessions, and the objects that applications see."""

from __future__ import annotations

import secrets
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from wse.core.closing import OUTLIVED, RETURNS, check_close
from wse.core.hub.auth import unix_time
from wse.core.limits import TokenBucket
from wse.core.session.asking import Stream
from wse.core.session.current_call import shorter
from wse.core.session.session import Session
from wse.errors import CloseReason
from wse.types import ClientId, MessageKey, MessageType, ReadyState
from wse.validation.checks import all_received, received

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from wse.core.hub.auth import AuthExtension, Expiry
    from wse.core.hub.calls import Mode
    from wse.core.hub.fallback import Fallbacks
    from wse.core.hub.handshake import Challenge
    from wse.core.hub.kept.inboxes import Device
    from wse.core.hub.resumption import Resumption
    from wse.core.hub.sockets import Sockets
    from wse.core.hub.tickets import Ticket
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Request
    from wse.core.session.asking import Items
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.signals import Signal
    from wse.errors import WseError

R = typing.TypeVar("R")


class SessionOwner(typing.Protocol):
    """A server, as its sessions see it."""

    endpoint: Endpoint
    ignored: Signal[WseConnection, Any, Any]
    auth: AuthExtension
    server: Any
    sockets: Sockets
    resumption: Resumption | None

    def leave(self, session: ServerSession, code: int, reason: str) -> None:
        """Note that the connection has ended; it may not have been valid."""


class Users(typing.Protocol):
    """A server, as its users see it."""

    fallbacks: Fallbacks

    def send(
        self, cid: ClientId, type: MessageType, payload: Any, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send to a user's valid connections."""

    def drop_client(self, cid: ClientId, reason: str, code: int) -> None:
        """Disconnect all devices of a user."""

    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any,
        mode: Mode,
        timeout: float | None,
        *,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Any:
        """Call a procedure on a user's devices."""


class ServerSession(Session):
    """A session at the server; the application sees it as a `WseConnection`.

    Attributes:
        conn: The connection that the application sees.
        expiry: Its end at a given time, if there is one.
        ticket: What its client needs to come back, if it has asked for that.
        inbox: The device, if it has asked for messages that are kept.
    """

    __slots__ = ("_owner", "conn", "expiry", "inbox", "ticket")

    def __init__(self, owner: SessionOwner, link: Link, request: Request, protocol: Protocol) -> None:
        super().__init__(owner.endpoint, link, protocol)
        self._owner = owner
        self.expiry: Expiry | None = None
        self.ticket: Ticket | None = None
        self.inbox: Device | None = None
        self.conn = WseConnection(self, secrets.token_hex(8), request)
        self._conn = self.conn

    def describe(self) -> str:
        conn = self.conn
        return "stranger" if conn.cid is None else f"{conn.cid}#{conn.conn_id}"

    def context(self) -> dict[str, Any]:
        return {"cid": self.conn.cid, "conn_id": self.conn.conn_id}

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        ignored = self._owner.ignored
        if ignored.has_listeners and self.running_handlers >= self.endpoint.max_handlers:
            self.exceeded("handlers", CloseReason.LIMIT_HANDLERS)
        else:
            ignored._emit_on(self, self.conn, type_, payload)

    def _on_end(self, code: int, reason: str) -> None:
        if self.expiry is not None:
            self.expiry.stop()
        self._owner.leave(self, code, reason)

    def outlives(self, code: int) -> bool:
        sockets = self._owner.sockets
        return code in OUTLIVED and (sockets.closing is None or sockets.keeps_sessions)

    def _on_detached(self, code: int, reason: str) -> None:
        assert self._owner.resumption is not None  # it has made the ledger
        self._owner.resumption.note_detached(self, code, reason)

    def cut(self, code: int, reason: str) -> None:
        """Close the socket; a session that outlives it goes on, any other ends."""
        if self.ledger is None or self._owner.resumption is None:
            self.close(code, reason)
        elif self.ledger.is_attached and not self.ended:
            self._owner.resumption.cut(self, code, reason)

    def excuse(self, messages: int) -> None:
        """Let the client send that many messages that it has had to keep, whatever its rate."""

    def _on_closed(self) -> None:
        self._owner.sockets.remove(self)


class MeteredSession(ServerSession):
    """A session whose peer may send only so many messages and bytes a second."""

    __slots__ = ("_bytes", "_excused", "_messages")

    def __init__(self, owner: SessionOwner, link: Link, request: Request, protocol: Protocol) -> None:
        super().__init__(owner, link, request, protocol)
        limits, scheduler = owner.endpoint.limits, owner.endpoint.scheduler
        self._messages = self._bytes = None
        self._excused = 0
        if limits.message_rate is not None:
            burst = limits.message_burst or max(1, 2 * limits.message_rate)
            self._messages = TokenBucket(scheduler, limits.message_rate, burst)
        if limits.byte_rate is not None:
            burst = limits.byte_burst or max(limits.message_size, 2 * limits.byte_rate)
            self._bytes = TokenBucket(scheduler, limits.byte_rate, burst)

    def receive(self, data: str | bytes | memoryview) -> None:
        if self.ended:
            return
        if self._excused:
            self._excused -= 1
            super().receive(data)
        elif self._messages is not None and not self._messages.take(1):
            self.exceeded("message_rate", CloseReason.LIMIT_MESSAGE_RATE)
        elif self._bytes is not None and not self._bytes.take(len(data)):
            self.exceeded("byte_rate", CloseReason.LIMIT_BYTE_RATE)
        else:
            super().receive(data)

    def excuse(self, messages: int) -> None:
        self._excused = messages


class WseConnection:
    """One device of a user: one WebSocket, or a session over several of them, one after the other (`Resume`).

    Attributes:
        conn_id: The connection's id, unique among all connections.
        cid: The user's id; `None` until the user is accepted.
        identity: The identity that the client sent; the latest one, if the client has sent several.
        meta: The meta that the client sent, a dict.
        challenge: The quest and the client's response; `None` without a challenge.
        request: The HTTP request that opened the WebSocket.
        state: Any object of the application's own; `None`, or what `Handshake.accept` was given. It stays on this node:
            if the session moves to another one, the acceptance there sets it.
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_session",
        "_user",
        "challenge",
        "cid",
        "conn_id",
        "identity",
        "meta",
        "request",
        "state",
    )

    def __init__(self, session: ServerSession, conn_id: str, request: Request) -> None:
        self._session = session
        self.conn_id = conn_id
        self.request = request
        self.cid: Any = None
        self._user: WseIdentity | None = None
        self._data: dict[str, Any] | None = None
        self.identity: Any = None
        self.meta: dict[str, Any] = {}
        self.challenge: Challenge | None = None
        self.state: Any = None

    @property
    def data(self) -> dict[str, Any]:
        """A dict of the application's own, for what it has to know about the connection. In a cluster, it goes with a
        session that moves to another node, so it must then consist of plain values: strings, numbers, `bytes`, lists,
        and dicts with strings as keys, of at most 64 KiB together. Otherwise the session cannot move.
        """
        if self._data is None:
            self._data = {}
        return self._data

    @property
    def moved(self) -> bool:
        """Whether the session has come from another node of the cluster. A listener of `connected` may then find in
        `data` what has been set there.
        """
        ticket = self._session.ticket
        return ticket is not None and ticket.is_moved

    @property
    def client(self) -> WseIdentity:
        """The user, a `WseIdentity`. On a connection that is not accepted yet it is `None`, which only listeners of
        `error` can see. The type does not include `None`, because all other handlers get accepted connections.
        """
        return typing.cast("WseIdentity", self._user)

    @property
    def server(self) -> Any:
        """The `WseServer`."""
        return self._session._owner.server

    @property
    def expires(self) -> float | None:
        """The time at which the session ends, in Unix seconds; `None` if it does not expire. See `extend`."""
        expiry = self._session.expiry
        return None if expiry is None else expiry.at

    @property
    def remote_addr(self) -> str:
        """The client's IP address, from the socket or a trusted proxy's header; an empty string if there is none."""
        return self.request.remote_addr

    @property
    def ready_state(self) -> ReadyState:
        """The state of its socket."""
        return self._session.ready_state

    @property
    def protocol(self) -> Protocol:
        """The message protocol that it speaks."""
        return self._session.protocol

    @property
    def rtt(self) -> float | None:
        """The round-trip time of the last ping, in seconds; `None` before the first, and inside web servers, which send
        their own pings. A device is pinged when it has been silent for `Heartbeat.interval`.
        """
        return self._session.rtt

    @property
    def queued(self) -> int:
        """The number of bytes that wait for the device.

        Raises:
            WseError: `WRONG_THREAD`.
        """
        self._session.endpoint.check_thread()
        return self._session.queued

    def send(self, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """Send a message to this device. Nothing happens if the connection has ended.

        Args:
            type: The message's type.
            payload: The message's content.
            key: Its subject, such as the symbol of a price: for a slow receiver `Overflow.LATEST` keeps the newest
                message of each key.

        Raises:
            WseError: `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR` for a payload that
                cannot be encoded; `LIMIT_EXCEEDED` for a message that is larger than the device has said it takes. A
                message to many devices skips such a device, which is reported on `error` once.
            TypeError: The key is neither a string nor an integer of 64 bits.
        """
        self._session.send(type, payload, key)

    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: type[R],
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> R: ...
    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any: ...
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Call a procedure of this device and return its result.

        Args:
            name: The procedure, as the client registered it.
            payload: The argument of the procedure.
            result: The type that the result must be of; see `WseServer.register`. What comes back is a value of it.
            timeout: Seconds to wait for the answer: `None` for the server's `timeout`, 0 for ever.
            on_progress: Called with each value that the procedure tells as its progress, plain or async.
            upload: Items to send to the procedure, an iterable or async iterable.
            deadline: Seconds for the call and those that the procedure makes for it. Of `timeout` and this, the shorter
                one counts.

        If the task that awaits this is cancelled, or the timeout passes, the procedure is told.

        Raises:
            WseError: The error of the procedure, or `RP_NOT_REGISTERED`, `RP_TIMEOUT`, `RP_DISCONNECT`,
                `RP_SEND_FAILED`, `CLIENT_NOT_READY`; `LIMIT_EXCEEDED`, when too many calls wait, or the call is larger
                than the device takes; `RP_IS_A_STREAM`; `UNSUPPORTED`, if the device does not know the extension
                `calls`, which progress and uploads need;
                `INVALID_PAYLOAD`, if the result is not of the type.
        """
        answer = await self._session.call(name, payload, shorter(timeout, deadline), on_progress, upload)
        return answer if result is None else received(result, answer, rp=name)

    @overload
    def stream(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        item: type[R],
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[R]: ...
    @overload
    def stream(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[Any]: ...
    def stream(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[Any]:
        """Iterate over the items of a procedure of this device that is a generator.

            async with conn.stream("tail", {"file": "x"}) as lines:
                async for line in lines:
                    print(line)

        The generator is closed when the block is left, by whatever way. It never runs ahead of the loop by more than
        `window` items.

        Args:
            name: The procedure.
            payload: Its argument.
            item: The type that each item must be of, as `result` of `call`.
            window: Items that may be on their way; at most `Limits.stream_window` of both sides.
            timeout: Seconds to wait for each item; `None` or 0 for ever.
            deadline: Seconds for all of them; `None` or 0 for ever.
            upload: Items to send to the procedure meanwhile.

        Raises:
            WseError: On entering, or for the first item: `CLIENT_NOT_READY`; `UNSUPPORTED`: the peer does not know the
                extension `calls`. For an item: the error that the generator raised, after the items before it;
                `RP_NOT_REGISTERED`, `RP_NOT_A_STREAM`, `RP_TIMEOUT`, `RP_DISCONNECT`; `LIMIT_EXCEEDED`.
            ValueError: A window of less than 1, or a negative timeout.
        """
        return Stream(
            self._find_session,
            name,
            payload,
            window=window,
            timeout=timeout,
            deadline=deadline,
            upload=upload,
            item=item,
        )

    async def _find_session(self) -> Session:
        return self._session

    def drop(self, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect this device; nothing happens if it is disconnected.

        Args:
            reason: Sent to the client; at most 123 bytes of UTF-8 (RFC 6455, 5.5).
            code: A close code that an endpoint may send (RFC 6455, 7.4). After 1012 and 4000, clients reconnect; a
                session that outlives its connection then goes on. Any other code ends it.

        Raises:
            ValueError: A code or reason that a close frame cannot carry.
        """
        check_close(code, reason)
        self._session.endpoint.check_thread()
        if code in RETURNS:
            self._session.cut(code, reason)
        else:
            self._session.close(code, reason)

    def extend(self, expires: datetime | float | None) -> None:
        """Set the time at which the session ends. It replaces the time given to `Handshake.accept`.

        Args:
            expires: As for `Handshake.accept`; `None` for a session that does not expire. A time that has passed ends
                the session at once.

        Raises:
            TypeError, ValueError: As `Handshake.accept`.
        """
        session = self._session
        session.endpoint.check_thread()
        session._owner.auth.expire(session, None if expires is None else unix_time(expires))

    @property
    def attached(self) -> bool:
        """Whether the device is connected. If its session outlives a lost connection, this is `False` until the client
        has reconnected. Messages and calls wait during that time.
        """
        ledger = self._session.ledger
        return ledger is None or ledger.is_attached

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the device has handled everything that was sent to it before this call. Its async handlers need
        not have ended. The wait continues while the device is disconnected.

        Args:
            timeout: Seconds; `None` waits until the session ends.

        Raises:
            WseError: `UNSUPPORTED`: the client has not asked for a session that outlives its connection;
                `SESSION_LOST`: the session has ended.
            TimeoutError: Not in time.
        """
        await self._session.flush(timeout)

    def undelivered(self) -> list[tuple[Any, Any]]:
        """Return the messages that the device has not confirmed, as `(type, payload)`, the oldest first.

        A listener of `disconnected` may store them, or send them by other means. The device may have handled some of
        them. The list is empty if the client has not asked for a session that outlives its connection.

        Raises:
            WseError: `WRONG_THREAD`.
        """
        self._session.endpoint.check_thread()
        return self._session.undelivered()

    async def drain(self) -> None:
        """Wait until the socket takes more. Call this between messages if you may send faster than the device reads."""
        self._session.endpoint.check_thread()
        await self._session.drain()

    def __repr__(self) -> str:
        return f"<WseConnection {self._session.describe()} {self.ready_state.name}>"


class WseIdentity:
    """A user, with all connected devices.

    Attributes:
        cid: The user's id.
        meta: The meta of the first connection.
    """

    __slots__ = ("_devices", "_users", "cid", "meta")

    def __init__(self, users: Users, cid: ClientId, meta: dict[str, Any]) -> None:
        self._users = users
        self._devices: tuple[WseConnection, ...] = ()  # the oldest first; a dict for each user would take 200 bytes
        self.cid: Any = cid
        self.meta = meta

    @property
    def conns(self) -> Mapping[str, WseConnection]:
        """The user's connections by `conn_id`, the oldest first; read-only."""
        return MappingProxyType({conn.conn_id: conn for conn in self._devices})

    def send(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: Exclude = None,
        key: MessageKey | None = None,
        fallback: bool = False,
    ) -> None:
        """Send a message to all devices of the user, except an excluded connection.

        Args:
            type: The message's type.
            payload: The message's content.
            exclude: A connection that does not receive the message.
            key: As for `WseConnection.send`.
            fallback: As for `WseServer.send`.

        Raises:
            WseError: As `WseConnection.send`.
        """
        if fallback:
            self._users.fallbacks.send(self.cid, type, payload, exclude, key)
        else:
            self._users.send(self.cid, type, payload, exclude, key)

    def drop(self, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect all devices of the user; `left` fires once.

        Args:
            reason: Sent to the clients; at most 123 bytes of UTF-8 (RFC 6455, 5.5).
            code: A close code that an endpoint may send (RFC 6455, 7.4).

        Raises:
            ValueError: A code or reason that a close frame cannot carry.
        """
        self._users.drop_client(self.cid, reason, code)

    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"] = "all",
        result: type[R],
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> list[R | WseError]: ...
    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"] = "all",
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> list[Any]: ...
    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["first", "any"],
        result: type[R],
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> R: ...
    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode,
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any: ...
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "all",
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Call a procedure on the user's devices.

        Args:
            name: The procedure, as the clients registered it.
            payload: The procedure's argument.
            mode: As for `WseServer.call`; by default every device is called, and the result is a list in the order of
                `conns`, with a `WseError` where a device's call failed.
            result: As for `WseConnection.call`, for the result of each device.
            timeout: Seconds to wait for an answer: `None` for the server's `timeout`, 0 for ever.
            on_progress: As for `WseServer.call`, like `upload`.
            upload: Items to send to the procedure; only with `"any"`.
            deadline: Seconds for the call and those that the procedure makes for it. Of `timeout` and this, the shorter
                one counts.

        Raises:
            WseError: As `WseServer.call`.
            ValueError: An unknown mode, or one that does not go with an upload.
        """
        answer = await self._users.call(
            self.cid, name, payload, mode, shorter(timeout, deadline), on_progress=on_progress, upload=upload
        )
        return (all_received if mode == "all" else received)(result, answer, rp=name)

    def __repr__(self) -> str:
        return f"<WseIdentity {self.cid} with {len(self._devices)} connections>"


Exclude: TypeAlias = WseConnection | WseIdentity | ClientId | None
"""The receiver to leave out: a connection, or a user by its identity or `cid`."""
