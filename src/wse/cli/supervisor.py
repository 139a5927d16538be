"""The supervisor of several workers that serve on one port (SO_REUSEPORT).

A worker is a process with an interpreter of its own. It gets its number and the descriptor of a socket (`WorkerSlot`),
reports when it is ready, and ends at SIGTERM or when the supervisor has ended.

    started -> ready -> ended                 another worker replaces it, after a wait that grows
                     -> retired -> ended      replaced (SIGHUP), or the supervisor ends (SIGINT, SIGTERM)
            -> ended                          at the first start: give up; later: like a ready one
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import Process
from collections.abc import Coroutine, Sequence
from typing import Any

from wse.backoff import Backoff
from wse.cli.metrics import Address, Reports, Sums, serve_metrics
from wse.cli.worker import READY, VARIABLE
from wse.core.hub.sockets import CLOSED_WITHIN

logger = logging.getLogger("wse.supervisor")

RESTART_BACKOFF = Backoff(base=0.5, cap=30.0, random=lambda: 1.0)
"""Waits before a worker is replaced that was not ready for `STABLE_AFTER` seconds."""

STABLE_AFTER = 10.0
"""Seconds after which the end of a ready worker no longer counts as a failure in a row."""

MAX_FAILED_STARTS = 5
"""Failed starts in a row, while no other worker is ready, after which the supervisor gives up."""

KILL_TIMEOUT = CLOSED_WITHIN + 15.0
"""Seconds, besides notice, grace and drain, after which a worker that does not end is killed: the time to close all
connections, 5 to cut those that do not answer, 5 for the node to leave the cluster, and 5 to spare."""


class PortError(Exception):
    """The port is not available."""


def check_port(host: str | None, port: int) -> None:
    """See that the port is free: with SO_REUSEPORT, workers would silently share it with another program.

    Raises:
        PortError: The port is in use, or not available to this user.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # An event loop that listens on all interfaces also skips an address family that the kernel lacks.
        for family, kind, protocol, _, address in [place for place in places if _exists(place[0])] or places:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen(1)  # Linux lets sockets share an address until one of them listens
    except OSError as exc:
        raise PortError(f"port {port} of {host or 'all interfaces'} is not available: {exc.strerror}") from exc


def _exists(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


class Worker:
    """A worker's process.

    Attributes:
        number: The number of its place, from 1 on.
        retired: Whether it is to end without a replacement.
        ready_since: When it became ready, by `time.monotonic`; None before.
        reports: Its metrics, if they are wanted.
    """

    def __init__(self, number: int, process: Process, slot: socket.socket) -> None:
        self.number = number
        self.process = process
        self.retired = False
        self.ready_since: float | None = None
        self.reports: Reports | None = None
        self._slot = slot

    @classmethod
    async def start(cls, number: int, command: Sequence[str]) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**os.environ, VARIABLE: f"{number}:{theirs.fileno()}"},
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # Ctrl-C reaches only the supervisor, which then ends the workers in order
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return cls(number, process, ours)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"

    async def ready(self, timeout: float) -> bool:
        """Wait until it is ready, and return whether it is; it is killed after that many seconds."""
        try:
            async with asyncio.timeout(timeout):
                if await self._says_ready():
                    self.ready_since = time.monotonic()
                    if self.reports is not None:
                        await self.reports.open(self._slot)
                else:
                    await self.process.wait()
        except TimeoutError:
            logger.error("%s was not ready after %g s", self, timeout, extra={"kind": "worker-not-ready"})  # noqa: TRY400 - a traceback adds nothing
            self.send(signal.SIGKILL)
        return self.is_ready

    async def _says_ready(self) -> bool:
        """Whether it reports so before it ends; its child processes may keep the socket open for longer."""
        report = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(self._slot, len(READY)))
        ended = asyncio.ensure_future(self.process.wait())
        try:
            await asyncio.wait((report, ended), return_when=asyncio.FIRST_COMPLETED)
            return report.done() and report.result() == READY
        finally:
            report.cancel()
            ended.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.ready_since is not None and self.process.returncode is None and not self.retired

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def ended(self) -> str:
        """Wait until it ends, and return its exit status as text."""
        status = await self.process.wait()
        if self.reports is not None:
            self.reports.close()
        self._slot.close()
        return f"status {status}" if status >= 0 else signal.Signals(-status).name

    async def end(self, timeout: float, hurry: asyncio.Event) -> None:
        """Let it close its connections; kill it after `timeout` seconds, or when `hurry` is set."""
        self.retired = True
        self.send(signal.SIGTERM)
        waits = {asyncio.ensure_future(self.ended()), asyncio.ensure_future(hurry.wait())}
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.process.returncode is None:
            logger.warning("%s did not end in time and is killed", self, extra={"kind": "worker-killed"})
            self.send(signal.SIGKILL)
        await self.ended()


class Supervisor:
    """Keeps a number of workers running.

    Args:
        command: The command that starts a worker.
        workers: The number of workers.
        grace: Seconds that a worker's handlers have to end when the worker closes.
        notice: Seconds before that, in which the worker only notifies load balancers.
        drain: Seconds after that, in which its clients take their sessions along to other workers.
        start_timeout: Seconds that a worker has to become ready.
        metrics: The address at which to serve the metrics of all workers.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        *,
        grace: float = 10.0,
        notice: float = 0.0,
        drain: float = 0.0,
        start_timeout: float = 60.0,
        metrics: Address | None = None,
    ) -> None:
        self._metrics = metrics
        self._sums = Sums()
        self._command = tuple(command)
        self._count = workers
        self._closing = notice + grace + drain + KILL_TIMEOUT  # seconds that a worker has to end
        self._start_timeout = start_timeout
        self._workers: dict[int, Worker] = {}  # by place
        self._living: set[Worker] = set()  # all processes, those that start or end included
        self._failures: dict[int, int] = {}  # by place, failed starts in a row
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hangup = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Run until SIGINT or SIGTERM, or until the supervisor gives up; returns the exit status.

        SIGHUP replaces the workers one by one, each after its successor is ready. A second signal kills them.
        """
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGINT: self._end, signal.SIGTERM: self._end, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        listener = None
        try:
            if self._metrics is not None:
                listener = await serve_metrics(self._metrics, self._sums.read)
            self._spawn(self._start_all())
            await self._stop.wait()
            logger.info("closing %d workers", len(self._living), extra={"kind": "closing"})
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(self._retire(worker) for worker in tuple(self._living)))
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
            if listener is not None:
                listener.close()
        return self._status

    def reload(self) -> None:
        """Replace the workers one by one, as at SIGHUP."""
        self._hangup.set()

    def _end(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _give_up(self, why: str) -> None:
        logger.error("giving up: %s", why, extra={"kind": "giving-up"})
        self._status = 1
        self._stop.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._give_up(f"a worker cannot be started: {exc}")

    async def _start_all(self) -> None:
        for number in range(1, self._count + 1):
            self._workers[number] = await self._launch(number)
        for worker in self._workers.values():
            if not await worker.ready(self._start_timeout):
                self._give_up(f"{worker} ended with {await worker.ended()} before it was ready")
                return
        for worker in self._workers.values():
            self._spawn(self._watch(worker))
        logger.info("%d workers are ready", self._count, extra={"kind": "workers-ready"})
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            await self._roll()

    async def _launch(self, number: int) -> Worker:
        worker = await Worker.start(number, self._command)
        self._living.add(worker)
        if self._metrics is not None:
            worker.reports = self._sums.add()
        return worker

    def _forget(self, worker: Worker) -> None:
        """A worker has ended."""
        self._living.discard(worker)
        if worker.reports is not None:
            self._sums.remove(worker.reports)

    async def _watch(self, worker: Worker) -> None:
        """Replace a worker when it ends, unless it was to end."""
        number = worker.number
        while True:
            how = await worker.ended()
            self._forget(worker)
            if worker.retired:
                return
            is_stable = worker.ready_since is not None and time.monotonic() - worker.ready_since >= STABLE_AFTER
            failures = self._failures[number] = 0 if is_stable else self._failures.get(number, 0) + 1
            if failures >= MAX_FAILED_STARTS and not any(other.is_ready for other in self._workers.values()):
                self._give_up(f"{worker} ended with {how}, {failures} times in a row, and no other is ready")
                return
            wait = RESTART_BACKOFF.delay(failures - 1) if failures else 0.0
            logger.error("%s ended with %s; another starts in %g s", worker, how, wait, extra={"kind": "worker-ended"})
            await asyncio.sleep(wait)
            if worker.retired:  # `_roll` has replaced it
                return
            successor = await self._launch(number)
            if worker.retired:  # pragma: no cover - `_roll` replaced it just while the successor was being started
                await self._retire(successor)
                return
            worker = self._workers[number] = successor
            if await worker.ready(self._start_timeout):
                logger.info("%s is ready", worker, extra={"kind": "worker-ready"})

    async def _roll(self) -> None:
        """Replace the workers one by one. If a new one does not become ready the old ones go on."""
        logger.info("replacing the workers one by one", extra={"kind": "replacing"})
        for number in range(1, self._count + 1):
            new = await self._launch(number)
            if not await new.ready(self._start_timeout):
                logger.error(
                    "%s ended with %s before it was ready; the old workers go on",
                    new,
                    await new.ended(),
                    extra={"kind": "worker-not-ready"},
                )
                self._forget(new)
                return
            old, self._workers[number] = self._workers[number], new
            self._failures[number] = 0
            self._spawn(self._watch(new))
            logger.info("%s is ready, and %s closes", new, old, extra={"kind": "worker-ready"})
            await self._retire(old)
        logger.info("all workers have been replaced", extra={"kind": "replaced"})

    async def _retire(self, worker: Worker) -> None:
        await worker.end(self._closing, self._hurry)
        self._forget(worker)
