"""The server: the hub and its transports put together, and the server's life cycle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, overload

from wse.clusters import join_cluster
from wse.core.admission import Admission
from wse.core.cluster.settings import ClusterSettings
from wse.core.heartbeat import Heartbeat
from wse.core.hub.connection import ServerSession, WseConnection, WseIdentity
from wse.core.hub.hub import Hub
from wse.core.hub.single_node import SingleNode
from wse.core.limits import Limits, Overflow
from wse.core.ports.protocol import Protocol
from wse.core.session.endpoint import Endpoint, emit_error, error_listener_failed
from wse.core.session.rpc import ExposeErrors
from wse.core.session.signals import Channel, Signal, check_handler
from wse.errors import WseError
from wse.files import StaticFile, js_client_path
from wse.messaging import Messaging
from wse.protocols.choice import as_protocols
from wse.scheduler import AsyncioScheduler
from wse.serving import NOT_STARTED, Serving
from wse.types import ClientId, F, MessageType
from wse.watchdog import Watchdog

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from wse.core.hub.handshake import AuthHandler
    from wse.core.ports.broker import Broker
    from wse.core.stats import Stats
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


class WseServer(Messaging, Serving):
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
        heartbeat: When silent devices are pinged, and given up; on our own listener and in aiohttp. ASGI servers keep
            their own.
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
        self._hub.network = (
            SingleNode(self._hub) if broker is None else join_cluster(self._hub, broker, cluster or ClusterSettings())
        )
        self._watchdog = None if watchdog is None else Watchdog(watchdog, self._handler_blocked)
        self._started_at: float | None = None
        self._admission = Admission(origins, trusted_proxies)
        if port is not None:
            self._admission.unready.add(NOT_STARTED)
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

    def _report(self, error: WseError, session: object) -> None:
        emit_error(self.when.error, error, session.conn if isinstance(session, ServerSession) else None)
