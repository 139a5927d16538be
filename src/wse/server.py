"""The server: the hub and its transports put together, and the server's life cycle."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from wse.clusters import join_cluster
from wse.core.admission import Admission
from wse.core.cluster import ClusterSettings
from wse.core.endpoint import Endpoint, emit_error, error_listener_failed
from wse.core.heartbeat import Heartbeat
from wse.core.hub import Hub, ServerSession, WseConnection, WseIdentity
from wse.core.limits import Limits, Overflow
from wse.core.ports import Protocol
from wse.core.rpc import ExposeErrors
from wse.core.signals import Channel, Signal, check_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.files import StaticFile, js_client_path
from wse.messaging import Messaging
from wse.protocols.choice import as_protocols
from wse.scheduler import AsyncioScheduler
from wse.transports import picows
from wse.transports.asgi import AsgiApp
from wse.types import ClientId, F, MessageType
from wse.watchdog import Watchdog

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from wse.core.broker import Broker
    from wse.core.handshake import AuthHandler
    from wse.core.outgoing import Outgoing
    from wse.core.ports import Link, Request
    from wse.core.stats import Stats
    from wse.transports.deflate import Compression

A = TypeVar("A", bound="AuthHandler")

_NOT_STARTED = "not started"  # or closed


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


class WseServer(Messaging):
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
        origins: Which web pages may connect. A browser tells the page's origin; one of the same host and port as the
            server's, as the request's `Host` header has it, may always connect, whatever the scheme, and so may what
            sends no origin: programs. Others are refused with HTTP 403 unless they are listed:
            `"https://app.example"`, `"https://*.example.com"` for all subdomains, `"null"`, or `"*"` for all.
        trusted_proxies: Addresses and networks of the proxies in front, `"10.0.0.0/8"`; `"unix"` for those that come by
            a Unix socket. From these, and from nobody else, `X-Forwarded-For`, or else `Forwarded`, tells a client's
            address.
        compression: Compress messages of 1 KiB and more for clients that can (permessage-deflate); off by default,
            since it costs far more time than it saves where the network is fast.
        serve_client: Serve the JavaScript client at `/wse.js`.
        files: Files to answer plain GETs with, by path: `{"/": "index.html"}`.
        overflow: What becomes of messages for a device that does not take them, by message type; see `Overflow`. Those
            of other types close its connection when `limits.send_buffer` is reached.
        heartbeat: When silent devices are pinged, and given up; on our own listener. Web servers keep their own.
        watchdog: Seconds that a handler may keep the event loop from turning before it is reported on `error`, with its
            name, as `HANDLER_BLOCKED`; `None` does not look.
        broker: Joins this server to a cluster: a broker's URL, `nats://...` or `redis://...`, or a broker. By default
            the server is on its own.
        cluster: Times and bounds of the cluster.
        expose_errors: What the caller of a failing procedure is told of the exception; see `ExposeErrors`.
        debug: Send stack traces of failing procedures to their callers, too.

    Raises:
        ValueError: An argument out of its range; an origin or a proxy that is none.
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
        origins: str | Iterable[str] | None = None,
        trusted_proxies: str | Iterable[str] | None = None,
        compression: Compression | None = None,
        serve_client: bool = False,
        files: Mapping[str, str | Path] | None = None,
        overflow: Mapping[MessageType, Overflow | str] | None = None,
        heartbeat: Heartbeat | None = None,
        watchdog: float | None = 1.0,
        expose_errors: ExposeErrors | str = ExposeErrors.MESSAGE,
        broker: str | Broker | None = None,
        cluster: ClusterSettings | None = None,
        debug: bool = False,
    ) -> None:
        self._scheduler = AsyncioScheduler()
        self._endpoint = Endpoint(
            ("conn",),
            protocols=as_protocols(protocol),
            scheduler=self._scheduler,
            timeout=timeout,
            limits=limits or Limits(),
            overflow=overflow,
            expose=expose_errors,
            debug=debug,
            report=self._report,
        )
        deadline = timeout if auth_timeout is None else auth_timeout
        self._heartbeat = heartbeat or Heartbeat()
        self._hub = Hub(self._endpoint, conns_per_user=conns_per_user, auth_timeout=deadline, heartbeat=self._heartbeat)
        if broker is not None:
            self._hub.cluster = join_cluster(self._hub, broker, cluster or ClusterSettings())
        self._watchdog = None if watchdog is None else Watchdog(watchdog, self._handler_blocked)
        self._started_at: float | None = None
        self._admission = Admission(origins, trusted_proxies)
        if port is not None:
            self._admission.unready.add(_NOT_STARTED)
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

    def stats(self) -> Stats:
        """What the server has done, and what it holds; counting costs next to nothing, and this a look at each
        connection."""
        uptime = 0.0 if self._started_at is None else self._scheduler.time() - self._started_at
        return self._hub.stats(
            uptime=uptime,
            running_handlers=self._scheduler.running,
            refused_origins=self._admission.refused_origins,
        )

    # Messages and calls.

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(conn, payload)`."""
        return self._endpoint.channel

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

    def use_broker(self, broker: str | Broker, settings: ClusterSettings | None = None) -> None:
        """Join a cluster, as `broker=` and `cluster=` do when the server is made.

        Raises:
            RuntimeError: It listens already.
            ValueError: A URL of no known broker.
            ImportError: The broker needs a library that is not installed.
        """
        if self._closing is not None:
            raise RuntimeError("the server has been started")
        self._hub.cluster = join_cluster(self._hub, broker, settings or ClusterSettings())

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

    @property
    def ready(self) -> bool:
        """Whether it should be sent new connections; `/readyz` at its own port answers 503 while it should not.

        It is from `start`, or from the beginning without a port, until `close`, which refuses them with HTTP 503. A
        node of a cluster that does not hear the others is not ready either, but takes those that come all the same.
        """
        cluster = self._hub.cluster
        return not self._admission.unready and (cluster is None or cluster.healthy)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`; `BROKER_UNAVAILABLE`.
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
        await self._attach()
        try:
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
        except BaseException:
            await self.close()
            raise

    async def serve_forever(self) -> None:
        """Return when the server has been closed; starts it if need be."""
        if self._listener is None:
            await self.start()
        assert self._closing is not None  # start() has made it
        await asyncio.shield(self._closing)

    async def close(self, grace: float = 0.0, *, notice: float = 0.0) -> None:
        """Stop serving; returns when all sockets are closed.

        In this order: `/readyz` answers 503, and nobody is let in any more; the port is closed; handlers that run have
        `grace` seconds to end; every connection is closed with 1012 and `wse.by-server`, a thousand of them in a
        second, so that not all clients return at once; handlers that still run are cancelled.

        Args:
            grace: Seconds that running handlers have, calls among them. Messages and calls are served meanwhile.
            notice: Seconds for which the port stays open and `/readyz` answers 503, as do requests for a WebSocket, so
                that load balancers that ask now and then send nobody any more by its end.
        """
        self._admission.unready.add(_NOT_STARTED)
        await self._scheduler.pause(notice)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._hub.refuse(1012, CloseReason.BY_SERVER)
        await self._scheduler.settle(self._hub.tasks, grace)
        await self._hub.close(1012, CloseReason.BY_SERVER)
        if self._hub.cluster is not None:
            await self._hub.cluster.close()
        await self._scheduler.cancel_all()
        if listener is not None:
            await listener.wait_closed()
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self._closing = None
        self._started_at = None

    def run(self, *, grace: float = 10.0, notice: float = 0.0) -> None:
        """Serve in an event loop of its own until SIGINT or SIGTERM, then close. Blocks.

        Args:
            grace: As for `close`. A second signal ends it at once.
            notice: As for `close`.

        Raises:
            WseError, ValueError, OSError: As `start`.
        """
        asyncio.run(self._run(grace, notice))

    async def _run(self, grace: float, notice: float) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def stop_or_hurry() -> None:
            if stop.is_set():
                self._scheduler.hurry()
            stop.set()

        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, stop_or_hurry)
        try:
            await self.start()
            await stop.wait()
        finally:
            await self.close(grace, notice=notice)
            for number in signals:
                loop.remove_signal_handler(number)

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
        return AsgiApp(self, self._path, self._attach, self.close)

    @cached_property
    def aiohttp(self) -> Callable[[Any], Awaitable[Any]]:
        """The server as a handler for an aiohttp application: `app.router.add_get("/ws", server.aiohttp)`.

        The application's `on_shutdown` should await `close`.

        Raises:
            ImportError: aiohttp is not installed.
        """
        from wse.transports.aiohttp import handler

        return handler(self, self._attach)

    async def _attach(self) -> None:
        """The server is about to serve: in its own listener, or in a web application that has a connection for it.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`; `BROKER_UNAVAILABLE`.
        """
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        if self._closing is None or self._closing.get_loop() is not asyncio.get_running_loop():
            self._begin()
            self._admission.unready.discard(_NOT_STARTED)
        if self._hub.cluster is not None:
            await self._hub.cluster.attend()

    def _begin(self) -> None:
        """The server lives in the event loop that runs now, until it is closed."""
        loop = self._scheduler.bind()
        self._closing = loop.create_future()
        self._started_at = self._scheduler.time()
        if self._watchdog is not None:
            self._watchdog.start(loop)

    def _handler_blocked(self, handler: str, seconds: float) -> None:
        details = {"handler": handler, "seconds": round(seconds, 3)}
        self._endpoint.report(WseError(ErrorCode.HANDLER_BLOCKED, details, f"{handler} blocked for {seconds:.1f} s"))

    # Acceptor: what the transports call.

    @property
    def limits(self) -> Limits:
        """What one client may send."""
        return self._endpoint.limits

    @property
    def admission(self) -> Admission:
        """Who may open a WebSocket."""
        return self._admission

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The protocol for the subprotocols that a client offers; see `wse.core.ports.Acceptor`."""
        known = {protocol.name: protocol for protocol in self._endpoint.protocols}
        return next((known[name] for name in offered if name in known), None)

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> ServerSession:
        """Take over a WebSocket that has just been opened; see `wse.core.ports.Acceptor`."""
        return self._hub.open(link, request, protocol)

    def _report(self, error: WseError, session: Outgoing | None) -> None:
        emit_error(self.when.error, error, session.conn if isinstance(session, ServerSession) else None)
