"""The open sockets of a server: how many there may be, whether they are alive, and how all of them are closed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from itertools import islice
from typing import TYPE_CHECKING

from wse.core.session.keepalive import Keepalive
from wse.errors import CloseReason
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio

    from wse.core.heartbeat import Heartbeat
    from wse.core.hub.connection import ServerSession
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.leftover import Leftover

CLOSES_PER_SECOND = 1000
"""Connections closed in a second when a server ends: as many as another server can accept in that time."""

CLOSED_WITHIN = 15.0
"""Seconds until the last connection is closed, for any number of connections."""


class Sockets:
    """The sockets that are not closed yet, each by its session.

    Args:
        endpoint: The state that the sessions share.
        heartbeat: When silent connections are pinged, and given up.

    Attributes:
        open: The sessions.
        unauthenticated: The number of them that have been neither accepted nor ended.
        by_address: How many of them each address has, where there is a limit.
        leftovers: Sockets that their session has left behind, and that have a moment to close.
        keeps_sessions: Whether sessions go on without their sockets while all sockets are closed.
        closing: The code and the reason with which new connections are closed, when the server ends.
    """

    def __init__(self, endpoint: Endpoint, heartbeat: Heartbeat) -> None:
        self._endpoint = endpoint
        self._limits = endpoint.limits
        self.open: set[ServerSession] = set()
        self.unauthenticated = 0
        self.by_address: Counter[str] = Counter()
        self.leftovers: set[Leftover] = set()
        self.keeps_sessions = False
        self.closing: tuple[int, str] | None = None
        self._closers: list[asyncio.Future[None]] = []  # one for each `close` that waits for the last socket
        self._keepalive = Keepalive(endpoint.scheduler, heartbeat, lambda: self.open)

    def find_excess(self, address: str) -> tuple[str, CloseReason] | None:
        """The limit that one more connection would exceed."""
        limits = self._limits
        if limits.connections is not None and len(self.open) >= limits.connections:
            return "connections", CloseReason.LIMIT_CONNECTIONS
        if limits.unauthenticated is not None and self.unauthenticated >= limits.unauthenticated:
            return "unauthenticated", CloseReason.LIMIT_UNAUTHENTICATED
        most = limits.connections_per_address
        if most is not None and self.by_address[network_of(address)] >= most:
            return "connections_per_address", CloseReason.LIMIT_CONNECTIONS_PER_ADDRESS
        return None

    def add(self, session: ServerSession) -> None:
        """Count a socket that has just been opened."""
        self.open.add(session)
        self.unauthenticated += 1
        if self._limits.connections_per_address is not None:
            self.by_address[network_of(session.conn.request.remote_addr)] += 1
        if session.link.pings:
            self._keepalive.start()

    def remove(self, session: ServerSession) -> None:
        """Forget a socket that has closed."""
        self.open.discard(session)
        if self.by_address:
            network = network_of(session.conn.request.remote_addr)
            self.by_address[network] -= 1
            if not self.by_address[network]:
                del self.by_address[network]
        if not self.open:
            for emptied in self._closers:
                wake(emptied)

    def hand_over(self, session: ServerSession, to: ServerSession) -> None:
        """The socket of a session that has not been let in is another session's now."""
        self.open.discard(session)
        self.open.add(to)
        self.unauthenticated -= 1

    def refuse(self, code: int, reason: str) -> None:
        """Let no more clients in: close each new connection with this code and reason."""
        self.closing = code, reason

    async def close(self, code: int, reason: str) -> None:
        """Close every connection; returns when the last socket has closed.

        Many are closed over some seconds, `CLOSES_PER_SECOND` of them in each, or more if it would take longer than
        `CLOSED_WITHIN`, so that they do not all return at once. New connections are closed as well.
        """
        self.closing = code, reason
        emptied = self._endpoint.scheduler.create_future()
        self._closers.append(emptied)
        for leftover in self.leftovers:
            leftover.link.abort()
        if len(self._closers) == 1:
            for session in tuple(self.open):
                if session.ended:  # a slow peer would have more time for its last messages
                    session.link.close(code, reason)
        try:
            pace = max(CLOSES_PER_SECOND, len(self.open) / CLOSED_WITHIN)
            self._close_some(iter(tuple(self.open)), math.ceil(pace / 10))
            if self.open:
                await emptied
        finally:
            self._closers.remove(emptied)
            if not self._closers:  # else another `close` still waits
                self.closing = None
                self._keepalive.stop()

    def stop_keepalive(self) -> None:
        """Look for silent peers no longer, until a connection opens."""
        self._keepalive.stop()

    def _close_some(self, sessions: Iterator[ServerSession], count: int) -> None:
        if self.closing is None:
            return
        for session in islice(sessions, count):
            (session.cut if self.keeps_sessions else session.close)(*self.closing)
        if sessions.__length_hint__():  # type: ignore[attr-defined]  # tuple iterators have it
            self._endpoint.scheduler.call_later(0.1, self._close_some, sessions, count)


def network_of(address: str) -> str:
    """The key under which an address is counted: for IPv6 its network of 64 bits, which belongs to one subscriber."""
    if ":" not in address:
        return address
    with suppress(ValueError):
        return str(ip_network((address.partition("%")[0], 64), strict=False))
    return address
