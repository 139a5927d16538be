"""Starts servers, loads them, and computes medians."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.env import BENCH, Environment
from harness.peers import FLOOR, PEERS, Client, Peer, Workload

HOST = "127.0.0.1"


class BenchError(Exception):
    """A measurement has failed."""


@dataclass(frozen=True)
class Settings:
    """The extent of a run."""

    rounds: int
    idle_rounds: int
    seconds: float
    warmup: float
    settle: float


def raise_file_limit() -> int:
    """Allow as many open files as this user may have; how many connections one process can then hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_000_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - 200


def split_cores(cores: set[int]) -> tuple[set[int], set[int]] | None:
    """The cores for the servers, and the one for the load; `None` if there is only one.

    If both share a core, a message costs half as much as across two cores, and the scheduler moves them at will; real
    clients are never on the server's core.
    """
    last = max(cores)
    return (cores - {last}, {last}) if len(cores) > 1 else None


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes that are started in this context run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A free port below the range from which outgoing connections get theirs."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((HOST, port))
            return port


@contextlib.contextmanager
def serving(peer: Peer, env: Environment, cores: set[int]) -> Iterator[tuple[int, int]]:
    """Run a server on these cores; yields its port and process id.

    Raises:
        BenchError: It does not start.
    """
    port = free_port()
    if peer.name == FLOOR:
        command = [str(env.floor), str(port)]
    else:
        interpreter = env.node if peer.kind == "node" else str(env.python)
        program, *arguments = peer.command
        command = [str(interpreter), str(BENCH / "servers" / program), str(port), *arguments]
    with tempfile.TemporaryFile("w+") as log:
        with on_cores(cores):
            process = subprocess.Popen(
                command, env=env.variables(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            if not listens(port, process, 20):
                log.seek(0)
                raise BenchError(f"{peer.name} does not start: {log.read()[-1000:].strip()}")
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listens(port: int, process: subprocess.Popen[Any], seconds: float) -> bool:
    """Wait until the process accepts connections; returns False when the time is over."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return True
        time.sleep(0.02)
    return False


def run_json(command: list[str], timeout: float, variables: dict[str, str] | None = None) -> dict[str, float]:
    """Run a program that prints one line of JSON.

    Raises:
        BenchError: It fails, or takes too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, env=variables)
    except subprocess.TimeoutExpired:
        raise BenchError(f"no result in {timeout:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(lines[-1] if lines else f"status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


class Run:
    """One run of everything: peers side by side, alternating.

    Attributes:
        samples: The results by workload, then by peer, one dict for each round.
        problems: The measurements that failed, by workload and peer.
    """

    def __init__(self, env: Environment, settings: Settings) -> None:
        self.env = env
        self.settings = settings
        self.samples: dict[str, dict[str, list[dict[str, float]]]] = {}
        self.problems: dict[str, str] = {}
        everywhere = os.sched_getaffinity(0)
        self.pinned = split_cores(everywhere)
        self._measured_on, self._loading_on = self.pinned or (everywhere, everywhere)

    def load(self, peer: Peer, place: tuple[int, int], work: Workload, seconds: float, warmup: float) -> Any:
        """Load a running server with load/load.c; returns the figures that it prints."""
        port, pid = place
        arguments = [work.mode, work.connections, work.window, seconds, warmup, pid]
        command = [str(self.env.load), HOST, str(port), peer.dialect, *map(str, arguments)]
        with on_cores(self._loading_on):
            return run_json(command, 60 + seconds + warmup)

    def measure(self, works: list[Workload], peers: list[Peer], clients: list[Client]) -> None:
        """Fill `samples`."""
        steady = [work for work in works if work.mode in ("call", "fanout", "items")]
        if steady:
            self._steady(steady, peers)
        for work in works:
            if work.mode in ("idle", "return"):
                self._idle(work, peers)
        calls = [work for work in works if work.mode == "client"]
        if calls:
            self._clients(calls, clients)

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """The median of each figure, by workload and peer."""
        return {
            work: {
                peer: {figure: statistics.median(sample[figure] for sample in samples) for figure in samples[0]}
                for peer, samples in by_peer.items()
            }
            for work, by_peer in self.samples.items()
        }

    def _steady(self, works: list[Workload], peers: list[Peer]) -> None:
        """Calls, fan-out and items: all servers stay up, and take turns."""
        with contextlib.ExitStack() as stack:
            places = {}
            for peer in peers:
                try:
                    places[peer] = stack.enter_context(serving(peer, self.env, self._measured_on))
                except BenchError as exc:
                    self._problem("start", peer.name, exc)
            for work in works:
                able = [peer for peer in places if peer.does(work)]
                for number in range(self.settings.rounds):
                    for peer in rotated(able, number):
                        seconds, warmup = self.settings.seconds, self.settings.warmup
                        with self._noting(work, peer.name):
                            self._add(work, peer.name, self.load(peer, places[peer], work, seconds, warmup))

    def _idle(self, work: Workload, peers: list[Peer]) -> None:
        """Time and memory of connections: a new server for each measurement, warmed up by a few connections."""
        warm = Workload("", "", "idle", 100, 100)
        able = [peer for peer in peers if peer.does(work)]
        for number in range(self.settings.idle_rounds):
            for peer in rotated(able, number):
                with self._noting(work, peer.name), serving(peer, self.env, self._measured_on) as place:
                    self.load(peer, place, warm, 0.1, 0)
                    self._add(work, peer.name, self.load(peer, place, work, self.settings.settle, 0))

    def _clients(self, works: list[Workload], clients: list[Client]) -> None:
        with serving(PEERS[0], self.env, self._loading_on) as (port, _):
            for work in works:
                for number in range(self.settings.rounds):
                    for client in rotated(clients, number):
                        with self._noting(work, client.name):
                            which, *rest = client.command
                            seconds, warmup = self.settings.seconds, self.settings.warmup
                            arguments = [which, port, work.window, seconds, warmup, *rest]
                            command = [str(self.env.python), str(BENCH / "client_calls.py"), *map(str, arguments)]
                            with on_cores(self._measured_on):
                                sample = run_json(command, 60, self.env.variables())
                            self._add(work, client.name, sample)

    def _add(self, work: Workload, name: str, sample: dict[str, float]) -> None:
        self.samples.setdefault(work.name, {}).setdefault(name, []).append(sample)
        print(f"{work.name:10} {name:16} {sample['cpu_us']:8.2f} µs {sample['ops_per_s']:12,.0f}/s", file=sys.stderr)

    @contextlib.contextmanager
    def _noting(self, work: Workload, name: str) -> Iterator[None]:
        try:
            yield
        except BenchError as exc:
            self._problem(work.name, name, exc)

    def _problem(self, where: str, name: str, exc: BenchError) -> None:
        self.problems[f"{where} {name}"] = str(exc)
        print(f"{where:10} {name:16} FAILED: {exc}", file=sys.stderr)


def rotated(items: list[Any], by: int) -> list[Any]:
    """The items, rotated by one for each round, so that a drift during a round affects all peers alike."""
    by %= len(items) or 1
    return items[by:] + items[:by]
