"""Who is connected: users, their devices, and messages to all of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Hashable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from wse.core.calls import call_all, call_first
from wse.core.closing import check_close
from wse.core.envelope import ALL, USER, Drop, topic
from wse.core.handshake import ServerOpening
from wse.core.packed import Packed
from wse.core.session import Session, encode
from wse.core.signals import Signal
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientId, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio

    from wse.core.calls import Callee, Mode
    from wse.core.cluster import Cluster
    from wse.core.endpoint import Endpoint
    from wse.core.handshake import AuthHandler, Handshake
    from wse.core.ports import Link, Protocol, Request
    from wse.core.rooms import Rooms


class ServerSession(Session):
    """A session at the server; its face to the application is a `WseConnection`."""

    __slots__ = ("_hub", "conn")

    def __init__(self, hub: Hub, link: Link, request: Request, protocol: Protocol) -> None:
        super().__init__(hub.endpoint, link, protocol)
        self._hub = hub
        self.conn = WseConnection(self, secrets.token_hex(8), request)
        self._conn = self.conn

    def describe(self) -> str:
        conn = self.conn
        return "stranger" if conn.cid is None else f"{conn.cid}#{conn.conn_id}"

    def context(self) -> dict[str, Any]:
        return {"cid": self.conn.cid, "conn_id": self.conn.conn_id}

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        self._hub.ignored.emit(self.conn, type_, payload)

    def _on_end(self, code: int, reason: str) -> None:
        self._hub.leave(self, code, reason)

    def _on_closed(self) -> None:
        self._hub.forget(self)


class WseConnection:
    """One device of a user: one WebSocket.

    Attributes:
        conn_id: Its id, unique among all connections.
        cid: The user's id; `None` until the user is accepted.
        client: The user, a `WseIdentity`; `None` until the user is accepted.
        identity: What the client sent to identify itself.
        meta: What it sent beside, a dict.
        request: The HTTP request that opened the WebSocket.
    """

    __slots__ = ("_session", "cid", "client", "conn_id", "identity", "meta", "request")

    def __init__(self, session: ServerSession, conn_id: str, request: Request) -> None:
        self._session = session
        self.conn_id = conn_id
        self.request = request
        self.cid: ClientId | None = None
        self.client: WseIdentity | None = None
        self.identity: Any = None
        self.meta: dict[str, Any] = {}

    @property
    def remote_addr(self) -> str:
        """The IP address of the socket's peer; an empty string where there is none."""
        return self.request.remote_addr

    @property
    def ready_state(self) -> ReadyState:
        """The state of its socket."""
        return self._session.ready_state

    @property
    def protocol(self) -> Protocol:
        """The message protocol that it speaks."""
        return self._session.protocol

    def send(self, type: MessageType, payload: Any = None) -> None:
        """Send a message to this device. On a connection that has ended nothing happens.

        Raises:
            WseError: `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR` for a payload that
                cannot be encoded.
        """
        self._session.send(type, payload)

    async def call(self, name: MessageType, payload: Any = None, *, timeout: float | None = None) -> Any:
        """Call a procedure of this device and return its result.

        Args:
            name: The procedure, as the client registered it.
            payload: What it gets.
            timeout: Seconds to wait for the answer: `None` for the server's `timeout`, 0 for ever.

        Raises:
            WseError: What the procedure raised, or `RP_NOT_REGISTERED`, `RP_TIMEOUT`, `RP_DISCONNECT`,
                `RP_SEND_FAILED` (WIRE.md section 4).
        """
        return await self._session.call(name, payload, timeout)

    def drop(self, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect this device; nothing happens if it is disconnected.

        Args:
            reason: Told to the client; at most 123 bytes of UTF-8 (RFC 6455, 5.5).
            code: A close code that an endpoint may send (RFC 6455, 7.4).

        Raises:
            ValueError: A code or reason that a close frame cannot carry.
        """
        check_close(code, reason)
        self._session.close(code, reason)

    async def drain(self) -> None:
        """Wait until the socket takes more: for producers that send faster than the device may read."""
        await self._session.drain()

    def __repr__(self) -> str:
        return f"<WseConnection {self._session.describe()} {self.ready_state.name}>"


class WseIdentity:
    """A user, with all the devices that are connected.

    Attributes:
        cid: The user's id.
        meta: The meta of the first connection.
    """

    __slots__ = ("_conns", "_hub", "cid", "meta")

    def __init__(self, hub: Hub, cid: ClientId, meta: dict[str, Any]) -> None:
        self._hub = hub
        self._conns: dict[str, WseConnection] = {}
        self.cid = cid
        self.meta = meta

    @property
    def conns(self) -> Mapping[str, WseConnection]:
        """The user's connections by `conn_id`, the oldest first; read-only."""
        return MappingProxyType(self._conns)

    def send(self, type: MessageType, payload: Any = None, *, exclude: Exclude = None) -> None:
        """Send a message to all devices of the user, but for a connection that is excluded.

        Raises:
            WseError: As `WseConnection.send`.
        """
        self._hub.send(self.cid, type, payload, exclude)

    def drop(self, reason: str = CloseReason.BY_SERVER) -> None:
        """Disconnect all devices of the user; `left` fires once.

        Raises:
            ValueError: A reason that a close frame cannot carry.
        """
        self._hub.drop_client(self.cid, reason)

    async def call(self, name: MessageType, payload: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Call a procedure on every device of the user.

        Returns:
            The results in the order of `conns`; a `WseError` stands where a device's call failed.

        Raises:
            WseError: `CONNECTION_MISSING`, when the user has no connection left.
        """
        results: list[Any] = await self._hub.call(self.cid, name, payload, "all", timeout)
        return results

    def __repr__(self) -> str:
        return f"<WseIdentity {self.cid} with {len(self._conns)} connections>"


Exclude: TypeAlias = WseConnection | WseIdentity | ClientId | None
"""Who does not get a message: a connection, or a user by its identity or `cid`."""


class Hub:
    """All connections of a server: from the open socket to the last event.

    Args:
        endpoint: What its sessions share.
        conns_per_user: How many devices of one user may be connected at a time.
        auth_timeout: Seconds that a connection has to become valid; 0 for ever.
    """

    def __init__(self, endpoint: Endpoint, *, conns_per_user: int, auth_timeout: float) -> None:
        if conns_per_user < 1:
            raise ValueError(f"conns_per_user must be at least 1, not {conns_per_user}")
        if auth_timeout < 0:
            raise ValueError(f"auth_timeout is in seconds, or 0 for none, not {auth_timeout}")
        self.endpoint = endpoint
        self.conns_per_user = conns_per_user
        self.auth_timeout = auth_timeout
        self.identify: AuthHandler | None = None
        self.generator: AuthHandler | None = None
        self.identities: dict[ClientId, WseIdentity] = {}
        self.connections: dict[str, WseConnection] = {}  # the valid ones
        self.sessions: set[ServerSession] = set()  # all whose socket is not closed yet
        self._emptied: asyncio.Future[None] | None = None

        self.rooms: Rooms | None = None  # from the first use on
        self.cluster: Cluster | None = None  # when there are other nodes
        self.joined: Signal[WseIdentity, dict[str, Any]] = self.signal("joined", "identity", "meta")
        self.left: Signal[WseIdentity, int, str] = self.signal("left", "identity", "code", "reason")
        self.connected: Signal[WseConnection] = self.signal("connected", "conn")
        self.disconnected: Signal[WseConnection, int, str] = self.signal("disconnected", "conn", "code", "reason")
        self.ignored: Signal[WseConnection, Any, Any] = self.signal("ignored", "conn", "type", "payload")

    def signal(self, name: str, *takes: str) -> Signal[*tuple[Any, ...]]:
        """A signal whose listeners' failures are reported."""
        return Signal(name, takes, self.endpoint.scheduler, self._listener_failed)

    # The life of a connection.

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> ServerSession:
        """A socket has been opened; see `Acceptor.open`.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`.
        """
        if self.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        session = ServerSession(self, link, request, protocol or self.endpoint.protocols[0])
        self.sessions.add(session)
        opening: ServerOpening[ServerSession] = ServerOpening(
            session,
            conn_id=session.conn.conn_id,
            request=request,
            identify=self.identify,
            generator=self.generator,
            deadline=self.auth_timeout,
            join=self._join,
        )
        session.enter(opening)
        if protocol is None:
            names = ", ".join(p.name for p in self.endpoint.protocols)
            session.violation(f"the client offers no subprotocol that the server has: {names}")
        return session

    def _join(self, session: ServerSession, auth: Handshake, cid: ClientId, welcome: Packed) -> None:
        """The connection becomes a user's (WIRE.md section 3, step 5)."""
        conn = session.conn
        conn.identity = auth.identity
        conn.meta = auth.meta
        if self.cluster is not None:
            self.cluster.register.admit(session, cid, welcome)
            return
        is_new = self.add(conn, cid)
        self.push_out(conn)
        self.welcome(session, welcome, is_new)

    def add(self, conn: WseConnection, cid: ClientId) -> bool:
        """Make a connection one of its user's; whether it is the only one."""
        identity = self.identities.get(cid)
        is_new = identity is None
        if identity is None:
            identity = self.identities[cid] = WseIdentity(self, cid, conn.meta)
        conn.cid = cid
        conn.client = identity
        identity._conns[conn.conn_id] = conn
        return is_new

    def push_out(self, conn: WseConnection) -> None:
        """Close the oldest connection of the user of a new one, if there are too many."""
        assert conn.client is not None  # since `add`
        conns = conn.client._conns
        if len(conns) > self.conns_per_user:
            # Its listeners may send to the user: the new one is not valid yet, so nothing precedes the welcome.
            next(iter(conns.values())).drop(CloseReason.CLIENTS_CONCURRENCY)

    def welcome(self, session: ServerSession, welcome: Packed, is_first: bool) -> None:
        """Let a user's connection in, unless it has ended since it was added."""
        conn = session.conn
        identity = conn.client
        if session.ended or identity is None:
            return
        self.connections[conn.conn_id] = conn
        session.enter(None)
        session.link.write_shared(welcome)
        if is_first:
            self.joined.emit(identity, conn.meta)
        if session.valid:
            self.connected.emit(conn)

    def leave(self, session: ServerSession, code: int, reason: str) -> None:
        """The connection has ended; it may not have been valid."""
        conn = session.conn
        identity = conn.client
        if identity is None:
            return
        self.connections.pop(conn.conn_id, None)
        if self.rooms is not None:
            self.rooms.forget(conn)
        del identity._conns[conn.conn_id]
        is_last = not identity._conns
        if is_last:
            del self.identities[identity.cid]
        self.disconnected.emit(conn, code, reason)
        if self.cluster is not None:
            self.cluster.register.leave(conn, identity, code, reason)
        elif is_last:
            self.left.emit(identity, code, reason)

    def forget(self, session: ServerSession) -> None:
        """The socket has closed."""
        self.sessions.discard(session)
        if not self.sessions and self._emptied is not None:
            if not self._emptied.done():
                self._emptied.set_result(None)
            self._emptied = None

    async def close(self, code: int, reason: str) -> None:
        """Close every connection; returns when the last socket has closed."""
        for session in tuple(self.sessions):
            session.close(code, reason)
        if self.sessions:
            if self._emptied is None:
                self._emptied = self.endpoint.scheduler.create_future()
            await self._emptied

    # Messages.

    def broadcast(self, type: MessageType, payload: Any, exclude: Exclude = None) -> None:
        """Send to every valid connection."""
        self.send_to(ALL, None, self.connections.values(), type, payload, exclude)

    def send(self, cid: ClientId, type: MessageType, payload: Any, exclude: Exclude = None) -> None:
        """Send to a user's valid connections; nothing happens if there are none."""
        identity = self.identities.get(cid)
        if identity is not None:
            conns = [conn for conn in identity._conns.values() if conn._session.valid]
            self.send_to(USER, cid, conns, type, payload, exclude)
        elif self.cluster is not None:
            self.send_to(USER, cid, (), type, payload, exclude)

    def send_to(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        exclude: Exclude = None,
    ) -> None:
        """Send to valid connections of this node, and to the others of that name elsewhere."""
        conn_id: str | None = None
        cid: ClientId | None = None
        if exclude is not None:
            conn_id, cid = excluded(exclude)
            conns = without(conns, conn_id, cid)
        if self.cluster is None:
            send_to_all(self.endpoint, conns, type, payload)
        else:
            self.cluster.send(topic(kind, name), conns, type, payload, conn_id, cid)

    def drop_client(self, cid: ClientId, reason: str) -> None:
        """Disconnect all devices of a user; nothing happens if there are none."""
        check_close(1000, reason)
        if self.cluster is not None:
            self.cluster.say(topic(USER, cid), Drop(self.cluster.node, str(reason)))
        self.drop_here(cid, reason)

    def drop_here(self, cid: ClientId, reason: str) -> None:
        """Disconnect a user's devices of this node."""
        identity = self.identities.get(cid)
        if identity is not None:
            for conn in tuple(identity._conns.values()):
                conn.drop(reason)

    async def call(self, cid: ClientId, name: MessageType, payload: Any, mode: Mode, timeout: float | None) -> Any:
        """Call a procedure on a user's devices; see `WseServer.call`."""
        if mode not in ("first", "all", "any"):
            raise ValueError(f'mode must be "first", "all" or "any", not {mode!r}')
        callees: list[Callee] = [*self.sessions_of(cid)] if self.cluster is None else await self.cluster.callees(cid)
        if not callees:
            raise WseError(ErrorCode.CONNECTION_MISSING, {"cid": cid, "rp": name})
        if mode == "all":
            return await call_all(callees, name, payload, timeout)
        if mode == "any":
            callees = callees[-1:]
        return await call_first(self.endpoint.scheduler, callees, name, payload, timeout)

    # Who is there.

    def sessions_of(self, cid: ClientId) -> list[ServerSession]:
        """The user's valid connections of this node, the oldest first."""
        identity = self.identities.get(cid)
        if identity is None:
            return []
        return [conn._session for conn in identity._conns.values() if conn._session.valid]

    def _listener_failed(self, exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
        session = args[0]._session if isinstance(args[0], WseConnection) else None
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"signal": signal}, f"a listener of {signal} raised")
        self.endpoint.report(error, session, exc)


def send_to_all(endpoint: Endpoint, conns: Collection[WseConnection], type: MessageType, payload: Any) -> None:
    """Send one message to many valid connections, encoded once for each message protocol that they speak.

    Raises:
        WseError: As `WseConnection.send`; then none has got it.
    """
    endpoint.check_type(type)
    protocols = endpoint.protocols
    if len(protocols) == 1:
        packed = encode(protocols[0], type, payload)
        for conn in conns:
            conn._session.link.write_shared(packed)
        return
    spoken = {conn._session.protocol for conn in conns} or protocols[:1]
    deliver(conns, {protocol: encode(protocol, type, payload) for protocol in spoken})


def deliver(conns: Collection[WseConnection], by_protocol: Mapping[Protocol, Packed]) -> None:
    """Send one message to many valid connections, in the form of the message protocol that each speaks."""
    for conn in conns:
        session = conn._session
        session.link.write_shared(by_protocol[session.protocol])


def excluded(exclude: Exclude) -> tuple[str | None, ClientId | None]:
    """The `conn_id` or the `cid` of who does not get a message, if anybody."""
    if isinstance(exclude, WseConnection):
        return exclude.conn_id, None
    return None, exclude.cid if isinstance(exclude, WseIdentity) else exclude


def without(conns: Collection[WseConnection], conn_id: str | None, cid: ClientId | None) -> list[WseConnection]:
    """All but that connection, or that user's."""
    return [conn for conn in conns if conn.conn_id != conn_id and conn.cid != cid]
