"""One process that serves: by itself, or as a worker of a supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from wse.errors import WseError

if TYPE_CHECKING:
    from wse.server import WseServer

logger = logging.getLogger("wse.worker")

VARIABLE = "WSE_WORKER"
"""The environment variable that tells a worker its number and where its seat is."""

READY = b"ready"


class StartError(Exception):
    """The server does not start, for a reason that needs no traceback."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A worker's place at its supervisor.

    Attributes:
        number: From 1 on. The worker that takes a dead one's place has the same.
        socket: Where a worker says `READY`. The supervisor says nothing: its end closes when it is gone, however that
            came, and the worker then ends by itself.
    """

    number: int
    socket: socket.socket

    @classmethod
    def taken(cls) -> Self | None:
        """This process's seat; `None` if it is nobody's worker. Processes that it starts are none, either."""
        value = os.environ.pop(VARIABLE, None)
        if value is None:
            return None
        number, descriptor = value.split(":")
        return cls(int(number), socket.socket(fileno=int(descriptor)))


async def serve(server: WseServer, *, grace: float, seat: Seat | None = None) -> None:
    """Serve until SIGINT or SIGTERM, or until the supervisor has gone; then close. A second signal ends it at once.

    Args:
        server: One that does not listen yet.
        grace: Seconds that running handlers have to end.
        seat: That of a worker. One without takes SIGHUP for a request to end, too, as from a terminal that is closed.

    Raises:
        StartError: The port cannot be had, or the server lacks something.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def supervisor_gone() -> None:
        assert seat is not None
        loop.remove_reader(seat.socket)
        logger.warning("the supervisor has gone")
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    if seat is not None:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        loop.add_reader(seat.socket, supervisor_gone)
    try:
        try:
            await server.start()
        except (OSError, ValueError, WseError) as exc:
            raise StartError(f"the server cannot start: {exc}") from exc
        logger.info("listening on %s", server.url)
        if seat is not None:
            seat.socket.send(READY)
        await stop.wait()
        logger.info("closing")
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if seat is not None:
            loop.remove_reader(seat.socket)
        await server.close(grace)
