"""The server: the core, its transports and its broker put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from wse.brokers import as_broker, store_of
from wse.core.admission import Admission
from wse.core.cluster.node import ClusterNode
from wse.core.cluster.settings import ClusterSettings
from wse.core.heartbeat import Heartbeat
from wse.core.hub.census import take_stats
from wse.core.hub.connection import ServerSession, WseIdentity
from wse.core.hub.handshake import handshake_of
from wse.core.hub.hub import Hub
from wse.core.hub.kept.keeper import Keeper
from wse.core.hub.single_node import SingleNode
from wse.core.inbox import Inbox
from wse.core.limits import Limits, Overflow
from wse.core.ports.protocol import Protocol
from wse.core.resume import Resume
from wse.core.session.endpoint import Endpoint, emit_error
from wse.core.session.rpc import ExposeErrors
from wse.core.urls import without_secrets
from wse.errors import ErrorCode, WseError
from wse.http_api.api import HttpApi
from wse.metrics.source import Metrics
from wse.protocols.choice import as_protocols
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack
from wse.scheduler import AsyncioScheduler
from wse.server.acceptor import ServerAcceptor
from wse.server.files import JS_MODULES, StaticFile, js_client_path
from wse.server.handling import Handling
from wse.server.lifecycle import LIFESPAN_GRACE, Lifecycle, commanded, serve_until_signal
from wse.server.listening import ListenerOptions, checked_path
from wse.server.messaging import Messaging
from wse.server.signals import ServerSignals
from wse.server.threadsafe import Threadsafe
from wse.server.watchdog import Watchdog
from wse.transports.asgi import AsgiApp
from wse.transports.picows import Upgrader
from wse.typed.handlers import Handlers
from wse.types import MessageType

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

    from wse.admin.console import Console
    from wse.admin.page import AdminApp
    from wse.core.hub.handshake import AuthHandler
    from wse.core.ports.broker import Broker
    from wse.core.stats import Stats
    from wse.transports.deflate import Compression

READERS = (WseJSON(), WseMsgpack())
"""The message protocols in which other nodes, and stores, may have packed messages."""


class WseServer(Handling, Messaging):
    """A WSE server.

    Args:
        identify: The identify handler, `fn(auth)`: it checks a `Handshake` and calls `auth.accept` or `auth.refuse`.
            The decorator `@server.identify` sets it as well.
        host: The interface to listen on; `None` for all.
        port: The port to listen on; 0 takes a free port, and the same port at the next start if it is still free.
        unix: The path of a Unix socket to listen on, instead of a port. A socket that an ended server has left there is
            replaced.
        unix_mode: The permissions of that socket, such as `0o660`; by default the umask of the process decides.
        sock: A socket that is bound already, to listen on instead: from systemd, for example.
        path: The only path that opens a WebSocket; others get HTTP 404. `None` accepts every path.
        ssl: For `wss:`, an `ssl.SSLContext` with the server's certificate.
        conns_per_user: How many devices of one user may be connected; one more disconnects the oldest.
        leave_grace: Seconds for which `left` waits after a user's last device has gone. If the user returns meanwhile,
            neither `left` nor `joined` fires. 0, the default, is no wait.
        timeout: Seconds that a call to a client waits for its answer; 0 means for ever.
        auth_timeout: Seconds that a connection has to become valid; 0 means for ever, `None` the value of `timeout`.
        protocol: The message protocol, or several in order of preference; the client's offer decides.
        limits: Bounds on what one client sends.
        origins: The origins of web pages that may connect. A browser sends the page's origin with its request. A page
            may always connect if its host and port are those of the request's `Host` header; the scheme may differ.
            Programs send no origin and may connect as well. Other pages are refused with HTTP 403 unless their origin
            is listed: `"https://app.example"`, `"https://*.example.com"` for all subdomains, `"null"`, or `"*"` for
            all.
        trusted_proxies: Addresses and networks of your proxies, such as `"10.0.0.0/8"`; `"unix"` for proxies that
            connect by a Unix socket. The client's address is taken from `X-Forwarded-For`, or else `Forwarded`, if the
            request comes from one of these.
        compression: Compresses messages of 1 KiB and more for clients that support permessage-deflate. It is off by
            default, because on a fast network it costs far more time than it saves.
        serve_client: Serve the JavaScript client at `/wse.js`, and the modules that it loads beside it.
        files: Files to send in answer to plain GETs, by path: `{"/": "index.html"}`.
        api_keys: Turns on the HTTP API for publishing at `/api/` of the built-in listener; see `wse.http_api.HttpApi`,
            which also says what the keys are. It is off by default.
        metrics: The path at which the built-in listener serves metrics for Prometheus, such as `"/metrics"`; off by
            default. It needs `pip install "wse[prometheus]"`. Inside a web framework, use `wse.prometheus.Collector`.
        contract: Show the contract (`asyncapi`) to people: a page at `/contract`, or at the path that is given, and the
            document beside it at `/contract.json`. Whoever reaches the port can read it; off by default.
        admin: The identify handler of the operations page, which turns the page on. It takes `auth`, as `identify`
            does, and accepts operators only. The built-in listener serves the page; inside a web framework, mount
            `server.admin`. Operators are no users of the application, and do not count as its connections.
        admin_path: The path of that page on the built-in listener.
        overflow: The policy, by message type, for messages to a device that reads too slowly; see `Overflow`. Messages
            of other types close its connection when `limits.send_buffer` is reached.
        heartbeat: The times after which silent devices are pinged and disconnected, on the built-in listener, in
            uvicorn with `wse.uvicorn`, and in aiohttp. Other ASGI servers have a heartbeat of their own.
        watchdog: Seconds for which a handler may block the event loop before it is reported on `error`, with its name,
            as `HANDLER_BLOCKED`; `None` turns the watchdog off.
        broker: Joins this server to a cluster: a broker's URL, `nats://...` or `redis://...`, or a broker. By default
            the server is not part of a cluster.
        cluster: Times and bounds of the cluster.
        resume: The limits for keeping the session of a client that has lost its connection, if the client asks for
            that; `False` keeps nothing. Clients that do not ask cost nothing.
        inbox: Keep messages for users who are away (`keep`): `True`, or an `Inbox` with the limits. Off by default.
        expose_errors: The part of an exception that the caller of a failing procedure receives; see `ExposeErrors`.
        debug: Also send the stack traces of failing procedures to their callers.

    Raises:
        ValueError: An argument is out of its range; an origin or a proxy is not valid.
        OSError: A file cannot be read.
        ImportError: `metrics` needs a library that is not installed.
    """

    def __init__(
        self,
        identify: AuthHandler | None = None,
        *,
        host: str | None = "127.0.0.1",
        port: int | None = None,
        unix: str | Path | None = None,
        unix_mode: int | None = None,
        sock: socket.socket | None = None,
        path: str | None = None,
        ssl: ssl.SSLContext | None = None,
        conns_per_user: int = 1,
        leave_grace: float = 0.0,
        timeout: float = 20.0,
        auth_timeout: float | None = None,
        protocol: Protocol | Iterable[Protocol] | None = None,
        limits: Limits | None = None,
        origins: str | Iterable[str] | None = None,
        trusted_proxies: str | Iterable[str] | None = None,
        compression: Compression | None = None,
        serve_client: bool = False,
        files: Mapping[str, str | Path] | None = None,
        api_keys: str | Iterable[str] | Mapping[str, str] | None = None,
        metrics: str | None = None,
        contract: bool | str = False,
        admin: AuthHandler | None = None,
        admin_path: str = "/admin",
        overflow: Mapping[MessageType, Overflow | str] | None = None,
        heartbeat: Heartbeat | None = None,
        watchdog: float | None = 1.0,
        expose_errors: ExposeErrors | str = ExposeErrors.MESSAGE,
        broker: str | Broker | None = None,
        cluster: ClusterSettings | None = None,
        resume: Resume | bool = True,
        inbox: Inbox | bool = False,
        debug: bool = False,
    ) -> None:
        self._scheduler = AsyncioScheduler()
        self._handlers = Handlers("server", ("conn",), {"auth": handshake_of})
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
            channel=self._handlers.make_channel,
            procedures=self._handlers.make_procedures,
            decoder=self._handlers.decoder,
            elsewhere="server.threadsafe",
        )
        deadline = timeout if auth_timeout is None else auth_timeout
        heartbeat = heartbeat or Heartbeat()
        self._hub = Hub(
            self._endpoint,
            conns_per_user=conns_per_user,
            leave_grace=leave_grace,
            auth_timeout=deadline,
            heartbeat=heartbeat,
            clock=time.time,
            server=self,
            resume=Resume() if resume is True else resume or None,
        )
        self._hub.network = SingleNode(self._hub)
        self._inbox = Inbox() if inbox is True else inbox or None
        admission = Admission(origins, trusted_proxies, self._endpoint.log.folding)
        self._acceptor = ServerAcceptor(self._hub, admission, heartbeat)
        served = {at: StaticFile(Path(file)) for at, file in (files or {}).items()}
        if serve_client:
            served |= {f"/{name}": StaticFile(js_client_path().with_name(name)) for name in JS_MODULES}
        self._lifecycle = Lifecycle(
            self._hub,
            self._scheduler,
            self._acceptor,
            ListenerOptions(
                host,
                port,
                path,
                ssl,
                compression,
                served,
                unix=None if unix is None else str(unix),
                unix_mode=unix_mode,
                sock=sock,
            ),
            None if watchdog is None else Watchdog(watchdog, self._handler_blocked),
        )
        if broker is not None:
            self._join_cluster(broker, cluster)
        else:
            self._keep_in(None)
        self.when = ServerSignals(self._hub)
        self._http_api = None
        if api_keys is not None:
            self._http_api = HttpApi(self, api_keys, limits=self._endpoint.limits, admission=admission)
            routes = self._lifecycle.options.routes
            routes |= {f"/api/{path}": route for path, route in self._http_api.routes.items()}
        if metrics is not None:
            from wse.prometheus import MetricsRoute

            self._lifecycle.options.routes[checked_path(metrics)] = MetricsRoute(self._metrics.read)
        if contract:
            from wse.contract.page import ContractRoute

            page = "/contract" if contract is True else checked_path(contract)
            document = f"{page.rstrip('/')}.json"

            def said() -> Any:
                return self.operations, self._handlers.opening, self._lifecycle.port

            for path, source in ((page, document), (document, None)):
                self._lifecycle.options.routes[path] = ContractRoute(self.asyncapi, said, source)
        self._console: Console | None = None
        self._admin: AdminApp | None = None
        if admin is not None:
            self._add_admin(admin, checked_path(admin_path).rstrip("/"), trusted_proxies)
        if identify is not None:
            self.identify(identify)

    def _add_admin(self, identify: AuthHandler, path: str, trusted_proxies: str | Iterable[str] | None) -> None:
        """Have an operations page, with a server of its own; only pages from the same host may use that."""
        from wse.admin.console import LIMITS, Console
        from wse.admin.page import AdminApp, Page

        backstage = WseServer(
            identify,
            conns_per_user=LIMITS.connections or 1,
            auth_timeout=10.0,
            limits=LIMITS,
            trusted_proxies=trusted_proxies,
            watchdog=None,
            resume=False,
        )
        backstage._lifecycle.is_silent = True
        self._console = Console(self._hub, lambda: self._lifecycle.uptime, backstage)
        self._lifecycle.lifespans.add(self._console.serving)
        page = Page(js_client_path())
        self._admin = AdminApp(page, backstage.asgi, lambda: backstage.aiohttp)
        options = self._lifecycle.options
        options.routes |= dict.fromkeys(page.paths(path), page)
        options.acceptors |= dict.fromkeys((path or "/", f"{path}/"), backstage._acceptor)

    # State.

    @property
    def clients(self) -> Mapping[Any, WseIdentity]:
        """The users that are connected, by `cid`; read-only."""
        return MappingProxyType(self._hub.identities)

    @property
    def protocol(self) -> Protocol | tuple[Protocol, ...]:
        """The message protocol, or a tuple when there are several; `protocols` is always a tuple."""
        protocols = self._endpoint.protocols
        return protocols[0] if len(protocols) == 1 else protocols

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The message protocols, the preferred one first."""
        return self._endpoint.protocols

    @property
    def conns_per_user(self) -> int:
        """The number of devices of one user that may be connected at the same time."""
        return self._hub.conns_per_user

    @property
    def timeout(self) -> float:
        """Seconds that a call to a client waits for its answer; 0 means for ever."""
        return self._endpoint.timeout

    @cached_property
    def threadsafe(self) -> Threadsafe:
        """The methods of the server for other threads than that of its event loop."""
        return Threadsafe(self, self._scheduler)

    def stats(self) -> Stats:
        """Return the server's present state, and its counters since it was created.

        Counting costs next to nothing. This method looks at each connection once.

        Raises:
            WseError: `WRONG_THREAD`: use `server.threadsafe.stats()` in other threads than that of the event loop.
        """
        self._endpoint.check_thread()
        return take_stats(
            self._hub,
            uptime=self._lifecycle.uptime,
            running_handlers=self._scheduler.running,
            refused_origins=self._acceptor.admission.refused_origins,
        )

    @cached_property
    def _metrics(self) -> Metrics:
        """The server's metrics, which are measured from the first use of this on."""
        admission, lifecycle = self._acceptor.admission, self._lifecycle
        metrics = Metrics(self._hub, admission, lambda: lifecycle.uptime, lambda: self._scheduler.running)
        lifecycle.accompany(metrics)
        return metrics

    # Life cycle.

    def configure(self, *, host: str | None = None, port: int | None = None, reuse_port: bool | None = None) -> None:
        """Set the address for the server to listen on, as the `wse` command does; an argument of None changes nothing.

        Args:
            host: The interface; `""` for all.
            port: The port, instead of a Unix socket as well; 0 takes a free one.
            reuse_port: Share the port with other processes of the same system user that also share it (SO_REUSEPORT).

        Raises:
            RuntimeError: The server is already listening.
        """
        if self._lifecycle.is_listening:
            raise RuntimeError("the server has already been started")
        options = self._lifecycle.options
        if host is not None:
            options.host = host
        if port is not None:
            options.port, options.unix, options.sock = port, None, None
        if reuse_port is not None:
            options.reuse_port = reuse_port

    def use_broker(self, broker: str | Broker, settings: ClusterSettings | None = None) -> None:
        """Join a cluster, as the arguments `broker` and `cluster` of `WseServer` do.

        Raises:
            RuntimeError: The server has already been started.
            ValueError: The URL's scheme is not that of a known broker.
            ImportError: The broker needs a library that is not installed.
        """
        if self._lifecycle.is_started:
            raise RuntimeError("the server has already been started")
        self._join_cluster(broker, settings)

    def _join_cluster(self, broker: str | Broker, settings: ClusterSettings | None) -> None:
        joined = as_broker(broker)
        self._hub.network = ClusterNode(self._hub, joined, settings or ClusterSettings(), readers=READERS)
        self._lifecycle.broker = without_secrets(broker) if isinstance(broker, str) else type(broker).__name__
        self._keep_in(joined)

    def _keep_in(self, broker: Broker | None) -> None:
        """Keep messages where the settings say, or else in the broker's store."""
        if self._inbox is not None:
            self._hub.keep_in(Keeper(self._hub, self._inbox, store_of(self._inbox.store, broker), READERS))

    @property
    def host(self) -> str | None:
        """The interface that the server listens on; `None` or `""` for all."""
        return self._lifecycle.options.host

    @property
    def port(self) -> int | None:
        """The port that the server listens on; before `start`, the configured one; `None` if there is none."""
        return self._lifecycle.port

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        return self._lifecycle.options.url(self.port)

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send new connections here; if not, `/readyz` of the built-in listener answers
        503.

        A server is ready from `start` on, or from the beginning if it has no port. `close` ends this, and refuses new
        connections with HTTP 503. A node of a cluster is not ready while it receives nothing from the other nodes, but
        it still accepts connections.
        """
        return self._acceptor.ready

    async def start(self) -> None:
        """Start the server: join the cluster, begin to listen if there is a port, and become ready.

        A server without a port runs inside a web application, whose lifespan awaits this method. In a cluster, a server
        that has not been started neither sends nor receives messages.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`; `BROKER_UNAVAILABLE`, at once or after `wait_for_broker` seconds of
                `ClusterSettings`.
            RuntimeError: The server has already been started, or was closed during the start.
            OSError: The port is not available.
        """
        await self._lifecycle.start()

    async def serve_forever(self) -> None:
        """Start the server if it has not been started, and return when it has been closed.

        Raises:
            WseError, OSError: As `start`.
        """
        if not self._lifecycle.is_begun:
            await self.start()
        await self._lifecycle.wait_closed()

    async def close(self, grace: float = 0.0, *, notice: float = 0.0) -> None:
        """Stop serving; returns when all sockets are closed.

        These steps follow each other. `/readyz` answers 503, and new connections are refused. The port is closed.
        Running handlers have `grace` seconds to finish. Every connection is closed with 1012 and `wse.by-server`, a
        thousand per second, or more if this would take longer than 15 seconds, so that not all clients return at once.
        Handlers that are still running are cancelled.

        Args:
            grace: Seconds that running handlers have to finish, including those of calls. The server still handles
                messages and calls during that time.
            notice: Seconds for which the port stays open while `/readyz` and new WebSockets are answered with 503, so
                that load balancers notice in time.
        """
        await self._lifecycle.close(grace, notice=notice)

    def run(self, *, grace: float = 10.0, notice: float = 0.0) -> None:
        """Serve in a new event loop until SIGINT or SIGTERM, or until the server is closed. This call blocks.

        Python delivers signals to the main thread only. In another thread, a handler must await `close`.

        Args:
            grace: As for `close`. A second signal ends it at once.
            notice: As for `close`.

        Raises:
            WseError, OSError: As `start`.
            ValueError: The server has no port.
            RuntimeError: The `wse` command is importing the module; it runs the server itself.
        """
        if commanded.get():
            raise RuntimeError("the wse command runs the server itself: call run() below `if __name__ == '__main__':`")
        asyncio.run(serve_until_signal(self, grace, notice))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # Inside a web application.

    @cached_property
    def _upgrader(self) -> Upgrader:
        return Upgrader(self._acceptor.limits, self._lifecycle.options.compression)

    @cached_property
    def asgi(self) -> AsgiApp:
        """The server as an ASGI 3 application, for `websocket` and `lifespan` scopes.

        The application's lifespan starts and stops the server. If a framework does not pass its lifespan on, await
        `start` and `close` in the framework's lifespan. Otherwise the first connection starts the server.
        """
        close = partial(self.close, LIFESPAN_GRACE)
        return AsgiApp(self._acceptor, self._lifecycle.options.path, self._lifecycle.attach, close, self._upgrader)

    @property
    def http_api(self) -> HttpApi:
        """The HTTP API for publishing as an ASGI application, for servers without a listener of their own.

        Raises:
            ValueError: The server has no `api_keys`.
        """
        if self._http_api is None:
            raise ValueError("the HTTP API is off: WseServer(api_keys=...) turns it on")
        return self._http_api

    @property
    def admin(self) -> AdminApp:
        """The operations page as an ASGI application, for servers without a listener of their own; `admin.aiohttp` is
        a handler for aiohttp.

        Raises:
            ValueError: The server has no `admin`.
        """
        if self._admin is None:
            raise ValueError("the operations page is off: WseServer(admin=...) turns it on")
        return self._admin

    @cached_property
    def aiohttp(self) -> Callable[[Any], Awaitable[Any]]:
        """The server as a handler for an aiohttp application: `app.router.add_get("/ws", server.aiohttp)`.

        The application's `on_startup` should await `start`, and its `on_shutdown` `close`.

        Raises:
            ImportError: aiohttp is not installed.
        """
        from wse.transports.aiohttp import handler

        return handler(self._acceptor, self._lifecycle.attach, self._upgrader)

    def _handler_blocked(self, handler: str, seconds: float) -> None:
        details = {"handler": handler, "seconds": round(seconds, 3)}
        self._endpoint.report(WseError(ErrorCode.HANDLER_BLOCKED, details, f"{handler} blocked for {seconds:.1f} s"))

    def _report(self, error: WseError, session: object) -> None:
        conn, context = (session.conn, session.context()) if isinstance(session, ServerSession) else (None, {})
        if self._console is not None:
            self._console.note(error, context)
        emit_error(self.when.error, error, conn, log=self._endpoint.log, context=context)
