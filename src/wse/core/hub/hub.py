"""The users of a server, their devices, and messages to all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Hashable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from wse.core.closing import check_close
from wse.core.heartbeat import Heartbeat
from wse.core.hub.arrivals import Arrivals
from wse.core.hub.auth import AuthExtension
from wse.core.hub.calls import WithOptions, call_user, check_mode
from wse.core.hub.connection import MeteredSession, ServerSession, WseConnection, WseIdentity
from wse.core.hub.extensions import LimitsExtension
from wse.core.hub.fallback import Fallbacks
from wse.core.hub.fanout import excluded, without
from wse.core.hub.handshake import Returning, ServerOpening
from wse.core.hub.kept.histories import Histories
from wse.core.hub.kept.inboxes import Inboxes
from wse.core.hub.network import EVERYONE, USER, Network
from wse.core.hub.presence.joining import RoomsExtension
from wse.core.hub.resumption import Resumption
from wse.core.hub.rooms import Rooms
from wse.core.hub.sockets import Sockets
from wse.core.packed import Packed, encode
from wse.core.session.calling import CallsExtension
from wse.core.session.extensions import NOTHING
from wse.core.session.signals import Signal
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientId, MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from wse.core.hub.calls import Called, Callee, Mode
    from wse.core.hub.connection import Exclude
    from wse.core.hub.handshake import AuthHandler, Handshake
    from wse.core.hub.kept.keeper import Keeper
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Request
    from wse.core.resume import Resume
    from wse.core.session.asking import Items
    from wse.core.session.endpoint import Endpoint


logger = logging.getLogger("wse")


_REFUSALS = frozenset((CloseReason.NOT_AUTHORIZED, CloseReason.AUTH_TIMEOUT))
"""Ends of connections that were not accepted, and that nothing else reports."""

LOOK_AGAIN = 0.25
"""Seconds after which the register is asked again for a user who is waited for."""


class Hub:
    """All connections of a server: from the open socket to the last event.

    Args:
        endpoint: The state that its sessions share.
        conns_per_user: How many devices of one user may be connected at a time.
        leave_grace: Seconds that a user has to return, after the last device's end, before `left` fires.
        auth_timeout: Seconds that a connection has to become valid; 0 for ever.
        heartbeat: When silent connections are pinged, and given up.
        clock: The time of day, in Unix seconds.
        server: The server, for applications that have a connection.
        resume: How long and how much is kept of sessions that lose their connection; `None` for nothing.

    Attributes:
        kept: Messages that are kept in a store; `None` for none.
        inboxes: Devices of users that get them.
        entrance: Where clients enter rooms by themselves.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        conns_per_user: int,
        leave_grace: float = 0.0,
        auth_timeout: float,
        heartbeat: Heartbeat,
        clock: Callable[[], float],
        server: Any = None,
        resume: Resume | None = None,
    ) -> None:
        if conns_per_user < 1:
            raise ValueError(f"conns_per_user must be at least 1, not {conns_per_user}")
        if not 0 <= leave_grace < math.inf:
            raise ValueError(f"leave_grace is in seconds, or 0 for none, not {leave_grace}")
        if auth_timeout < 0:
            raise ValueError(f"auth_timeout must be 0 (none) or more seconds, not {auth_timeout}")
        self.endpoint = endpoint
        self.server = server
        self.started = True  # unless a server says otherwise
        self._has_displaced = False  # a device by another, since one per user is allowed
        self.auth = AuthExtension(endpoint.scheduler, clock)
        endpoint.extensions.add(self.auth)
        endpoint.extensions.add(LimitsExtension())
        endpoint.extensions.add(CallsExtension(endpoint))
        self.conns_per_user = conns_per_user
        self.leave_grace = leave_grace
        self.auth_timeout = auth_timeout
        self.identify: AuthHandler | None = None
        self.generator: AuthHandler | None = None
        self.identities: dict[ClientId, WseIdentity] = {}
        self.connections: dict[str, WseConnection] = {}  # the valid ones
        self.sockets = Sockets(endpoint, heartbeat)
        limits = endpoint.limits
        metered = limits.message_rate is not None or limits.byte_rate is not None
        self._session_class = MeteredSession if metered else ServerSession

        self.resumption = None if resume is None else Resumption(self, resume)
        if self.resumption is not None:
            endpoint.extensions.add(self.resumption)
        self.kept: Keeper | None = None
        self.inboxes: Inboxes | None = None
        self._arrivals = Arrivals(endpoint.scheduler)
        self.rooms = Rooms(self)
        self.fallbacks = Fallbacks(self)
        self.entrance = RoomsExtension(self)
        endpoint.extensions.add(self.entrance)
        self.network: Network
        self.joined: Signal[WseIdentity, dict[str, Any]] = self.signal("joined", "identity", "meta")
        self.left: Signal[WseIdentity, int, str] = self.signal("left", "identity", "code", "reason")
        self.connected: Signal[WseConnection] = self.signal("connected", "conn")
        self.disconnected: Signal[WseConnection, int, str] = self.signal("disconnected", "conn", "code", "reason")
        self.detached: Signal[WseConnection, int, str] = self.signal("detached", "conn", "code", "reason")
        self.resumed: Signal[WseConnection] = self.signal("resumed", "conn")
        self.ignored: Signal[WseConnection, Any, Any] = self.signal("ignored", "conn", "type", "payload")

    def keep_in(self, keeper: Keeper) -> None:
        """Keep messages for users and rooms."""
        self.kept = keeper
        self.inboxes = Inboxes(keeper)
        self.endpoint.extensions.add(self.inboxes)
        self.rooms.histories = Histories(keeper, self.rooms)

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
        session = self.make_session(link, request, protocol or self.endpoint.protocols[0])
        self.endpoint.counters.opened += 1
        excess = self.sockets.find_excess(request.remote_addr)
        self.sockets.add(session)
        opening: ServerOpening[ServerSession] = ServerOpening(
            session,
            conn_id=session.conn.conn_id,
            request=request,
            identify=self.identify,
            generator=self.generator,
            deadline=self.auth_timeout,
            auth=self.auth,
            owner=self,
        )
        session.enter(opening)
        if self.sockets.closing is not None:
            session.close(*self.sockets.closing)
        elif excess is not None:
            session.exceeded(*excess, 1013)
        elif protocol is None:
            names = ", ".join(p.name for p in self.endpoint.protocols)
            session.violation(f"the client offers no subprotocol that the server has: {names}")
        return session

    def make_session(self, link: Link, request: Request, protocol: Protocol) -> ServerSession:
        """A session that nothing has happened to."""
        return self._session_class(self, link, request, protocol)

    def join(
        self, session: ServerSession, auth: Handshake, cid: ClientId, welcome: Packed, expires: float | None
    ) -> None:
        """Make the connection a user's (WIRE.md section 3, step 5), or give it to a session that goes on over it."""
        resumption = self.resumption if session.ticket is not None else None
        if resumption is not None and resumption.resume(session, auth, cid, welcome, expires):
            return
        self.let_in(session, auth, cid, welcome, expires)

    def let_in(
        self, session: ServerSession, auth: Handshake, cid: ClientId, welcome: Packed, expires: float | None
    ) -> None:
        """Make the connection a user's, with a session of its own."""
        conn = session.conn
        conn.identity, conn.meta = auth.sent
        conn.challenge = auth.challenge
        conn.state = auth.state
        if expires is not None:
            self.auth.expire(session, expires)
        if session.inbox is not None and self.inboxes is not None:
            self.inboxes.find(session, cid, partial(self.network.admit, session, cid, welcome))
        else:
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

    def bring_in(self, conn: WseConnection, cid: ClientId) -> None:
        """Add a connection whose session has come from another node."""
        self.add(conn, cid)
        self.connections[conn.conn_id] = conn
        if self._arrivals:
            self._arrivals.note(cid)

    def push_out(self, conn: WseConnection) -> None:
        """End the oldest connection of the user of a new one, if there are too many; first one without a socket."""
        conns = conn.client._devices
        if len(conns) > self.conns_per_user:
            away = [other for other in conns if not other.attached]
            # Its listeners may send to the user: the new one is not valid yet, so nothing precedes the welcome.
            (away or conns)[0].drop(CloseReason.CLIENTS_CONCURRENCY)

    def welcome(self, session: ServerSession, welcome: Packed, is_first: bool) -> None:
        """Let a user's connection in, unless it has ended since it was added."""
        conn = session.conn
        identity = conn._user
        if session.ended or identity is None:
            return
        self.connections[conn.conn_id] = conn
        self.sockets.unauthenticated -= 1
        session.enter(None)
        if session.agreement is not NOTHING:
            session.link.write_shared(self.answer(session))
        session.link.write_shared(welcome)
        if session.ticket is not None and self.resumption is not None:
            self.resumption.begin(session)
        if session.inbox is not None and self.inboxes is not None:
            self.inboxes.begin(session)
        if self._arrivals:
            self._arrivals.note(identity.cid)
        if is_first:
            self.joined._emit(identity, conn.meta)
        if session.valid:
            self.connected._emit_on(session, conn)

    def answer(self, session: ServerSession) -> Packed:
        """The answer to the extensions that a client has offered."""
        types = session.protocol.extensions
        assert types is not None  # else there would be no agreement
        return encode(session.protocol, types.ext, self.endpoint.extensions.answers(session, session.agreement))

    def refused(self, session: ServerSession, retry: bool) -> None:
        """A client is about to be refused."""
        if self.resumption is not None:
            self.resumption.refused(session, retry)

    async def returning(self, session: ServerSession) -> Returning | None:
        """The session with which a client wants to go on."""
        return None if self.resumption is None else await self.resumption.returning(session)

    def leave(self, session: ServerSession, code: int, reason: str) -> None:
        """Remove a connection that has ended; it may not have been valid."""
        conn = session.conn
        grace = self.leave_grace
        if session.ticket is not None and self.resumption is not None:
            grace = max(0.0, grace - self.resumption.away(session))
            self.resumption.note_end(session, session.ticket, code, reason)
        identity = conn._user
        if self.connections.pop(conn.conn_id, None) is None:
            self.sockets.unauthenticated -= 1
            if reason in _REFUSALS:
                text = "refused a client at %s: %s"
                self.endpoint.log.event(f"refused: {reason}", text, conn.remote_addr, reason, conn_id=conn.conn_id)
        if identity is None:
            return
        if session.inbox is not None and self.inboxes is not None:
            self.inboxes.end(session)
        to = "" if session.ticket is None else session.ticket.to
        self.rooms.forget(conn, silent=bool(to))
        identity._devices = tuple(device for device in identity._devices if device is not conn)
        is_last_here = not identity._devices
        if is_last_here:
            del self.identities[identity.cid]
        was_there = session.ready_state is not ReadyState.CLOSED  # not away, waiting for its client
        is_surprising = reason == CloseReason.CLIENTS_CONCURRENCY and self.conns_per_user == 1 and was_there
        if is_surprising and not self._has_displaced:
            self._has_displaced = True
            logger.warning(
                "a second connection of user %r has closed the first, because a user may have only one; to allow more, "
                "set WseServer(conns_per_user=…) (this warning is logged once)",
                identity.cid,
                extra={"kind": "displaced", "cid": identity.cid, "conn_id": conn.conn_id},
            )
        self.disconnected._emit(conn, code, reason)
        if to:
            self.network.moved(conn, to)
        else:
            self.network.leave(conn, identity, code, reason, grace if is_last_here else None)

    async def part(self, code: int, reason: str) -> Resumption | None:
        """Close every connection; sessions that other nodes can take over go on without.

        Returns:
            What keeps these sessions; `None` if there are no other nodes.
        """
        if self.resumption is None or not self.network.has_others:
            return None
        self.sockets.keeps_sessions = True
        self.network.announce_end()
        await self.sockets.close(code, reason)
        self.sockets.refuse(code, reason)
        return self.resumption

    async def close(self, code: int, reason: str) -> None:
        """Close every connection; returns when the last socket has closed."""
        self.sockets.keeps_sessions = False
        closing = self.sockets.close(code, reason)
        if self.resumption is not None:
            self.sockets.refuse(code, reason)  # before listeners of those that end now run
            self.resumption.end_all()
        await closing
        for leftover in tuple(self.sockets.leftovers):
            await leftover.wait_closed()

    @property
    def sessions(self) -> Iterator[ServerSession]:
        """All sessions, with a socket or without."""
        away: Iterable[ServerSession] = () if self.resumption is None else self.resumption.detached
        return chain(self.sockets.open, away)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The async handlers of all connections that have not ended."""
        return [task for session in self.sessions if not session.ended for task in session.tasks]

    # Messages.

    def broadcast(
        self, type: MessageType, payload: Any, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send to every valid connection."""
        instruments = self.endpoint.instruments
        start = 0.0 if instruments is None else instruments.clock()
        self.send_to(EVERYONE, None, self.connections.values(), type, payload, exclude, key)
        if instruments is not None:
            instruments.broadcast.observe(instruments.clock() - start)

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
        else:
            self.endpoint.check_thread()

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
        if not self.started:  # the message is valid, but has reached no client
            raise WseError(ErrorCode.NOT_STARTED)

    def drop_client(self, cid: ClientId, reason: str, code: int) -> None:
        """Disconnect all devices of a user; nothing happens if there are none."""
        check_close(code, reason)
        self.endpoint.check_thread()
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
        if self.inboxes is not None:
            self.inboxes.drop(cid, reason, code)
        self.network.drop_joining(cid, reason, code)

    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any,
        mode: Mode,
        timeout: float | None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Any:
        """Call a procedure on a user's devices; see `WseServer.call`."""
        if wait < 0:
            raise ValueError(f"wait is in seconds, not {wait}")
        if upload is not None and mode != "any":
            raise ValueError(f'an upload goes to one device, with mode="any", not {mode!r}')
        self.endpoint.check_thread()
        until = self.endpoint.scheduler.time() + wait
        while True:
            try:
                return await self._call(cid, name, payload, mode, timeout, on_progress, upload)
            except WseError as exc:
                left = until - self.endpoint.scheduler.time()
                if exc.code != ErrorCode.CONNECTION_MISSING or left <= 0:
                    raise
            # A connection to another node makes itself known to the register only.
            await self._arrivals.wait(cid, min(left, LOOK_AGAIN) if self.network.reaches_others else left)

    async def _call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any,
        mode: Mode,
        timeout: float | None,
        on_progress: Callable[[Any], Any] | None,
        upload: Items | None,
    ) -> Any:
        check_mode(mode)
        if not self.started:
            raise WseError(ErrorCode.NOT_STARTED)
        callees: Sequence[Called] = await self._callees(cid, on_progress, upload)
        endpoint = self.endpoint
        return await call_user(endpoint.scheduler, callees, cid, name, payload, mode, timeout, endpoint.timeout)

    async def _callees(
        self, cid: ClientId, on_progress: Callable[[Any], Any] | None, upload: Items | None
    ) -> Sequence[Called]:
        """The user's devices, for a call with these options."""
        callees = await self.network.callees(cid)
        if on_progress is None and upload is None:
            return callees
        callees = await self.network.locate(callees)
        if upload is not None:  # it can be sent once
            callees = callees[-1:]
        return [WithOptions(callee, on_progress, upload) for callee in callees]

    async def newest(self, cid: ClientId, name: MessageType) -> Callee:
        """The newest of the user's devices that are there.

        Raises:
            WseError: `NOT_STARTED`; `CONNECTION_MISSING`; `BROKER_UNAVAILABLE`.
        """
        self.endpoint.check_thread()
        if not self.started:
            raise WseError(ErrorCode.NOT_STARTED)
        for callee in reversed(await self.network.callees(cid)):
            if there := await self.network.locate([callee]):
                return there[0]
        raise WseError(ErrorCode.CONNECTION_MISSING, {"cid": cid, "rp": name})

    # Presence.

    def conns_of(self, cid: ClientId) -> list[WseConnection]:
        """The user's valid connections of this node, the oldest first."""
        identity = self.identities.get(cid)
        return [] if identity is None else [conn for conn in identity._devices if conn._session.valid]

    def sessions_of(self, cid: ClientId) -> list[ServerSession]:
        """Their sessions; those that are there are last."""
        sessions = [conn._session for conn in self.conns_of(cid)]
        if self.resumption is not None and self.resumption.detached:
            # A call to the newest device prefers one that is there.
            sessions.sort(key=lambda session: session.conn.attached)
        return sessions

    def _listener_failed(self, exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
        session = args[0]._session if isinstance(args[0], WseConnection) else None
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"signal": signal}, f"a listener of {signal} raised")
        self.endpoint.report(error, session, exc)
