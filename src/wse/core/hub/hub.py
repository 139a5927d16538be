"""The users of a server, their devices, and messages to all of them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from itertools import islice
from typing import TYPE_CHECKING, Any

from wse.core.closing import check_close
from wse.core.heartbeat import Heartbeat
from wse.core.hub.auth import AuthExtension
from wse.core.hub.calls import call_all, call_any, call_first
from wse.core.hub.connection import MeteredSession, ServerSession, WseConnection, WseIdentity
from wse.core.hub.extensions import LimitsExtension
from wse.core.hub.fanout import excluded, without
from wse.core.hub.handshake import ServerOpening
from wse.core.hub.network import EVERYONE, USER, Network
from wse.core.hub.rooms import Rooms
from wse.core.packed import Packed
from wse.core.session.extensions import NOTHING
from wse.core.session.keepalive import Keepalive
from wse.core.session.rpc import NotAskedError
from wse.core.session.signals import Signal
from wse.core.stats import Stats
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientId, MessageKey, MessageType

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import Exclude
    from wse.core.hub.handshake import AuthHandler, Handshake
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Request
    from wse.core.session.endpoint import Endpoint


logger = logging.getLogger("wse")

CLOSES_PER_SECOND = 1000
"""Connections closed in a second when a server ends: as many as another server can let in at that time."""

CLOSED_WITHIN = 15.0
"""Seconds until the last connection is closed, however many there are: the end of a server must not take for ever."""


class Hub:
    """All connections of a server: from the open socket to the last event.

    Args:
        endpoint: The state that its sessions share.
        conns_per_user: How many devices of one user may be connected at a time.
        auth_timeout: Seconds that a connection has to become valid; 0 for ever.
        heartbeat: When silent connections are pinged, and given up.
        clock: The time of day, in Unix seconds.
        server: The server, for applications that have a connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        conns_per_user: int,
        auth_timeout: float,
        heartbeat: Heartbeat,
        clock: Callable[[], float],
        server: Any = None,
    ) -> None:
        if conns_per_user < 1:
            raise ValueError(f"conns_per_user must be at least 1, not {conns_per_user}")
        if auth_timeout < 0:
            raise ValueError(f"auth_timeout must be 0 (none) or more seconds, not {auth_timeout}")
        self.endpoint = endpoint
        self.server = server
        self.started = True  # unless a server says otherwise
        self._has_displaced = False  # a device by another, since one per user is allowed
        self.auth = AuthExtension(endpoint.scheduler, clock)
        endpoint.extensions.add(self.auth)
        endpoint.extensions.add(LimitsExtension())
        self.conns_per_user = conns_per_user
        self.auth_timeout = auth_timeout
        self.identify: AuthHandler | None = None
        self.generator: AuthHandler | None = None
        self.identities: dict[ClientId, WseIdentity] = {}
        self.connections: dict[str, WseConnection] = {}  # the valid ones
        self.sessions: set[ServerSession] = set()  # all whose socket is not closed yet
        self.unauthenticated = 0  # those of them that have not been let in, and have not ended
        self.by_address: Counter[str] = Counter()  # how many of them, where there is a limit
        self._closing: tuple[int, str] | None = None
        self._closers: list[asyncio.Future[None]] = []  # one for each `close` that waits for the last socket
        self._keepalive = Keepalive(endpoint.scheduler, heartbeat, lambda: self.sessions)
        limits = endpoint.limits
        metered = limits.message_rate is not None or limits.byte_rate is not None
        self._session_class = MeteredSession if metered else ServerSession

        self.rooms = Rooms(self)
        self.network: Network
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
        """Take over a socket that has just been opened; see `Acceptor.open`.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`.
        """
        if self.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        session = self._session_class(self, link, request, protocol or self.endpoint.protocols[0])
        excess = self._find_excess(request.remote_addr)
        self._count_in(session)
        opening: ServerOpening[ServerSession] = ServerOpening(
            session,
            conn_id=session.conn.conn_id,
            request=request,
            identify=self.identify,
            generator=self.generator,
            deadline=self.auth_timeout,
            auth=self.auth,
            join=self._join,
        )
        session.enter(opening)
        if self._closing is not None:
            session.close(*self._closing)
        elif excess is not None:
            session.exceeded(*excess, 1013)
        elif protocol is None:
            names = ", ".join(p.name for p in self.endpoint.protocols)
            session.violation(f"the client offers no subprotocol that the server has: {names}")
        return session

    def _find_excess(self, address: str) -> tuple[str, CloseReason] | None:
        """The limit that one more connection would exceed."""
        limits = self.endpoint.limits
        if limits.connections is not None and len(self.sessions) >= limits.connections:
            return "connections", CloseReason.LIMIT_CONNECTIONS
        if limits.unauthenticated is not None and self.unauthenticated >= limits.unauthenticated:
            return "unauthenticated", CloseReason.LIMIT_UNAUTHENTICATED
        most = limits.connections_per_address
        if most is not None and self.by_address[network_of(address)] >= most:
            return "connections_per_address", CloseReason.LIMIT_CONNECTIONS_PER_ADDRESS
        return None

    def _count_in(self, session: ServerSession) -> None:
        self.sessions.add(session)
        self.unauthenticated += 1
        if self.endpoint.limits.connections_per_address is not None:
            self.by_address[network_of(session.conn.request.remote_addr)] += 1
        if session.link.pings:
            self._keepalive.start()

    def _join(
        self, session: ServerSession, auth: Handshake, cid: ClientId, welcome: Packed, expires: float | None
    ) -> None:
        """Make the connection a user's (WIRE.md section 3, step 5)."""
        conn = session.conn
        conn.identity = auth.identity
        conn.meta = auth.meta
        conn.challenge = auth.challenge
        if expires is not None:
            self.auth.expire(session, expires)
        self.network.admit(session, cid, welcome)

    def add(self, conn: WseConnection, cid: ClientId) -> bool:
        """Add a connection to its user; returns whether it is the only one."""
        identity = self.identities.get(cid)
        is_new = identity is None
        if identity is None:
            identity = self.identities[cid] = WseIdentity(self, cid, conn.meta)
        conn.cid = cid
        conn._user = identity
        identity._devices += (conn,)
        return is_new

    def push_out(self, conn: WseConnection) -> None:
        """Close the oldest connection of the user of a new one, if there are too many."""
        conns = conn.client._devices
        if len(conns) > self.conns_per_user:
            # Its listeners may send to the user: the new one is not valid yet, so nothing precedes the welcome.
            conns[0].drop(CloseReason.CLIENTS_CONCURRENCY)

    def welcome(self, session: ServerSession, welcome: Packed, is_first: bool) -> None:
        """Let a user's connection in, unless it has ended since it was added."""
        conn = session.conn
        identity = conn._user
        if session.ended or identity is None:
            return
        self.connections[conn.conn_id] = conn
        self.unauthenticated -= 1
        session.enter(None)
        types = session.protocol.extensions
        if types is not None and session.agreement is not NOTHING:
            session.write(types.ext, self.endpoint.extensions.answers(session, session.agreement))
        session.link.write_shared(welcome)
        if is_first:
            self.joined._emit(identity, conn.meta)
        if session.valid:
            self.connected._emit_on(session, conn)

    def leave(self, session: ServerSession, code: int, reason: str) -> None:
        """Remove a connection that has ended; it may not have been valid."""
        conn = session.conn
        identity = conn._user
        if self.connections.pop(conn.conn_id, None) is None:
            self.unauthenticated -= 1
        if identity is None:
            return
        self.rooms.forget(conn)
        identity._devices = tuple(device for device in identity._devices if device is not conn)
        is_last_here = not identity._devices
        if is_last_here:
            del self.identities[identity.cid]
        if reason == CloseReason.CLIENTS_CONCURRENCY and self.conns_per_user == 1 and not self._has_displaced:
            self._has_displaced = True
            logger.warning(
                "a second connection of user %r has closed the first, because a user may have only one; to allow more, "
                "set WseServer(conns_per_user=…) (this warning is logged once)",
                identity.cid,
            )
        self.disconnected._emit(conn, code, reason)
        self.network.leave(conn, identity, code, reason, is_last_here)

    def forget(self, session: ServerSession) -> None:
        """Forget a session whose socket has closed."""
        self.sessions.discard(session)
        if self.by_address:
            network = network_of(session.conn.request.remote_addr)
            self.by_address[network] -= 1
            if not self.by_address[network]:
                del self.by_address[network]
        if not self.sessions:
            for emptied in self._closers:
                if not emptied.done():
                    emptied.set_result(None)

    def refuse(self, code: int, reason: str) -> None:
        """Let no more clients in: close each new connection with this code and reason."""
        self._closing = code, reason

    async def close(self, code: int, reason: str) -> None:
        """Close every connection; returns when the last socket has closed.

        Many are closed over some seconds, `CLOSES_PER_SECOND` of them in each, or more if it would take longer than
        `CLOSED_WITHIN`, so that they do not all return at once. New connections are closed as well.
        """
        self._closing = code, reason
        emptied = self.endpoint.scheduler.create_future()
        self._closers.append(emptied)
        if len(self._closers) == 1:
            for session in tuple(self.sessions):
                if session.ended:  # a slow peer would have more time for its last messages
                    session.link.close(code, reason)
        try:
            pace = max(CLOSES_PER_SECOND, len(self.sessions) / CLOSED_WITHIN)
            self._close_some(iter(tuple(self.sessions)), math.ceil(pace / 10))
            if self.sessions:
                await emptied
        finally:
            self._closers.remove(emptied)
            if not self._closers:  # else another `close` still waits
                self._closing = None
                self._keepalive.stop()

    def stop_keepalive(self) -> None:
        """Look for silent peers no longer, until a connection opens."""
        self._keepalive.stop()

    def _close_some(self, sessions: Iterator[ServerSession], count: int) -> None:
        if self._closing is None:
            return
        for session in islice(sessions, count):
            session.close(*self._closing)
        if sessions.__length_hint__():  # type: ignore[attr-defined]  # tuple iterators have it
            self.endpoint.scheduler.call_later(0.1, self._close_some, sessions, count)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The async handlers of all connections that have not ended."""
        return [task for session in self.sessions if not session.ended for task in session.tasks]

    def stats(self, *, uptime: float, running_handlers: int, refused_origins: int) -> Stats:
        """See `WseServer.stats`."""
        counters = self.endpoint.counters
        queued = [session.queued for session in self.sessions]
        return Stats(
            uptime=uptime,
            connections=len(self.sessions),
            unauthenticated=self.unauthenticated,
            identities=len(self.identities),
            queued_bytes=sum(queued),
            queued_bytes_max=max(queued, default=0),
            running_handlers=running_handlers + len(self.tasks),
            pending_calls=sum(session.pending_calls for session in self.sessions),
            opened=counters.opened,
            messages_in=counters.messages_in,
            messages_out=counters.messages_out,
            calls_in=counters.calls_in,
            calls_out=counters.calls_out,
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            errors=dict(counters.errors),
            closes=dict(counters.closes),
            close_codes=dict(counters.close_codes),
            dropped=dict(counters.dropped),
            limits=dict(counters.limits),
            refused_origins=refused_origins,
        )

    # Messages.

    def broadcast(
        self, type: MessageType, payload: Any, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send to every valid connection."""
        self.send_to(EVERYONE, None, self.connections.values(), type, payload, exclude, key)

    def send(
        self, cid: ClientId, type: MessageType, payload: Any, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send to a user's valid connections; nothing happens if there are none.

        Raises:
            WseError: `NOT_STARTED`; as `WseConnection.send`.
        """
        identity = self.identities.get(cid)
        if identity is not None:
            conns = [conn for conn in identity._devices if conn._session.valid]
            self.send_to(USER, cid, conns, type, payload, exclude, key)
        elif self.network.reaches_others or not self.started:
            self.send_to(USER, cid, (), type, payload, exclude, key)

    def send_to(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        exclude: Exclude = None,
        key: MessageKey | None = None,
    ) -> None:
        """Send to valid connections of this node, and to those of that name on other nodes.

        Raises:
            WseError: `NOT_STARTED`; as `WseConnection.send`.
        """
        conn_id: str | None = None
        cid: ClientId | None = None
        if exclude is not None:
            conn_id, cid = excluded(exclude)
            conns = without(conns, conn_id, cid)
        self.network.send(kind, name, conns, type, payload, conn_id, cid, key)
        if not self.started:  # then nobody was reached, and the message was found to be in order
            raise WseError(ErrorCode.NOT_STARTED)

    def drop_client(self, cid: ClientId, reason: str, code: int) -> None:
        """Disconnect all devices of a user; nothing happens if there are none."""
        check_close(code, reason)
        if not self.started:
            raise WseError(ErrorCode.NOT_STARTED)
        self.network.drop(cid, reason, code)
        self.drop_here(cid, reason, code)

    def drop_here(self, cid: ClientId, reason: str, code: int) -> None:
        """Disconnect a user's devices of this node."""
        identity = self.identities.get(cid)
        if identity is not None:
            for conn in identity._devices:
                conn.drop(reason, code)
        self.network.drop_joining(cid, reason, code)

    async def call(self, cid: ClientId, name: MessageType, payload: Any, mode: Mode, timeout: float | None) -> Any:
        """Call a procedure on a user's devices; see `WseServer.call`."""
        if mode not in ("first", "all", "any"):
            raise ValueError(f'mode must be "first", "all" or "any", not {mode!r}')
        if not self.started:
            raise WseError(ErrorCode.NOT_STARTED)
        callees = await self.network.callees(cid)
        scheduler = self.endpoint.scheduler
        try:
            if mode == "all":
                return await call_all(callees, name, payload, timeout)
            if mode == "first":
                return await call_first(scheduler, callees, name, payload, timeout)
            seconds = self.endpoint.timeout if timeout is None else timeout
            return await call_any(scheduler, callees, name, payload, seconds)
        except NotAskedError:
            raise WseError(ErrorCode.CONNECTION_MISSING, {"cid": cid, "rp": name}) from None

    # Presence.

    def sessions_of(self, cid: ClientId) -> list[ServerSession]:
        """The user's valid connections of this node, the oldest first."""
        identity = self.identities.get(cid)
        if identity is None:
            return []
        return [conn._session for conn in identity._devices if conn._session.valid]

    def _listener_failed(self, exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
        session = args[0]._session if isinstance(args[0], WseConnection) else None
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"signal": signal}, f"a listener of {signal} raised")
        self.endpoint.report(error, session, exc)


def network_of(address: str) -> str:
    """The key under which an address is counted: for IPv6 its network of 64 bits, which belongs to one subscriber."""
    if ":" not in address:
        return address
    with suppress(ValueError):
        return str(ip_network((address.partition("%")[0], 64), strict=False))
    return address
