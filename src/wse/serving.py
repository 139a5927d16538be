"""The part of a server that serves: from its start to its end, in its own listener or inside a web application."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from wse.clusters import join_cluster
from wse.core.cluster.settings import ClusterSettings
from wse.errors import CloseReason, ErrorCode, WseError
from wse.transports import picows
from wse.transports.asgi import AsgiApp

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator

    from wse.core.admission import Admission
    from wse.core.heartbeat import Heartbeat
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.hub import Hub
    from wse.core.limits import Limits
    from wse.core.ports.broker import Broker
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Request
    from wse.core.session.endpoint import Endpoint
    from wse.files import StaticFile
    from wse.scheduler import AsyncioScheduler
    from wse.transports.deflate import Compression
    from wse.watchdog import Watchdog

NOT_STARTED = "not started"
"""Why a server with a port of its own is not ready before its start, and none is after its end."""

commanded: ContextVar[bool] = ContextVar("commanded", default=False)
"""Whether the `wse` command imports the module that runs, to get its server and run that."""


class Serving:
    """A server's life cycle, and what transports ask of it: a `wse.core.ports.transport.Acceptor`."""

    _scheduler: AsyncioScheduler
    _endpoint: Endpoint
    _hub: Hub
    _admission: Admission
    _heartbeat: Heartbeat
    _watchdog: Watchdog | None
    _host: str | None
    _port: int | None
    _reuse_port: bool
    _path: str | None
    _ssl: ssl.SSLContext | None
    _compression: Compression | None
    _files: Mapping[str, StaticFile]
    _listener: asyncio.Server | None
    _closing: asyncio.Future[None] | None
    _started_at: float | None
    _starting = False

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
        self._hub.network = join_cluster(self._hub, broker, settings or ClusterSettings())

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
        return not self._admission.unready and self._hub.network.healthy

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`; `BROKER_UNAVAILABLE`.
            ValueError: No port was given.
            RuntimeError: It listens already, or was closed meanwhile.
            OSError: The port cannot be had.
        """
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        if self._port is None:
            raise ValueError("a server that listens needs a port: WseServer(port=4200), or port=0 for a free one")
        if self._listener is not None or self._starting:
            raise RuntimeError("the server has been started")
        self._starting = True
        try:
            await self._attach()
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
            if self._closing is None:
                raise RuntimeError("the server was closed while it started")
        except BaseException:
            await self.close()
            raise
        finally:
            self._starting = False

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
        second, so that not all clients return at once, or more if it would take longer than 15 seconds; handlers that
        still run are cancelled.

        Args:
            grace: Seconds that running handlers have, calls among them. Messages and calls are served meanwhile.
            notice: Seconds for which the port stays open and `/readyz` answers 503, as do requests for a WebSocket, so
                that load balancers that ask now and then send nobody any more by its end.
        """
        self._admission.unready.add(NOT_STARTED)
        if self._closing is not None:  # else nobody has been told that it is ready
            await self._scheduler.pause(notice)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._hub.refuse(1012, CloseReason.BY_SERVER)
        await self._scheduler.settle(self._hub.tasks, grace)
        await self._hub.close(1012, CloseReason.BY_SERVER)
        await self._hub.network.close()
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
            RuntimeError: The `wse` command imports the module, to run the server itself.
        """
        if commanded.get():
            raise RuntimeError("the wse command runs the server itself: call run() below `if __name__ == '__main__':`")
        asyncio.run(self._run(grace, notice))

    async def _run(self, grace: float, notice: float) -> None:
        with stopped_by(self, signal.SIGINT, signal.SIGTERM) as stop:
            try:
                await self.start()
                await stop.wait()
            finally:
                await self.close(grace, notice=notice)

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
            self._admission.unready.discard(NOT_STARTED)
        await self._hub.network.open()

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
    def heartbeat(self) -> Heartbeat:
        """When silent devices are pinged, and given up."""
        return self._heartbeat

    @property
    def admission(self) -> Admission:
        """Who may open a WebSocket."""
        return self._admission

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The protocol for the subprotocols that a client offers; see `wse.core.ports.transport.Acceptor`."""
        known = {protocol.name: protocol for protocol in self._endpoint.protocols}
        return next((known[name] for name in offered if name in known), None)

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> ServerSession:
        """Take over a WebSocket that has just been opened; see `wse.core.ports.transport.Acceptor`."""
        return self._hub.open(link, request, protocol)


@contextmanager
def stopped_by(server: Serving, *signals: signal.Signals) -> Iterator[asyncio.Event]:
    """An event that any of these signals sets; after a second one, the server's `close` waits for handlers no more."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def stop_or_hurry() -> None:
        if stop.is_set():
            server._scheduler.hurry()
        stop.set()

    for number in signals:
        loop.add_signal_handler(number, stop_or_hurry)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
