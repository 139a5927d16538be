"""The connections of a client: made, kept, moved and ended, one after the other (WIRE.md section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from wse.client.connection import Connection, is_asked_for
from wse.client.course import Course
from wse.client.extensions import add_client_extensions
from wse.client.inbox import InboxExtension, Kept
from wse.client.request import checked_url
from wse.client.resumption import Resumption
from wse.client.rooms import ClientRooms
from wse.client.session import CLOSE_TIMEOUT
from wse.client.status import BUSY, TRANSITIONS, Event
from wse.core.closing import JUMP, check_close
from wse.core.ports.scheduling import sleep
from wse.core.session.keepalive import Keepalive
from wse.core.urls import without_secrets
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientStatus, MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.client.resumption import Loss
    from wse.client.retry import Retry
    from wse.client.session import ClientSession
    from wse.client.signals import ClientSignals
    from wse.core.heartbeat import Heartbeat
    from wse.core.ports.transport import Connector
    from wse.core.resume import Resume
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.leftover import Leftover
    from wse.scheduler import AsyncioScheduler

LISTENERS_GRACE: Final = 1.0
"""Seconds that async listeners, those of `closed` among them, have to end when the client is closed."""

_ABORT_TIMEOUT: Final = 0.5
"""Seconds for a socket that is cut to be gone."""


class _Unset:
    """Stands for an argument that was not given, where None is a value like any other."""

    def __repr__(self) -> str:
        return "<as before>"


UNSET: Any = _Unset()


class ConnectionManager:
    """Makes, keeps and ends the connections of a client, one after the other.

    Args:
        endpoint: The part that all connections of the client share.
        when: The signals of the client.
        url: The address of the server.
        identity: The client's identity: a value, credentials, or a function that returns one of them.
        meta: Further facts for the server.
        headers: Headers of the HTTP request.
        connector: Opens WebSockets.
        retry: Decides whether and when to try again.
        heartbeat: When a silent server is asked for a sign of life, and when the connection is given up.
        scheduler: The endpoint's scheduler, which is bound to an event loop here.
        resume: Whether the session outlives its connection, or how much of it is kept.
        inbox: The name of the device in the inbox of its user, and the number of the last message that it has.

    Attributes:
        respond: The application's challenge handler.
        rooms: The rooms that the client enters.
        status: The state of the client.
        recovered: Whether the session has gone on over the present connection.
        gave_up: The reason why the client has no connection and does not try again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        when: ClientSignals,
        *,
        url: str,
        identity: Any,
        meta: dict[str, Any] | None,
        headers: Mapping[str, str],
        connector: Connector,
        retry: Retry,
        heartbeat: Heartbeat,
        scheduler: AsyncioScheduler,
        resume: Resume | bool,
        inbox: tuple[str, int | Kept | None] | None = None,
    ) -> None:
        self._endpoint = endpoint
        add_client_extensions(endpoint)
        self._resumption = Resumption(endpoint, resume, self._send)
        if resume is not False:
            endpoint.extensions.add(self._resumption)
        self.rooms = ClientRooms(endpoint, self.ready_session)
        endpoint.extensions.add(self.rooms)
        self._inbox = None if inbox is None else InboxExtension(endpoint, *inbox, when.inbox_lost._emit)
        if self._inbox is not None:
            endpoint.extensions.add(self._inbox)
        self._scheduler = scheduler
        self._when = when
        self.url = checked_url(url)
        self._identity = identity
        self._meta = meta
        self._headers = headers
        self._connector = connector
        self._retry = retry
        self._keepalive = Keepalive(scheduler, heartbeat, self._open_sessions)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._course = Course(None)
        self._connection: Connection | None = None
        self._sockets: set[ClientSession | Leftover] = set()  # whose socket has not closed yet
        self._lost_at: float | None = None  # when a connection was lost that is to be replaced
        self.recovered = False
        self.respond: Callable[[Any], Any] | None = None
        self.status = ClientStatus.IDLE
        self.gave_up: WseError | None = None

    @property
    def session(self) -> ClientSession | None:
        """The session of the connection, from the opening of its socket on."""
        return None if self._connection is None else self._connection.session

    def ready_session(self) -> ClientSession:
        """The session, of a client that is connected or keeps its session for the next connection.

        Raises:
            WseError: `CLIENT_NOT_READY`.
        """
        if self._resumption.kept is not None:
            return self._resumption.kept
        if self.status is ClientStatus.READY:
            session = self.session
            if session is not None:
                return session
        if self.status in BUSY:
            self._endpoint.check_thread()
        error = WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self.status)})
        self._endpoint.report(error)
        raise error

    # What the application decides.

    async def connect(self, identity: Any, meta: Any) -> Any:
        """See `WseClient.connect`."""
        self.enter()
        if self.status in BUSY:
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        self._introduce(identity, meta)
        return await self._run(self._new_course(awaited=True), Event.CONNECT)

    async def jump(self, url: str, identity: Any, meta: Any) -> Any:
        """See `WseClient.jump`."""
        url = checked_url(url)
        self.enter()
        if self._course.is_awaited:
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        was_busy = self.status in BUSY
        self.url = url
        self._introduce(identity, meta)
        course = self._new_course(awaited=True)
        self._leave(JUMP, "jump", keep=identity is UNSET)
        return await self._run(course, Event.RETRY if was_busy else Event.CONNECT)

    async def close(self, reason: str, grace: float = LISTENERS_GRACE) -> None:
        """See `WseClient.close`; listeners of kept messages have `grace` seconds to end."""
        check_close(1000, reason)
        reason = str(reason)
        self.enter()
        ended = self._course
        try:
            if self._inbox is not None:
                await self._inbox.settle(grace)
        finally:  # also if this is cancelled
            # The application may have connected or closed the client meanwhile.
            if self._course is ended:
                self._close(ended, reason)
        await self._wait_until_cut(ended.task)

    def _close(self, ended: Course, reason: str) -> None:
        course = self._new_course(awaited=False)
        self.rooms.closed()
        if ended.is_awaited:
            ended.fail(WseError(ErrorCode.CONNECTION_CLOSED, {"code": 1000, "reason": reason}))
        self._leave(1000, reason)
        if self._course is course:
            self._move(Event.END)

    async def wait_ready(self, timeout: float | None) -> Any:
        """See `WseClient.wait_ready`."""
        self.enter()
        async with asyncio.timeout(timeout):
            while self.status is not ClientStatus.READY:
                if self.status is ClientStatus.OFFLINE:
                    raise self.gave_up or WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self.status)})
                await self._when.updated.wait()
            (welcome,) = await self._when.ready.wait()
            return welcome

    async def wait_closed(self) -> WseError | None:
        """See `WseClient.wait_closed`."""
        self.enter()
        while self.status in BUSY:
            await self._when.updated.wait()
        for session in tuple(self._sockets):
            await session.wait_closed()
        return self.gave_up

    # One course.

    def enter(self) -> None:
        """Use the event loop that is running now, which need not be that of the last use.

        Raises:
            RuntimeError: The client is in use in another one.
        """
        loop = asyncio.get_running_loop()
        old = self._loop
        if loop is old:
            return
        if old is not None and not old.is_closed() and (self.status in BUSY or self._sockets):
            self._endpoint.check_thread()
            raise RuntimeError("the client is in use in another event loop; close it there first")
        self._loop = loop
        self._scheduler.bind()
        if old is None:
            return
        # Nothing of the old loop will run again: neither tasks nor timers, futures and transports.
        self._keepalive.stop()
        for session in self._sockets:
            with suppress(RuntimeError):  # the loop is closed
                session.link.abort()
        was_open = self.session is not None
        self._resumption.forget_loop()
        self.rooms.forget_loop()
        self._sockets.clear()
        self._connection = None
        course = self._course = Course(None)
        self._move(Event.END)
        if was_open and self._course is course:
            self._when.closed._emit(1006, "")

    def _introduce(self, identity: Any, meta: Any) -> None:
        if identity is not UNSET:
            if identity is not self._identity and identity != self._identity:
                self.rooms.introduced()
                if self._inbox is not None:
                    self._inbox.introduced()
            self._resumption.drop(1000, CloseReason.BY_CLIENT)
            self._identity = identity
            self._meta = None  # it was that of another identity
        if meta is not UNSET:
            self._meta = meta

    def _new_course(self, *, awaited: bool) -> Course:
        """The application has decided anew: end the attempt that is being made. Its connection is still to be left."""
        if self._course.task is not None:
            self._course.task.cancel()
        self._course = Course(self._scheduler.create_future() if awaited else None)
        self.gave_up = None
        self._lost_at = None
        self._retry.start_anew()
        return self._course

    def _leave(self, code: int, reason: str, *, keep: bool = False) -> None:
        """End the connection, if there is one, and the session, unless it is to be kept."""
        self._keepalive.stop()
        if self._inbox is not None:
            self._inbox.report()
        connection, self._connection = self._connection, None
        if not keep:
            self._resumption.drop(code, reason)
        if connection is None:
            return
        session = connection.session
        if keep and session is not None and session.ledger is not None and not session.ended:
            self._sockets.add(session.cut(code, reason, self._sockets.discard))
            self._resumption.keep(session, code, reason)
        elif not connection.close(code, reason):
            return
        course = self._course
        self._move(Event.LOSS if code == JUMP else Event.END)
        if self._course is course:
            self._when.closed._emit(code, reason)

    async def _run(self, course: Course, event: Event) -> Any:
        """Make attempts, wait for their outcome, and return the welcome."""
        if self._course is course:
            self._move(event)
        if self._course is course:
            self._attempt_after(course, 0.0)
        try:
            welcome = await course.outcome()
        except asyncio.CancelledError:
            if self._course is course:
                ended = self._new_course(awaited=False)
                self._leave(1000, CloseReason.BY_CLIENT)
                if self._course is ended:
                    self._move(Event.END)
            raise
        session = self.session
        if session is not None:
            session.release_input_soon()
        return welcome

    async def _wait_until_cut(self, attempt: asyncio.Task[None] | None) -> None:
        """Return when the attempt has ended and the sockets have closed, of which none outlives the timeouts."""
        attempts = {attempt} - {asyncio.current_task()} if attempt is not None and not attempt.done() else set()
        if not attempts and not self._ending():
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if attempts:
                    await asyncio.wait(attempts)
                for session in self._ending():
                    await session.wait_closed()
        except TimeoutError:
            for session in self._ending():
                session.link.abort()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ABORT_TIMEOUT):
                    for session in self._ending():
                        await session.wait_closed()

    def _ending(self) -> list[ClientSession | Leftover]:
        return [s for s in self._sockets if s.ended and s.ready_state is not ReadyState.CLOSED]

    # One attempt.

    def _attempt_after(self, course: Course, wait: float) -> None:
        course.task = asyncio.create_task(self._attempt(wait))

    async def _attempt(self, wait: float) -> None:
        if wait:
            await sleep(self._scheduler, wait)
        connection = self._connection = Connection(
            self,
            self._endpoint,
            connector=self._connector,
            url=self.url,
            headers=self._headers,
            identity=self._identity,
            meta=self._meta,
            respond=self.respond,
        )
        try:
            await connection.open()
        except Exception as exc:
            if self._connection is connection:  # else `connection_ended` has come before
                self._connection = None
                self._not_opened(exc)

    def _not_opened(self, exc: Exception) -> None:
        if isinstance(exc, WseError):
            error, close = exc, (1006, "") if exc.code == ErrorCode.WS_CLIENT_ERROR else None
        else:  # the connector's or the credentials' own
            error, close = WseError(ErrorCode.WS_CLIENT_ERROR, {"url": without_secrets(self.url)}), None
            error.__cause__ = exc
        course = self._course
        wait = self._retry.wait_after(error, close, renewable=is_asked_for(self._identity))
        if self._course is not course:
            return
        if wait is None:
            self.gave_up = error
            self._move(Event.END)
        self._go_on(course, wait, error, exc)

    def _go_on(self, course: Course, wait: float | None, error: WseError, raised: Exception | None) -> None:
        """Try again after `wait` seconds, or give up.

        Args:
            course: The course, if the application has not decided anew.
            wait: The seconds, or `None`.
            error: Why there is no connection.
            raised: The same for the caller that waits; `None` when a connection was lost, which `closed` has told.
        """
        if self._course is not course:
            return
        if wait is None and raised is not None and course.is_awaited:
            course.fail(raised)
        elif raised is not None:
            self._endpoint.report(error)
        if self._course is not course:
            return
        if wait is None:
            self.rooms.closed()
            self._tell_loss(self._resumption.lose("ended"))
            if self._course is course:
                self._when.gave_up._emit(error)
            return
        if raised is None:
            self._lost_at = self._scheduler.time()
            text = "the connection to %s is lost: %s; connecting again in %.1f s"
            self._endpoint.log.event("connection-lost", text, self.url, error, wait, url=self.url, code=str(error.code))
        self._move(Event.RETRY)
        if self._course is course:
            self._attempt_after(course, wait)

    # ConnectionOwner: called by the connection.

    def connection_opened(self, connection: Connection, session: ClientSession) -> None:
        self._sockets.add(session)
        if connection is self._connection:
            self._keepalive.start()
            self._when.connected._emit()

    def connection_welcomed(self, connection: Connection, welcome: Any) -> None:
        session = connection.session
        if connection is not self._connection or session is None:
            return
        if self._resumption.is_stale(session):
            self._connection = None
            session.close(1000, CloseReason.BY_CLIENT)
            self._attempt_after(self._course, 0.0)
            return
        try:
            going_on, loss = self._resumption.welcomed(session)
        except WseError as exc:
            self._endpoint.report(exc, session)
            loss = self._resumption.lose("mismatch")
            session.close(1000, CloseReason.PROTOCOL_ERROR)
            self._tell_loss(loss)
            return
        if going_on is not None:
            self._sockets.discard(session)
            self._sockets.add(going_on)
            session = connection.session = going_on
        self.recovered = going_on is not None
        self.rooms.welcomed(session, is_resumed=self.recovered)
        if self._lost_at is not None:
            self._tell_return(self._scheduler.time() - self._lost_at)
        course = self._course
        self._move(Event.WELCOME)
        if self._course is not course:
            return
        self._keepalive.start()
        if course.is_awaited:
            course.succeed(welcome)
        else:
            session.release_input_soon()
        self._tell_loss(loss)
        if self._connection is not connection:
            return
        if going_on is None:
            self._when.ready._emit(welcome)
        else:
            self._when.ready._emit_to_new(welcome)
            self._when.resumed._emit(welcome)
        if self._inbox is not None:
            self._inbox.welcomed(session)

    @property
    def keeps_session(self) -> bool:
        return self._resumption.kept is not None

    def connection_detached(self, connection: Connection, error: WseError, code: int, reason: str) -> None:
        if connection is self._connection and connection.session is not None:
            self._resumption.keep(connection.session, code, reason)
            self._connection_lost(connection, error, code, reason)
            self._tell_loss(self._resumption.lose_if_stuck())

    def connection_ended(self, connection: Connection, error: WseError, code: int, reason: str) -> None:
        session = connection.session
        if connection is self._connection:
            had_welcome = connection.welcomed_at is not None
            self._connection_lost(connection, error, code, reason)
            if had_welcome and session is not None and session.ledger is not None:
                self._tell_loss(self._resumption.loss(session, "overflow" if code == 1013 else "ended"))
        elif session is not None and session is self._resumption.kept:  # too much has waited
            self._resumption.forget()
            self._tell_loss(self._resumption.loss(session, "overflow"))

    def _connection_lost(self, connection: Connection, error: WseError, code: int, reason: str) -> None:
        self._connection = None
        if connection.welcomed_at is not None:
            self._retry.lasted(self._scheduler.time() - connection.welcomed_at)
        course = self._course
        was_ready = self.status is ClientStatus.READY
        close = None if connection.failed_itself else (code, reason)
        wait = self._retry.wait_after(error, close, renewable=is_asked_for(self._identity))
        if self._course is not course:
            return
        if wait is None:
            self.gave_up = error
        self._move(Event.END if wait is None else Event.LOSS)
        if self._course is course:
            self._when.closed._emit(code, reason)
        self._go_on(course, wait, error, None if was_ready else error)

    def socket_closed(self, session: ClientSession) -> None:
        self._sockets.discard(session)

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        self._when.ignored._emit(type, payload, stamp)

    # Inside.

    def _tell_return(self, seconds: float) -> None:
        self._lost_at = None
        text = "connected again to %s after %.1f s"
        self._endpoint.log.event("reconnected", text, self.url, seconds, url=self.url, seconds=round(seconds, 3))

    def _tell_loss(self, loss: Loss | None) -> None:
        if loss is not None:
            self._when.lost._emit(loss)

    def _send(self, type: MessageType, payload: Any, key: MessageKey | None) -> None:
        self.ready_session().send(type, payload, key)

    def _open_sessions(self) -> tuple[ClientSession, ...]:
        session = self.session
        return () if session is None else (session,)

    def _move(self, event: Event) -> None:
        status = TRANSITIONS[self.status].get(event)
        if status is not None:
            if self.status is ClientStatus.READY:
                self._when.ready._forget()
            self.status = status
            self._when.updated._emit(status)
