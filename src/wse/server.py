"""The server: the hub and its transports put together, and the server's life cycle."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from wse.core.endpoint import Endpoint, emit_error, error_listener_failed
from wse.core.hub import Hub, ServerSession, WseConnection, WseIdentity
from wse.core.limits import Limits
from wse.core.ports import Protocol
from wse.core.signals import Channel, Signal, check_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.files import StaticFile, js_client_path
from wse.protocols.json import WseJSON
from wse.scheduler import AsyncioScheduler
from wse.transports import picows
from wse.transports.asgi import AsgiApp
from wse.types import ClientId, F, MessageType

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from wse.core.handshake import AuthHandler
    from wse.core.ports import Link, Request
    from wse.core.session import Session
    from wse.transports.deflate import Compression

A = TypeVar("A", bound="AuthHandler")


class ServerSignals:
    """What happens to a server: `server.when`.

    Attributes:
        joined: `(identity, meta)`: a user has connected with a first device.
        left: `(identity, code, reason)`: a user's last device has gone.
        connected: `(conn)`: a device has connected.
        disconnected: `(conn, code, reason)`: a device has gone.
        ignored: `(conn, type, payload)`: a message came that nobody listens to.
        error: `(err, conn)`: a `WseError`, with the exception behind it as `__cause__`; `conn` may be None. Errors
            that nobody listens to are logged.
    """

    __slots__ = ("connected", "disconnected", "error", "ignored", "joined", "left")

    def __init__(self, hub: Hub) -> None:
        self.joined = hub.joined
        self.left = hub.left
        self.connected = hub.connected
        self.disconnected = hub.disconnected
        self.ignored = hub.ignored
        self.error: Signal[WseError, WseConnection | None] = Signal(
            "error", ("err", "conn"), hub.endpoint.scheduler, error_listener_failed
        )


class WseServer:
    """A WSE server.

    Args:
        identify: The identify handler, `fn(auth)`: it looks at a `Handshake` and calls `auth.accept` or
            `auth.refuse`. Also settable later, as the decorator `@server.identify`.
        host: The interface to listen on; `None` for all.
        port: The port to listen on; 0 takes a free one.
        path: The only path to accept, others get HTTP 404; `None` accepts every path.
        ssl: For `wss:`, an `ssl.SSLContext` with the server's certificate.
        conns_per_user: How many devices of one user may be connected; one more pushes out the oldest.
        timeout: Seconds that a call to a client waits for its answer; 0 for ever.
        auth_timeout: Seconds that a connection has to become valid; 0 for ever, `None` for `timeout`.
        protocol: The message protocol, or several in order of preference; the client's offer decides.
        limits: What one client may send.
        compression: Compress messages of 1 KiB and more for clients that can (permessage-deflate); off by default,
            since it costs far more time than it saves where the network is fast.
        serve_client: Serve the JavaScript client at `/wse.js`.
        files: Files to answer plain GETs with, by path: `{"/": "index.html"}`.
        debug: Send stack traces of failing procedures to their callers.

    Raises:
        ValueError: An argument out of its range.
        OSError: A file that cannot be read.
    """

    def __init__(
        self,
        identify: AuthHandler | None = None,
        *,
        host: str | None = "127.0.0.1",
        port: int | None = None,
        path: str | None = None,
        ssl: ssl.SSLContext | None = None,
        conns_per_user: int = 1,
        timeout: float = 20.0,
        auth_timeout: float | None = None,
        protocol: Protocol | Iterable[Protocol] | None = None,
        limits: Limits | None = None,
        compression: Compression | None = None,
        serve_client: bool = False,
        files: Mapping[str, str | Path] | None = None,
        debug: bool = False,
    ) -> None:
        self._scheduler = AsyncioScheduler()
        self._endpoint = Endpoint(
            ("conn",),
            protocols=as_protocols(protocol),
            scheduler=self._scheduler,
            timeout=timeout,
            limits=limits or Limits(),
            debug=debug,
            report=self._report,
        )
        deadline = timeout if auth_timeout is None else auth_timeout
        self._hub = Hub(self._endpoint, conns_per_user=conns_per_user, auth_timeout=deadline)
        self._host = host
        self._port = port
        self._path = path
        self._ssl = ssl
        self._compression = compression
        self._files = {at: StaticFile(Path(file)) for at, file in (files or {}).items()}
        if serve_client:
            self._files["/wse.js"] = StaticFile(js_client_path())
        self._reuse_port = False
        self._listener: asyncio.Server | None = None
        self._closing: asyncio.Future[None] | None = None
        self.when = ServerSignals(self._hub)
        if identify is not None:
            self.identify(identify)

    # Who may come in.

    def identify(self, fn: A) -> A:
        """Set the identify handler; usable as a decorator."""
        check_handler(fn, "auth")
        self._hub.identify = fn
        return fn

    def use_challenge(self, fn: A) -> A:
        """Set the challenge generator, `fn(auth)`; usable as a decorator.

        It runs before the identify handler and calls `auth.quest(value)` or `auth.refuse()`; a value other than None
        that it returns is the quest.
        """
        check_handler(fn, "auth")
        self._hub.generator = fn
        return fn

    # Who is there.

    @property
    def clients(self) -> Mapping[ClientId, WseIdentity]:
        """The users that are connected, by `cid`; read-only."""
        return MappingProxyType(self._hub.identities)

    @property
    def protocol(self) -> Protocol | tuple[Protocol, ...]:
        """The message protocol, or all of them when there are several."""
        protocols = self._endpoint.protocols
        return protocols[0] if len(protocols) == 1 else protocols

    @property
    def conns_per_user(self) -> int:
        """How many devices of one user may be connected."""
        return self._hub.conns_per_user

    @property
    def timeout(self) -> float:
        """Seconds that a call to a client waits for its answer; 0 for ever."""
        return self._endpoint.timeout

    # Messages and calls.

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(conn, payload)`."""
        return self._endpoint.channel

    def broadcast(self, type: MessageType, payload: Any = None) -> None:
        """Send a message to every connection; it is encoded once.

        Raises:
            WseError: As `WseConnection.send`.
        """
        self._hub.broadcast(type, payload)

    def send(self, cid: ClientId, type: MessageType, payload: Any = None) -> None:
        """Send a message to all devices of a user; nothing happens if the user is not connected.

        Raises:
            WseError: As `WseConnection.send`.
        """
        identity = self._hub.identities.get(cid)
        if identity is not None:
            identity.send(type, payload)

    @overload
    def register(self, name: MessageType, fn: F) -> F: ...
    @overload
    def register(self, name: MessageType) -> Callable[[F], F]: ...
    def register(self, name: MessageType, fn: F | None = None) -> F | Callable[[F], F]:
        """Let clients call `fn(conn, payload)` under that name; without `fn`, a decorator.

        What it returns is the caller's result. A `WseError` that it raises arrives at the caller as it is, any
        other exception as `RP_EXECUTION_FAILED`.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is WSE's own.
            TypeError: `fn` cannot take `(conn, payload)`.
        """
        procedures = self._endpoint.procedures
        return procedures.register(name) if fn is None else procedures.register(name, fn)

    def unregister(self, name: MessageType) -> None:
        """Take a procedure away.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self._endpoint.procedures.unregister(name)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.NO_REASON) -> None:
        """Disconnect all devices of a user; `left` fires once. Nothing happens if the user is not connected.

        Raises:
            ValueError: A reason longer than a close frame can carry.
        """
        self._hub.drop_client(cid, reason)

    # Life cycle.

    def configure(self, *, host: str | None = None, port: int | None = None, reuse_port: bool | None = None) -> None:
        """Change where the server will listen, as the `wse` command does; what is None stays as it is.

        Args:
            host: The interface; `""` for all.
            port: The port; 0 takes a free one.
            reuse_port: Share the port with other processes of this user that want to share it, too (SO_REUSEPORT).

        Raises:
            RuntimeError: It listens already.
        """
        if self._listener is not None:
            raise RuntimeError("the server has been started")
        if host is not None:
            self._host = host
        if port is not None:
            self._port = port
        if reuse_port is not None:
            self._reuse_port = reuse_port

    @property
    def host(self) -> str | None:
        """The interface that it listens on; `None` or `""` for all."""
        return self._host

    @property
    def port(self) -> int | None:
        """The port that it listens on; before `start`, the one that was asked for."""
        if self._listener is not None and self._listener.sockets:
            port: int = self._listener.sockets[0].getsockname()[1]
            return port
        return self._port

    @property
    def url(self) -> str:
        """Where clients of this machine reach it."""
        everywhere = {None: "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here
        host = everywhere.get(self._host, self._host)
        scheme = "ws" if self._ssl is None else "wss"
        address = f"[{host}]" if host and ":" in host else host
        return f"{scheme}://{address}:{self.port}{self._path or ''}"

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`.
            ValueError: No port was given.
            RuntimeError: It listens already.
            OSError: The port cannot be had.
        """
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        if self._port is None:
            raise ValueError("a server that listens needs a port: WseServer(port=4200), or port=0 for a free one")
        if self._listener is not None:
            raise RuntimeError("the server has been started")
        self._closing = self._scheduler.bind().create_future()
        self._listener = await picows.listen(
            self,
            host=self._host,
            port=self._port,
            reuse_port=self._reuse_port,
            path=self._path,
            ssl=self._ssl,
            handshake_timeout=self._hub.auth_timeout or None,
            files=self._files,
            compression=self._compression,
        )

    async def serve_forever(self) -> None:
        """Return when the server has been closed; starts it if need be."""
        if self._listener is None:
            await self.start()
        assert self._closing is not None  # start() has made it
        await asyncio.shield(self._closing)

    async def close(self) -> None:
        """Stop listening, close every connection with 1012 and `wse.by-server`, and cancel handlers that still run.

        Returns when all sockets are closed.
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        await self._hub.close(1012, CloseReason.BY_SERVER)
        await self._scheduler.cancel_all()
        if listener is not None:
            await listener.wait_closed()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self._closing = None

    def run(self) -> None:
        """Serve in an event loop of its own until SIGINT or SIGTERM, then close. Blocks.

        Raises:
            WseError, ValueError, OSError: As `start`.
        """
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        try:
            await self.start()
            await stop.wait()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            await self.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Inside a web application.

    @cached_property
    def asgi(self) -> AsgiApp:
        """The server as an ASGI 3 application, for `websocket` and `lifespan` scopes.

        The application's lifespan starts and stops it; where a framework keeps the lifespan to itself the first
        connection starts it, and the application's own shutdown should await `close`.
        """
        return AsgiApp(self, self._path, self._attached, self.close)

    @cached_property
    def aiohttp(self) -> Callable[[Any], Awaitable[Any]]:
        """The server as a handler for an aiohttp application: `app.router.add_get("/ws", server.aiohttp)`.

        The application's `on_shutdown` should await `close`.

        Raises:
            ImportError: aiohttp is not installed.
        """
        from wse.transports.aiohttp import handler

        return handler(self, self._attached)

    def _attached(self) -> None:
        """A web application has started, or has a connection for us."""
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        if self._closing is None or self._closing.get_loop() is not asyncio.get_running_loop():
            self._closing = self._scheduler.bind().create_future()

    # Acceptor: what the transports call.

    @property
    def limits(self) -> Limits:
        """What one client may send."""
        return self._endpoint.limits

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The protocol for the subprotocols that a client offers; see `wse.core.ports.Acceptor`."""
        known = {protocol.name: protocol for protocol in self._endpoint.protocols}
        return next((known[name] for name in offered if name in known), None)

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> ServerSession:
        """Take over a WebSocket that has just been opened; see `wse.core.ports.Acceptor`."""
        return self._hub.open(link, request, protocol)

    def _report(self, error: WseError, session: Session | None) -> None:
        emit_error(self.when.error, error, session.conn if isinstance(session, ServerSession) else None)


def as_protocols(protocol: Protocol | Iterable[Protocol] | None) -> tuple[Protocol, ...]:
    """The protocols as given, JSON by default.

    Raises:
        ValueError: None, or two of one name.
        TypeError: Something else than protocols.
    """
    if protocol is None:
        return (WseJSON(),)
    protocols = (protocol,) if isinstance(protocol, Protocol) else tuple(protocol)
    for item in protocols:
        if not isinstance(item, Protocol):
            raise TypeError(f"a protocol must be a wse.Protocol, not {item!r}")
        if not getattr(item, "name", None):
            raise TypeError(f"a protocol needs a name, the WebSocket subprotocol that stands for it: {item!r}")
    if not protocols or len({item.name for item in protocols}) < len(protocols):
        raise ValueError("a server needs at least one protocol, each with a name of its own")
    return protocols
