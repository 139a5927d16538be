"""The life of a client's connection: connecting, keeping it up, moving it, ending it (WIRE.md section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from wse.client.session import ClientOpening, ClientSession
from wse.core.closing import check_close
from wse.core.packed import encode
from wse.core.ports.credentials import Credentials
from wse.core.session.keepalive import Keepalive
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.backoff import Backoff
    from wse.client.signals import ClientSignals
    from wse.core.heartbeat import Heartbeat
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Connector, Link
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.session import Session

JUMP = 4000
"""The close code of `jump`; the client always reconnects at once after it (WIRE.md section 6)."""

RETRIED: Final = frozenset((1005, 1006, 1011, 1012, 1013, 1014))
"""Close codes after which a reconnecting client tries again (WIRE.md section 6)."""

_BUSY = (ClientStatus.CONNECTING, ClientStatus.READY, ClientStatus.RE_CONNECTING)


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
        identity: The client's identity, or credentials.
        meta: Further facts for the server.
        headers: Headers of the HTTP request.
        connector: Opens WebSockets.
        reconnect: Reconnect after a close that is retried.
        backoff: The waits before the attempts to reconnect.
        heartbeat: When a silent server is pinged, and when the connection is given up.

    Attributes:
        respond: The application's challenge handler.
        session: The connection, from its socket's opening to its end.
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
        reconnect: bool,
        backoff: Backoff,
        heartbeat: Heartbeat,
    ) -> None:
        self._endpoint = endpoint
        self._when = when
        self.url = checked_url(url)
        self._identity = identity
        self._meta = meta
        self._headers = headers
        self._connector = connector
        self._reconnect = reconnect
        self._backoff = backoff
        self._keepalive = Keepalive(endpoint.scheduler, heartbeat, self._alive)
        self._closes = 0  # how often the application has closed
        self.respond: Callable[[Any], Any] | None = None
        self.status = ClientStatus.IDLE
        self.session: ClientSession | None = None
        self._welcome: asyncio.Future[Any] | None = None  # of the attempt that is being made
        self._connecting: asyncio.Task[Any] | None = None

    @property
    def _protocol(self) -> Protocol:
        return self._endpoint.protocols[0]

    async def connect(self, identity: Any, meta: Any) -> Any:
        """See `WseClient.connect`."""
        if self.status in _BUSY:
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        self._introduce(identity, meta)
        self._set_status(ClientStatus.CONNECTING)
        return await self._connected()

    async def jump(self, url: str, identity: Any, meta: Any) -> Any:
        """See `WseClient.jump`."""
        url = checked_url(url)
        if self.status is ClientStatus.CONNECTING or self._is_awaited():
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        was_busy = self.status in _BUSY
        self.url = url
        if not was_busy:
            return await self.connect(identity, meta)
        self._introduce(identity, meta)
        self._stop_connecting()
        if self.session is not None:
            session, self.session = self.session, None
            session.close(JUMP, "jump")
            self._set_status(ClientStatus.OFFLINE)
            self._when.closed._emit(JUMP, "jump")
        self._set_status(ClientStatus.RE_CONNECTING)
        return await self._connected()

    async def close(self, reason: str) -> None:
        """See `WseClient.close`."""
        check_close(1000, reason)
        self._closes += 1
        session = self.session
        self._stop_connecting()
        self._keepalive.stop()
        if session is not None:
            session.close(1000, reason)
            await session.wait_closed()
        if self.status is not ClientStatus.IDLE:
            self._set_status(ClientStatus.OFFLINE)

    # Connecting.

    def _introduce(self, identity: Any, meta: Any) -> None:
        if identity is not UNSET:
            self._identity = identity
        if meta is not UNSET:
            self._meta = meta

    async def _connected(self) -> Any:
        """Run the attempts in a task, so that `close` can end them, and return the welcome."""
        task = self._connecting = asyncio.create_task(self._attempts())
        task.set_name("connect")
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                if self._connecting is task:
                    self._abandon(self.session)
                    self._set_status(ClientStatus.OFFLINE)
                raise
            details = {"code": 1000, "reason": str(CloseReason.BY_CLIENT)}
            raise WseError(ErrorCode.CONNECTION_CLOSED, details) from None
        finally:
            if self._connecting is task:
                self._connecting = None

    def _is_awaited(self) -> bool:
        """Whether a caller waits in `connect` or `jump`."""
        return self._connecting is not None and self._connecting.get_name() == "connect"

    async def _attempts(self, wait: bool = False) -> Any:
        """Attempt to connect until it succeeds or fails for good; the status is set by then."""
        failures = 0
        jumped = False
        while True:
            if wait:
                await asyncio.sleep(self._backoff.delay(failures))
                failures += 1
            try:
                return await self._attempt()
            except WseError as exc:
                # A session that ended has set the status and fired `closed`; a socket that never opened has not.
                self._set_status(ClientStatus.OFFLINE)
                if not self._is_retried(exc):
                    raise
                self._endpoint.report(exc)
                self._set_status(ClientStatus.RE_CONNECTING)
                # A server that closes with 4000 is returned to at once, but only the first time.
                wait = wait or jumped or exc.details.get("code") != JUMP
                jumped = True
            except Exception:
                # The connector's or the credentials' own.
                self._set_status(ClientStatus.OFFLINE)
                raise

    async def _attempt(self) -> Any:
        """Make one connection and return its welcome."""
        welcome = self._welcome = self._endpoint.scheduler.create_future()
        identity = self._identity
        credentials = identity if isinstance(identity, Credentials) else None
        payload = {
            "identity": identity if credentials is None else credentials.start(),
            "meta": self._meta or {},
        }
        hi = encode(self._protocol, self._protocol.internal_types.hi, payload)
        # This attempt's own: cancelled for another one, it may end when the other has begun.
        session: ClientSession | None = None

        def opened(link: Link) -> Session:
            nonlocal session
            session = self._open(link, hi, credentials)
            return session

        try:
            await self._connector(
                self.url,
                self._protocol.name,
                self._headers,
                self._endpoint.limits,
                opened,
            )
            return await welcome
        except BaseException:
            self._abandon(session)
            raise
        finally:
            welcome.cancel()
            if self._welcome is welcome:
                self._welcome = None

    def _open(self, link: Link, hi: Packed, credentials: Credentials | None) -> ClientSession:
        """A socket is open: say hi."""
        session = self.session = ClientSession(self, self._endpoint, link, self._protocol)
        if credentials is None:
            opening = ClientOpening(session, self, self.respond, None)
        else:
            opening = ClientOpening(session, self, credentials.respond, credentials.finish)
        session.enter(opening)
        if link.pings:
            self._keepalive.stop()  # its timer may be one of an event loop that has ended, and never come
            self._keepalive.start()
        link.write_shared(hi)
        self._when.connected._emit()
        return session

    def _alive(self) -> tuple[ClientSession, ...]:
        return () if self.session is None else (self.session,)

    def _abandon(self, session: ClientSession | None) -> None:
        """Close a connection that is no longer wanted."""
        if session is not None:
            if self.session is session:
                self.session = None
            session.close(1000, CloseReason.BY_CLIENT)

    def _stop_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _is_retried(self, exc: WseError) -> bool:
        code = exc.details.get("code")
        return code == JUMP or (self._reconnect and (exc.code == ErrorCode.WS_CLIENT_ERROR or code in RETRIED))

    # SessionOwner: called by the session.

    def session_welcomed(self, session: ClientSession, welcome: Any) -> None:
        self._set_status(ClientStatus.READY)
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(welcome)
        self._when.ready._emit(welcome)

    def session_failed(self, session: ClientSession, error: WseError) -> None:
        if session is self.session:
            self._fail(error)

    def session_ended(self, session: ClientSession, code: int, reason: str) -> None:
        if session is not self.session:
            return  # given up, or left behind by a jump
        self.session = None
        was_ready = self.status is ClientStatus.READY
        refused = reason == CloseReason.NOT_AUTHORIZED
        error_code = ErrorCode.NOT_AUTHORIZED if refused else ErrorCode.CONNECTION_CLOSED
        error = WseError(error_code, {"code": code, "reason": str(reason)})
        self._fail(error)
        self._set_status(ClientStatus.OFFLINE)
        closes = self._closes
        self._when.closed._emit(code, reason)
        was_left_alone = self._closes == closes and self.status is ClientStatus.OFFLINE
        if was_ready and was_left_alone and self._is_retried(error):
            self._set_status(ClientStatus.RE_CONNECTING)
            task = self._connecting = asyncio.create_task(self._attempts(wait=code != JUMP))
            task.add_done_callback(self._reconnected)

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        self._when.ignored._emit(type, payload, stamp)

    # Inside.

    def _fail(self, error: WseError) -> None:
        """The attempt that is being made has failed."""
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error)

    def _reconnected(self, task: asyncio.Task[Any]) -> None:
        if self._connecting is task:
            self._connecting = None
        cause = None if task.cancelled() else task.exception()
        if isinstance(cause, WseError):
            self._endpoint.report(cause)
        elif cause is not None:
            error = WseError(ErrorCode.WS_CLIENT_ERROR, {"url": self.url})
            error.__cause__ = cause
            self._endpoint.report(error)

    def ready_session(self) -> ClientSession:
        if self.status is ClientStatus.READY and self.session is not None:
            return self.session
        error = WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self.status)})
        self._endpoint.report(error)
        raise error

    def _set_status(self, status: ClientStatus) -> None:
        if status is not self.status:
            self.status = status
            self._when.updated._emit(status)


def checked_url(url: str) -> str:
    """The URL, if a WebSocket can be opened to it.

    Raises:
        ValueError: It cannot.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError(f"a WebSocket URL is ws://host or wss://host, not {url!r}")
    return url
