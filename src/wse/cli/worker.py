"""A process that serves, by itself or as a worker of a supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from wse.cli.metrics import ASK, Address, send_report, serve_metrics
from wse.errors import WseError
from wse.server.lifecycle import check_port, started
from wse.server.process import END_SIGNALS, HANGUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wse.metrics.families import Family
    from wse.server.server import WseServer

logger = logging.getLogger("wse.worker")

VARIABLE = "WSE_WORKER"
"""The environment variable with a worker's number and the descriptor of its socket."""

READY = b"ready"


class StartError(Exception):
    """The server cannot start, for a reason that needs no traceback."""


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """A worker's place at its supervisor.

    Attributes:
        number: From 1 on. The worker that replaces a dead one has the same number.
        socket: A worker sends `READY` on it, and later its metrics, each time that the supervisor asks (`ASK`). The
            supervisor's end of the socket closes when it ends, for any reason, and the worker then ends as well.
    """

    number: int
    socket: socket.socket

    @classmethod
    def taken(cls) -> Self | None:
        """Take this process's slot; `None` if it is not a worker. Processes that it starts are not workers either.

        Raises:
            StartError: The variable was not set by a supervisor.
        """
        value = os.environ.pop(VARIABLE, None)
        if value is None:
            return None
        number, _, descriptor = value.partition(":")
        try:
            return cls(int(number), socket.socket(fileno=int(descriptor)))
        except (ValueError, OSError) as exc:
            raise StartError(f"{VARIABLE}={value} is in the environment, but only the supervisor may set it") from exc


async def serve(
    server: WseServer,
    *,
    grace: float,
    notice: float = 0.0,
    slot: WorkerSlot | None = None,
    metrics: Address | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until the supervisor has ended; then close. A second signal ends the wait.

    Args:
        server: A server that does not listen yet.
        grace: As for `WseServer.close`.
        notice: As for `WseServer.close`.
        slot: The slot of a worker. A process without one also ends at SIGHUP, as when its terminal is closed.
        metrics: The address for metrics, at which a process without a slot serves them; a worker only measures.

    Raises:
        StartError: The port is not available, or the server lacks something.
    """
    signals = [*END_SIGNALS]
    if HANGUP is not None:
        if slot is None:
            signals.append(HANGUP)
        else:
            signal.signal(HANGUP, signal.SIG_IGN)
    if metrics is not None:
        server._metrics.read()  # it measures from now on

    async def read() -> list[Family]:
        return server._metrics.read()

    with server._lifecycle.stopped_by(*signals) as stop, watched(slot, stop, server):
        listener = None
        try:
            try:
                check_port(server)
                if metrics is not None and slot is None:
                    listener = await serve_metrics(metrics, read)
                if not await started(server, stop):
                    return
            except (OSError, ValueError, WseError) as exc:
                why = f"{exc} ({exc.__cause__})" if exc.__cause__ else f"{exc}"
                raise StartError(f"the server cannot start: {why}") from exc
            if slot is not None:
                slot.socket.send(READY)
            await stop.wait()
        finally:
            await server.close(grace, notice=notice)
            if listener is not None:
                listener.close()


@contextmanager
def watched(slot: WorkerSlot | None, stop: asyncio.Event, server: WseServer) -> Iterator[None]:
    """Answer the supervisor, and stop when it has ended."""
    if slot is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def heard() -> None:
        with suppress(OSError):
            if slot.socket.recv(len(ASK)) == ASK:
                send_report(slot.socket, server)
                return
        loop.remove_reader(slot.socket)
        logger.warning("the supervisor has ended; this worker closes", extra={"kind": "supervisor-gone"})
        stop.set()

    loop.add_reader(slot.socket, heard)
    try:
        yield
    finally:
        loop.remove_reader(slot.socket)
