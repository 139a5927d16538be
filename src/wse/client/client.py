"""The client: one user's device, with its connection kept up if so wished (WIRE.md section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from urllib.parse import urlsplit

from wse.client.backoff import Backoff
from wse.client.session import ClientOpening, ClientSession
from wse.core.endpoint import Endpoint, emit_error, error_listener_failed
from wse.core.limits import Limits
from wse.core.ports import Credentials, Protocol
from wse.core.session import encode
from wse.core.signals import Channel, Signal, check_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.scheduler import AsyncioScheduler
from wse.transports import picows
from wse.types import ClientStatus, F, MessageType

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from wse.core.packed import Packed
    from wse.core.ports import Connector, Link
    from wse.core.session import Session
    from wse.transports.deflate import Compression

JUMP = 4000
"""The close code of `jump`; who closes with it is reconnected to, at once and always (WIRE.md section 6)."""

RETRIED: Final = frozenset((1005, 1006, 1011, 1012, 1013, 1014))
"""Close codes after which a reconnecting client tries again (WIRE.md section 6)."""

_BUSY = (ClientStatus.CONNECTING, ClientStatus.READY, ClientStatus.RE_CONNECTING)


class _Unset:
    """Stands for an argument that was not given, where None is a value like any other."""

    def __repr__(self) -> str:
        return "<as before>"


_UNSET: Any = _Unset()

H = TypeVar("H", bound="Callable[[Any], Any]")


class ClientSignals:
    """What happens to a client: `client.when`.

    Attributes:
        connected: `()`: the socket is open; the welcome is still to come.
        ready: `(welcome)`: the server has accepted us. A listener that is added later gets the last welcome.
        closed: `(code, reason)`: the connection has ended.
        error: `(err)`: a `WseError`, with the exception behind it as `__cause__`. Errors that nobody listens to are
            logged.
        updated: `(status)`: `client.status` has changed.
        ignored: `(type, payload, stamp)`: a message came that nobody listens to.
    """

    __slots__ = ("closed", "connected", "error", "ignored", "ready", "updated")

    def __init__(self, endpoint: Endpoint) -> None:
        def failed(exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
            details = {"signal": signal}
            endpoint.report(
                WseError(ErrorCode.MSG_PROCESSING_ERROR, details, f"a listener of {signal} raised"), None, exc
            )

        def signal(name: str, *takes: str, replay: bool = False) -> Signal[*tuple[Any, ...]]:
            return Signal(name, takes, endpoint.scheduler, failed, replay=replay)

        self.connected: Signal[()] = signal("connected")
        self.ready: Signal[Any] = signal("ready", "welcome", replay=True)
        self.closed: Signal[int, str] = signal("closed", "code", "reason")
        self.updated: Signal[ClientStatus] = signal("updated", "status")
        self.ignored: Signal[Any, Any, Any] = signal("ignored", "type", "payload", "stamp")
        self.error: Signal[WseError] = Signal("error", ("err",), endpoint.scheduler, error_listener_failed)


class WseClient:
    """A WSE client.

    Entering it as a context manager connects, leaving it closes.

    Args:
        url: Where the server is, `ws:` or `wss:`.
        identity: Who we are: whatever the server's identify handler understands, or credentials that take part in
            the handshake, such as `wse.auth.Scram`.
        meta: What the server may want to know beside.
        reconnect: Reconnect when the connection is lost, after the waits that `backoff` gives.
        timeout: Seconds that a call waits for its answer, and that a socket may take to open; 0 for ever.
        protocol: The message protocol; `WseJSON` by default.
        ssl: For `wss:`, an `ssl.SSLContext`; by default the system's certificates are trusted.
        headers: Sent with the HTTP request that opens the WebSocket.
        backoff: How long to wait before each attempt to reconnect.
        limits: What the server may send.
        compression: Ask the server for permessage-deflate; off by default.
        debug: Send stack traces of failing procedures to the server.
        connector: Opens WebSockets; for tests and other transports.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        url: str,
        *,
        identity: Any = "",
        meta: dict[str, Any] | None = None,
        reconnect: bool = False,
        timeout: float = 20.0,
        protocol: Protocol | None = None,
        ssl: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
        limits: Limits | None = None,
        compression: Compression | None = None,
        debug: bool = False,
        connector: Connector | None = None,
    ) -> None:
        self._url = _checked(url)
        self._identity = identity
        self._meta = meta
        self._reconnect = reconnect
        self._protocol = protocol or WseJSON()
        self._headers = dict(headers or {})
        self._backoff = backoff or Backoff()
        self._connector = connector or partial(picows.connect, ssl=ssl, timeout=timeout, compression=compression)
        self._scheduler = AsyncioScheduler()
        self._endpoint = Endpoint(
            (),
            protocols=(self._protocol,),
            scheduler=self._scheduler,
            timeout=timeout,
            limits=limits or Limits(),
            debug=debug,
            report=self._report,
        )
        self._respond: Callable[[Any], Any] | None = None
        self._status = ClientStatus.IDLE
        self._session: ClientSession | None = None
        self._welcome: asyncio.Future[Any] | None = None  # of the attempt that is being made
        self._connecting: asyncio.Task[Any] | None = None
        self.when = ClientSignals(self._endpoint)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._url

    @property
    def status(self) -> ClientStatus:
        """What the client is doing."""
        return self._status

    @property
    def protocol(self) -> Protocol:
        """The message protocol."""
        return self._protocol

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(payload)`."""
        return self._endpoint.channel

    # Messages and calls.

    def send(self, type: MessageType, payload: Any = None) -> None:
        """Send a message to the server.

        Raises:
            WseError: `CLIENT_NOT_READY`; `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR`
                for a payload that cannot be encoded.
        """
        self._ready_session().send(type, payload)

    async def call(self, name: MessageType, payload: Any = None, *, timeout: float | None = None) -> Any:
        """Call a procedure of the server and return its result.

        Args:
            name: The procedure, as the server registered it.
            payload: What it gets.
            timeout: Seconds to wait for the answer: `None` for the client's `timeout`, 0 for ever.

        Raises:
            WseError: What the procedure raised, or `CLIENT_NOT_READY`, `RP_NOT_REGISTERED`, `RP_TIMEOUT`,
                `RP_DISCONNECT`, `RP_SEND_FAILED` (WIRE.md section 4).
        """
        return await self._ready_session().call(name, payload, timeout)

    @overload
    def register(self, name: MessageType, fn: F) -> F: ...
    @overload
    def register(self, name: MessageType) -> Callable[[F], F]: ...
    def register(self, name: MessageType, fn: F | None = None) -> F | Callable[[F], F]:
        """Let the server call `fn(payload)` under that name; without `fn`, a decorator.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is WSE's own.
            TypeError: `fn` cannot take `(payload)`.
        """
        procedures = self._endpoint.procedures
        return procedures.register(name) if fn is None else procedures.register(name, fn)

    def unregister(self, name: MessageType) -> None:
        """Take a procedure away.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self._endpoint.procedures.unregister(name)

    def challenge(self, fn: H) -> H:
        """Set the handler that answers the server's quest, `fn(quest)`; usable as a decorator.

        Raises:
            TypeError: `fn` cannot take `(quest)`.
        """
        check_handler(fn, "quest")
        self._respond = fn
        return fn

    # Life cycle.

    async def connect(self, identity: Any = _UNSET, meta: dict[str, Any] | None = _UNSET) -> Any:
        """Connect and return the welcome payload.

        Args:
            identity: Who we are; by default as before.
            meta: What the server may want to know beside; by default as before.

        Raises:
            WseError: `CLIENT_ALREADY_CONNECTED`; `WS_CLIENT_ERROR`, no WebSocket could be opened; `NOT_AUTHORIZED`,
                the server refused us; `CONNECTION_CLOSED`, closed before the welcome, with `code` and `reason` in
                the details. With `reconnect`, only what will not be tried again raises.
        """
        if self._status in _BUSY:
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        self._introduce(identity, meta)
        self._set_status(ClientStatus.CONNECTING)
        return await self._connected()

    async def jump(self, url: str, identity: Any = _UNSET, meta: dict[str, Any] | None = _UNSET) -> Any:
        """Move to another server and return its welcome payload; on an idle client it is `connect`.

        Args:
            url: Where to go.
            identity: Who we are there; by default as before.
            meta: What that server may want to know beside; by default as before.

        Raises:
            WseError: As `connect`; `CLIENT_ALREADY_CONNECTED`, while a `connect` or another `jump` is under way.
            ValueError: `url` is no WebSocket URL.
        """
        url = _checked(url)
        if self._status is ClientStatus.CONNECTING or self._is_awaited():
            raise WseError(ErrorCode.CLIENT_ALREADY_CONNECTED)
        was_busy = self._status in _BUSY
        self._url = url
        if not was_busy:
            return await self.connect(identity, meta)
        self._introduce(identity, meta)
        self._stop_connecting()
        if self._session is not None:
            session, self._session = self._session, None
            session.close(JUMP, "jump")
            self._set_status(ClientStatus.OFFLINE)
            self.when.closed.emit(JUMP, "jump")
        self._set_status(ClientStatus.RE_CONNECTING)
        return await self._connected()

    async def close(self, reason: str = CloseReason.BY_CLIENT) -> None:
        """Disconnect with code 1000, and do not reconnect; returns when the socket is closed.

        Args:
            reason: Told to the server; at most 123 bytes of UTF-8.
        """
        session = self._session
        self._stop_connecting()
        if session is not None:
            session.close(1000, reason)
            await session.wait_closed()
        if self._status is not ClientStatus.IDLE:
            self._set_status(ClientStatus.OFFLINE)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
        await self._scheduler.cancel_all()

    # Connecting.

    def _introduce(self, identity: Any, meta: Any) -> None:
        if identity is not _UNSET:
            self._identity = identity
        if meta is not _UNSET:
            self._meta = meta

    async def _connected(self) -> Any:
        """Run the attempts in a task, so that `close` can end them, and return the welcome."""
        self._scheduler.bind()
        task = self._connecting = asyncio.create_task(self._attempts())
        task.set_name("connect")
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                if self._connecting is task:
                    self._abandon(self._session)
                    self._set_status(ClientStatus.OFFLINE)
                raise
            details = {"code": 1000, "reason": str(CloseReason.BY_CLIENT)}
            raise WseError(ErrorCode.CONNECTION_CLOSED, details) from None
        finally:
            if self._connecting is task:
                self._connecting = None

    def _is_awaited(self) -> bool:
        """Whether somebody waits in `connect` or `jump`."""
        return self._connecting is not None and self._connecting.get_name() == "connect"

    async def _attempts(self, wait: bool = False) -> Any:
        """Attempt to connect until it succeeds or fails for good; the status is set by then."""
        failures = 0
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
                self._report(exc, None)
                self._set_status(ClientStatus.RE_CONNECTING)
                wait = wait or exc.details.get("code") != JUMP
            except Exception:
                # The connector's or the credentials' own.
                self._set_status(ClientStatus.OFFLINE)
                raise

    async def _attempt(self) -> Any:
        """Make one connection and return its welcome."""
        welcome = self._welcome = self._scheduler.create_future()
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
                self._url,
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
        session = self._session = ClientSession(self, self._endpoint, link, self._protocol)
        if credentials is None:
            opening = ClientOpening(session, self, self._respond, None)
        else:
            opening = ClientOpening(session, self, credentials.respond, credentials.finish)
        session.enter(opening)
        link.write_shared(hi)
        self.when.connected.emit()
        return session

    def _abandon(self, session: ClientSession | None) -> None:
        """Nobody waits for this connection any more."""
        if session is not None:
            if self._session is session:
                self._session = None
            session.close(1000, CloseReason.BY_CLIENT)

    def _stop_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None

    def _is_retried(self, exc: WseError) -> bool:
        code = exc.details.get("code")
        return code == JUMP or (self._reconnect and (exc.code == ErrorCode.WS_CLIENT_ERROR or code in RETRIED))

    # SessionOwner: what the session tells.

    def session_welcomed(self, session: ClientSession, welcome: Any) -> None:
        self._set_status(ClientStatus.READY)
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result(welcome)
        self.when.ready.emit(welcome)

    def session_failed(self, session: ClientSession, error: WseError) -> None:
        if session is self._session:
            self._fail(error)

    def session_ended(self, session: ClientSession, code: int, reason: str) -> None:
        if session is not self._session:
            return  # given up, or left behind by a jump
        self._session = None
        was_ready = self._status is ClientStatus.READY
        refused = reason == CloseReason.NOT_AUTHORIZED
        error_code = ErrorCode.NOT_AUTHORIZED if refused else ErrorCode.CONNECTION_CLOSED
        error = WseError(error_code, {"code": code, "reason": str(reason)})
        self._fail(error)
        self._set_status(ClientStatus.OFFLINE)
        self.when.closed.emit(code, reason)
        if was_ready and self._is_retried(error) and self._status is ClientStatus.OFFLINE:
            self._set_status(ClientStatus.RE_CONNECTING)
            task = self._connecting = asyncio.create_task(self._attempts(wait=code != JUMP))
            task.add_done_callback(self._reconnected)

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        self.when.ignored.emit(type, payload, stamp)

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
            self._report(cause, None)
        elif cause is not None:
            error = WseError(ErrorCode.WS_CLIENT_ERROR, {"url": self._url})
            error.__cause__ = cause
            self._report(error, None)

    def _ready_session(self) -> ClientSession:
        if self._status is ClientStatus.READY and self._session is not None:
            return self._session
        error = WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self._status)})
        self._report(error, None)
        raise error

    def _set_status(self, status: ClientStatus) -> None:
        if status is not self._status:
            self._status = status
            self.when.updated.emit(status)

    def _report(self, error: WseError, session: Session | None) -> None:
        emit_error(self.when.error, error)

    def __repr__(self) -> str:
        return f"<WseClient {self._status}>"


def _checked(url: str) -> str:
    """The URL, if a WebSocket can be opened to it.

    Raises:
        ValueError: It cannot.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError(f"a WebSocket URL is ws://host or wss://host, not {url!r}")
    return url
