"""Tests of applications: a client that is connected to a server in memory, without a socket.

The connection can be cut and held, and a clock moves time on, so that tests see what their handlers do when a user is
away.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from time import time
from typing import Any

from wse.client.client import WseClient
from wse.core.limits import Limits
from wse.core.ports.transport import Link, Receiver
from wse.server.server import WseServer
from wse.transports.memory import MemoryLink
from wse.transports.request import HttpRequest

URL = "ws://testserver/"


class MemoryConnector:
    """Opens links to a server in the same process; a `wse.core.ports.transport.Connector`.

    Attributes:
        ends: Both ends of the link that was opened last, the client's first.
        open: Set while links can be opened.
    """

    def __init__(self, server: WseServer, native: Any = None) -> None:
        self._server = server
        self._native = native
        self.ends: tuple[MemoryLink, MemoryLink] | None = None
        self.open: asyncio.Event | None = None

    async def __call__(
        self,
        url: str,
        protocol: str,
        headers: Mapping[str, str],
        limits: Limits,
        open: Callable[[Link], Receiver],
    ) -> None:
        if self.open is not None:
            await self.open.wait()
        await self._server._lifecycle.attach()
        acceptor = self._server._acceptor
        self.ends = ours, theirs = MemoryLink.pair(limits, acceptor.limits)
        target = "/" + url.split("://", 1)[1].partition("/")[2]
        request = HttpRequest(target, dict(headers), theirs.remote_addr, self._native)
        theirs.session = acceptor.open(theirs, request, acceptor.select([protocol]))
        ours.session = open(ours)


class Network:
    """The network between a client and the server: `client.link`."""

    def __init__(self, connector: MemoryConnector) -> None:
        self._connector = connector

    def cut(self, *, server_notices: bool = True) -> None:
        """Break the connection. What is on its way is lost. Nothing happens if there is no connection.

        Args:
            server_notices: Whether the server also notices. A server that does not believes in the connection until
                its heartbeat fails, or the client is back.
        """
        if self._connector.ends is not None:
            ours, theirs = self._connector.ends
            self._connector.ends = None
            ours.lose()
            if server_notices:
                theirs.lose()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let nothing through during the block, in either direction; a client that has lost its connection gets no
        new one until the end of it.
        """
        connector = self._connector
        gate = connector.open = asyncio.Event()
        ends = connector.ends or ()
        for end in ends:
            end.hold(True)
        try:
            yield
        finally:
            connector.open = None
            gate.set()
            for end in ends:
                end.hold(False)


class MemoryClient(WseClient):
    """A `WseClient` over a network that a test controls.

    Attributes:
        link: The network.
    """

    def __init__(self, connector: MemoryConnector, **options: Any) -> None:
        super().__init__(URL, connector=connector, **options)
        self.link = Network(connector)


class _Timer:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


class Clock:
    """A time that a test moves on: `connect(server, clock=Clock())`.

    The server and the client take their time from it: windows, timeouts of calls, waits before reconnecting, the
    expiry of sessions. What the application itself awaits is not affected.
    """

    def __init__(self) -> None:
        self._now = time()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _Timer]] = []

    def time(self) -> float:
        """The time, in seconds."""
        return self._now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> _Timer:
        """Run the callback when `delay` seconds have passed."""
        timer = _Timer(callback, args)
        heapq.heappush(self._timers, (self._now + delay, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let that time pass: everything that is due happens in its order."""
        end = self._now + seconds
        await self._settle()
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            if timer.callback is not None:
                timer.callback(*timer.args)
                await self._settle()
        self._now = end

    async def _settle(self) -> None:
        for _ in range(20):  # turns of the event loop: an exchange of a few messages in memory
            await asyncio.sleep(0)


@asynccontextmanager
async def connect(
    server: WseServer,
    identity: Any = "",
    meta: dict[str, Any] | None = None,
    *,
    native: Any = None,
    clock: Clock | None = None,
    **client_options: Any,
) -> AsyncIterator[MemoryClient]:
    """Connect a client to `server` over an in-memory link, and close it on leaving.

    The server needs no port and need not be started. Everything else is real: encoding, the handshake, calls, events.

    Args:
        server: The application's server.
        identity: As for `WseClient`.
        meta: As for `WseClient`.
        native: The value of `auth.request.native`: the request of a web framework, or any object that replaces it in
            the test.
        clock: The time of the server and the client, if the test moves it on.
        client_options: Further arguments of `WseClient`.

    Raises:
        WseError: As `WseClient.connect`.
    """
    client = MemoryClient(MemoryConnector(server, native), identity=identity, meta=meta, **client_options)
    if clock is not None:
        server._scheduler.use(clock)
        server._hub.auth.clock = clock.time
        client._scheduler.use(clock)
    async with client:
        yield client
