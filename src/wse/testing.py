"""Tests of applications: a client that is connected to a server in memory, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from wse.client.client import WseClient
from wse.core.limits import Limits
from wse.core.ports.transport import Link, Receiver
from wse.server.server import WseServer
from wse.transports.memory import MemoryLink
from wse.transports.request import HttpRequest

URL = "ws://testserver/"


class MemoryConnector:
    """Opens links to a server in the same process; a `wse.core.ports.transport.Connector`."""

    def __init__(self, server: WseServer, native: Any = None) -> None:
        self._server = server
        self._native = native

    async def __call__(
        self,
        url: str,
        protocol: str,
        headers: Mapping[str, str],
        limits: Limits,
        open: Callable[[Link], Receiver],
    ) -> None:
        await self._server._lifecycle.attach()
        acceptor = self._server._acceptor
        ours, theirs = MemoryLink.pair(limits, acceptor.limits)
        target = "/" + url.split("://", 1)[1].partition("/")[2]
        request = HttpRequest(target, dict(headers), theirs.remote_addr, self._native)
        theirs.session = acceptor.open(theirs, request, acceptor.select([protocol]))
        ours.session = open(ours)


@asynccontextmanager
async def connect(
    server: WseServer,
    identity: Any = "",
    meta: dict[str, Any] | None = None,
    *,
    native: Any = None,
    **client_options: Any,
) -> AsyncIterator[WseClient]:
    """Connect a client to `server` over an in-memory link, and close it on leaving.

    The server needs no port and need not be started. Everything else is real: encoding, the handshake, calls, events.

    Args:
        server: The application's server.
        identity: As for `WseClient`.
        meta: As for `WseClient`.
        native: The value of `auth.request.native`: the request of a web framework, or any object that replaces it in
            the test.
        client_options: Further arguments of `WseClient`.

    Raises:
        WseError: As `WseClient.connect`.
    """
    client_options.setdefault("connector", MemoryConnector(server, native))
    async with WseClient(URL, identity=identity, meta=meta, **client_options) as client:
        yield client
