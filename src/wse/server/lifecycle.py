"""A server from its start to its end: with a listener of its own, or inside a web application."""

from __future__ import annotations

import asyncio
import logging
import typing
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from wse.errors import CloseReason, ErrorCode, WseError
from wse.server.lifespan import Lifespans
from wse.server.process import END_SIGNALS, heard
from wse.transports import picows
from wse.version import installed_version

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator

    from wse.core.hub.hub import Hub
    from wse.scheduler import AsyncioScheduler
    from wse.server.acceptor import ServerAcceptor
    from wse.server.listening import ListenerOptions
    from wse.server.server import WseServer
    from wse.server.watchdog import Watchdog

logger = logging.getLogger("wse")

NOT_STARTED = "not started"
"""The reason why a server with a port is not ready before its start, and any server after its end."""

LIFESPAN_GRACE = 10.0
"""Seconds that running handlers have when the lifespan of a web application closes the server; as for `run`."""

ANSWERS_GRACE = 3.0
"""Seconds that plain HTTP requests have at least to be done, when the server closes."""

commanded: ContextVar[bool] = ContextVar("commanded", default=False)
"""Whether the `wse` command is importing a module to find its server. The command itself runs that server."""


async def serve_until_signal(server: WseServer, grace: float, notice: float) -> None:
    """Start a server, and close it on SIGINT or SIGTERM; see `WseServer.run`."""
    check_port(server)
    with server._lifecycle.stopped_by(*END_SIGNALS) as stop:
        try:
            if await started(server, stop):
                server._lifecycle.add_closed_callback(stop.set)
                await stop.wait()
        finally:
            await server.close(grace, notice=notice)


async def started(server: WseServer, stop: asyncio.Event) -> bool:
    """Start a server, unless it is to stop before: a start may wait for the broker.

    Raises:
        WseError, RuntimeError, OSError: As `WseServer.start`.
    """
    starting, stopping = asyncio.ensure_future(server.start()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    return not starting.cancelled()


def check_port(server: WseServer) -> None:
    """Check that a server that a process is to run has a port, or another place to listen at.

    Raises:
        ValueError: It has none.
    """
    if not server._lifecycle.options.listens:
        raise ValueError("a server that listens needs a port: WseServer(port=4200), or port=0 for a free one")


class Companion(typing.Protocol):
    """Something that runs beside a server, on its event loop."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, on the loop's thread."""

    def stop(self) -> None:
        """End; harmless if it does not run."""


class Lifecycle:
    """Starts and closes a server, and keeps track of its state.

    Args:
        hub: The server's connections.
        scheduler: Time and tasks.
        acceptor: Takes over the WebSockets that the listener opens.
        options: Where to listen.
        watchdog: Looks for handlers that block the event loop.

    Attributes:
        lifespans: What the application has as long as the server serves.
        is_silent: Whether the log says nothing of the start and the end: the server is a part of another one.
    """

    def __init__(
        self,
        hub: Hub,
        scheduler: AsyncioScheduler,
        acceptor: ServerAcceptor,
        options: ListenerOptions,
        watchdog: Watchdog | None,
    ) -> None:
        # What runs beside the server on its event loop.
        self._companions: list[Companion] = [] if watchdog is None else [watchdog]
        self._hub = hub
        self._scheduler = scheduler
        self._acceptor = acceptor
        self.options = options
        self._listener: picows.Listener | None = None
        self._closing: asyncio.Future[None] | None = None  # set by the start; done when the server has closed
        self._started_at: float | None = None
        self._starting = False
        self._last_port = 0
        self._begun = False  # by `start`, which may come once
        self._told_ready = False
        self.broker = ""  # its name in the log
        self.is_silent = False
        self.lifespans = Lifespans(hub.endpoint.report)
        hub.started = False
        if options.listens:
            acceptor.admission.unready.add(NOT_STARTED)

    def accompany(self, companion: Companion) -> None:
        """Let something run beside the server: from now on, if the server runs already."""
        self._companions.append(companion)
        if self._closing is None:
            return
        loop = self._closing.get_loop()
        if loop is asyncio._get_running_loop():
            companion.start(loop)
        else:
            loop.call_soon_threadsafe(companion.start, loop)

    @property
    def is_listening(self) -> bool:
        """Whether it has a port of its own open."""
        return self._listener is not None

    @property
    def is_begun(self) -> bool:
        """Whether `start` has been called, in this event loop, and the server not been closed."""
        return self._begun and self._is_here

    @property
    def is_started(self) -> bool:
        """Whether it has been started, with or without a port, and not closed."""
        return self._closing is not None

    @property
    def port(self) -> int | None:
        """The port that it listens on; before `start`, the configured one."""
        return self.options.port if self._listener is None else self._listener.port

    @property
    def uptime(self) -> float:
        """Seconds since the start; 0 before."""
        return 0.0 if self._started_at is None else self._scheduler.time() - self._started_at

    async def start(self) -> None:
        """See `WseServer.start`."""
        self._leave_ended_loop()
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        if self._starting or self._listener is not None or self.is_begun:
            raise RuntimeError("the server has already been started")
        self._starting = True
        try:
            await self.attach()
            self._begun = True
            if self.options.listens:
                self._listener = await self._listen()
            if self._closing is None:
                raise RuntimeError("the server was closed while it started")
            self._tell_ready()
        except BaseException:
            await self.close()
            raise
        finally:
            self._starting = False

    async def _listen(self) -> picows.Listener:
        listen = partial(self.options.listen, self._acceptor, self._hub.auth_timeout or None)
        if self.options.port != 0:
            return await listen(self.options.port)
        try:
            # Once it has taken a free port, clients know it by that one.
            listener = await listen(self._last_port)
        except OSError:
            if not self._last_port:
                raise
            listener = await listen(0)
        self._last_port = listener.port or 0
        return listener

    @property
    def _is_here(self) -> bool:
        """Whether it has been started in the current event loop."""
        return self._closing is not None and self._closing.get_loop() is asyncio.get_running_loop()

    async def attach(self) -> None:
        """Begin to serve in the current event loop, unless the server does so already: it is being started, or a web
        application has a connection for it.

        Raises:
            WseError: `IDENTIFY_HANDLER_MISSING`; `BROKER_UNAVAILABLE`.
            Exception: That of a lifespan.
        """
        if self._hub.identify is None:
            raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)
        self._leave_ended_loop()
        if not self._is_here:
            loop = self._scheduler.bind()
            self._closing = loop.create_future()
            self._started_at = self._scheduler.time()
            self._begun = False
            for companion in self._companions:
                companion.start(loop)
            await self._enter_lifespans()
        await self.lifespans.enter()
        await self._hub.network.open()
        if self._hub.kept is not None:
            await self._hub.kept.open()
        self._hub.started = self._closing is not None  # it may have been closed meanwhile
        if self._hub.started and not self._starting and not self._told_ready:
            self._tell_ready()

    async def _enter_lifespans(self) -> None:
        try:
            await self.lifespans.enter()
        except BaseException:
            if not self._starting:  # otherwise `start` closes it
                await self.close()
            raise
        if self._closing is not None:  # it may have been closed meanwhile
            self._acceptor.admission.unready.discard(NOT_STARTED)

    def _tell_ready(self) -> None:
        """Log where the server can be reached, and how."""
        if self.is_silent:
            return
        self._told_ready = True
        protocols = [protocol.name for protocol in self._hub.endpoint.protocols]
        version = installed_version()
        extra = {"protocols": protocols, "broker": self.broker, "version": version, "node": self._hub.network.name}
        facts = f"protocols: {', '.join(protocols)}; broker: {self.broker or 'none'}; wse {version}"
        if self._listener is not None:
            url = self.options.url(self.port)
            logger.info("listening on %s (%s)", url, facts, extra={"kind": "listening", "url": url, **extra})
            logger.info("ready", extra={"kind": "ready", "url": url, **extra})
        else:
            logger.info("ready, without a port of its own (%s)", facts, extra={"kind": "ready", **extra})

    def _tell_closing(self) -> None:
        sockets, users, handlers = len(self._hub.sockets.open), len(self._hub.identities), len(self._hub.tasks)
        counts = {"connections": sockets, "users": users, "handlers": handlers + self._scheduler.running}
        logger.info(
            "closing; connections: %d, users: %d, handlers that run: %d",
            *counts.values(),
            extra={"kind": "closing", **counts},
        )

    def _tell_closed(self) -> None:
        counters = self._hub.endpoint.counters
        counts = {
            "seconds": round(self.uptime, 3),
            "opened": counters.opened,
            "messages_in": counters.messages_in,
            "messages_out": counters.messages_out,
            "calls_in": counters.calls_in,
            "calls_out": counters.calls_out,
            "errors": counters.errors.total(),
        }
        logger.info(
            "closed after %.0f s; connections: %d, messages in: %d, out: %d, calls in: %d, out: %d, errors: %d",
            *counts.values(),
            extra={"kind": "closed", **counts},
        )

    def add_closed_callback(self, callback: Callable[[], object]) -> None:
        """Call a function when the server, which must have been started, has been closed."""
        assert self._closing is not None
        self._closing.add_done_callback(lambda _: callback())

    async def wait_closed(self) -> None:
        """Return when the server, which must have been started, has been closed."""
        assert self._closing is not None
        await asyncio.shield(self._closing)

    async def close(self, grace: float = 0.0, *, notice: float = 0.0) -> None:
        """See `WseServer.close`."""
        self._leave_ended_loop()
        self._acceptor.admission.unready.add(NOT_STARTED)
        told, self._told_ready = self._told_ready, False
        if told:
            self._tell_closing()
        if self._closing is not None:  # otherwise it has never been ready
            await self._scheduler.pause(notice)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._hub.sockets.refuse(1012, CloseReason.BY_SERVER)
        grace = await self._settle(self._hub.tasks, grace)
        left = await self._hub.part(1012, CloseReason.BY_SERVER)
        if left is not None:
            await self._scheduler.wait(left.drained(), left.drain)
        await self._hub.close(1012, CloseReason.BY_SERVER)
        grace = await self._settle((), grace)  # listeners of the last clients' `disconnected` and `left`
        if listener is not None:
            await self._scheduler.wait(listener.answered(), max(grace, ANSWERS_GRACE))
            await listener.give_up()
        if self._hub.kept is not None:
            await self._hub.kept.close()
        await self._hub.network.close()
        await self._settle((), grace)  # in a cluster, `left` may fire only now
        self._hub.started = False
        await self._scheduler.cancel_all()
        await self.lifespans.leave()
        if listener is not None:
            await listener.wait_closed()
        for companion in self._companions:
            companion.stop()
        if told:
            self._tell_closed()
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)
        self._closing = None
        self._begun = False
        self._started_at = None
        self._scheduler.release()

    def _leave_ended_loop(self) -> None:
        """Forget what belongs to an event loop that has been closed before the server was: none of it runs again.

        Raises:
            WseError: `WRONG_THREAD`: the event loop runs in another thread.
        """
        if self._closing is None:
            return
        if not self._closing.get_loop().is_closed():
            self._hub.endpoint.check_thread()
            return
        self._scheduler.bind()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        for session in tuple(self._hub.sockets.open):
            with suppress(RuntimeError):  # the socket's own event loop is closed
                session.link.abort()
            session.closed(1006, "")
        self._hub.sockets.stop_keepalive()
        if self._hub.kept is not None:
            self._hub.kept.forget_loop()
        if self._hub.resumption is not None:
            self._hub.resumption.forget_loop()
            self._hub.resumption.end_all()
        self.lifespans.forget()
        for companion in self._companions:
            companion.stop()
        self._closing = None
        self._started_at = None
        self._told_ready = False

    async def _settle(self, tasks: Iterable[asyncio.Task[Any]], grace: float) -> float:
        """Wait for these tasks and those of the scheduler; returns the rest of the grace."""
        end = self._scheduler.time() + grace
        await self._scheduler.settle(tasks, grace)
        left: float = end - self._scheduler.time()
        return max(0.0, left)

    @contextmanager
    def stopped_by(self, *signals: signal.Signals) -> Iterator[asyncio.Event]:
        """An event that any of these signals sets; after a second signal, `close` no longer waits for handlers."""
        stop = asyncio.Event()

        def stop_or_hurry() -> None:
            if stop.is_set():
                self._scheduler.hurry()
            stop.set()

        with heard(signals, stop_or_hurry):
            yield stop
