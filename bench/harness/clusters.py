"""Clusters of nodes: those that are compared, and how they are measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.engine_load import broadcast_cost
from harness.engines import NATS, VALKEY, program, running
from harness.env import Environment
from harness.measure import (
    HOST,
    BenchError,
    Settings,
    on_cores,
    raise_file_limit,
    rotated,
    run_json,
    serving,
    split_cores,
)
from harness.peers import PEERS, Peer, Workload
from wse import WseClient, WseError

BY_NAME = {peer.name: peer for peer in PEERS}


@dataclass(frozen=True)
class Kind:
    """A server, and the engine that connects its nodes."""

    name: str
    title: str
    peer: Peer
    engine: str
    modules: tuple[str, ...]
    """The requirements of the server in addition to those that it has alone."""

    def missing(self, env: Environment) -> str:
        """The reason why it cannot run here; empty if it can."""
        if not program(self.engine, env):
            return f"not installed: {self.engine}"
        return env.missing(self.peer.kind, (*self.peer.needs, *self.modules))


def kind(name: str, title: str, peer: str, engine: str, *modules: str) -> Kind:
    return Kind(name, title, BY_NAME[peer], engine, modules)


KINDS = (
    kind("wse-nats", "wse, NATS", "wse", NATS, "nats"),
    kind("wse-valkey", "wse, Valkey", "wse", VALKEY, "redis", "hiredis"),
    kind("wse-uvloop-nats", "wse, uvloop, NATS", "wse-uvloop", NATS, "nats"),
    kind("wse-uvloop-valkey", "wse, uvloop, Valkey", "wse-uvloop", VALKEY, "redis", "hiredis"),
    kind("python-socketio", "python-socketio, uvicorn, Valkey", "python-socketio", VALKEY, "redis"),
    kind("socketio", "Socket.IO on Node, Valkey", "socketio", VALKEY, "@socket.io/redis-adapter", "redis"),
)

HALF_LOAD = Workload("pass-half", "From user to user, 50 pairs, at half load", "pass", 100, 1)
WORKLOADS = (
    Workload("pass-1", "From user to user, 1 in flight", "pass", 2, 1),
    Workload("pass-8", "From user to user, 50 pairs, 8 in flight in each", "pass", 100, 8),
    HALF_LOAD,
    Workload("fanout-1", "Broadcast to 1,000 connections, 1 in flight, per delivery", "fanout", 1000, 1),
    Workload("fanout-4", "Broadcast to 1,000 connections, 4 in flight, per delivery", "fanout", 1000, 4),
)

HALF_LOAD_STARTS = 2000.0
"""Messages a second at which the search for half load starts: less than half load for every kind but slow ones."""
HALF_LOAD_NEAR = 0.03
"""The largest deviation from a half of the time that the cores are busy."""
HALF_LOAD_TRIES = 8

RATES = (1000, 2000, 4000, 8000, 16_000, 32_000)
"""Messages a second of `pass-half`, from nearly idle to nearly the maximum of the nodes."""

SPREAD_NODES = 3
MANY_NODES = (1, 10, 100)
FIND_OUT = 120.0
"""Seconds that nodes have to fire `left` for all users of a dead node."""


@dataclass(frozen=True)
class Place:
    """Servers that run together."""

    ports: tuple[int, ...]
    pids: tuple[int, ...]
    engine: int = 0


@contextlib.contextmanager
def cluster(which: Kind | Peer, nodes: int, env: Environment, cores: set[int]) -> Iterator[tuple[Place, str]]:
    """Run nodes and their engine, or servers without one; yields the engine's URL with them.

    Raises:
        BenchError: One of them does not start.
    """
    with contextlib.ExitStack() as stack:
        url, engine = "", 0
        peer = which.peer if isinstance(which, Kind) else which
        if isinstance(which, Kind):
            connecting = stack.enter_context(running(which.engine, env, cores))
            url, engine = connecting.url, connecting.pid
            peer = replace(peer, command=(*peer.command, url))
        places = [stack.enter_context(serving(peer, env, cores)) for _ in range(nodes)]
        yield Place(tuple(port for port, _ in places), tuple(pid for _, pid in places), engine), url


class ClusterRun:
    """One run of everything: clusters side by side, alternating, and beside each the same on one server alone.

    Attributes:
        samples: The results by workload, then by kind, one dict for each round; the figures of the one server start
            with `alone_`.
        spread: The results with users spread over nodes, by kind; `alone` is without an engine.
        rates: The medians at rising rates: by kind, then by rate.
        engines: The microseconds of an engine for a message to every node: by kind, then by the number of nodes.
        problems: The measurements that failed.
    """

    def __init__(self, env: Environment, settings: Settings) -> None:
        self.env = env
        self.settings = settings
        self.samples: dict[str, dict[str, list[dict[str, float]]]] = {}
        self.spread: dict[str, dict[str, float]] = {}
        self.rates: dict[str, dict[int, dict[str, float]]] = {}
        self.engines: dict[str, dict[int, float]] = {}
        self.problems: dict[str, str] = {}
        self._half_loads: dict[str, float] = {}
        everywhere = os.sched_getaffinity(0)
        self.pinned = split_cores(everywhere)
        self._measured_on, self._loading_on = self.pinned or (everywhere, everywhere)

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """The median of each figure, by workload and kind."""
        return {
            work: {name: medians(samples) for name, samples in by_kind.items()}
            for work, by_kind in self.samples.items()
        }

    def measure(self, works: list[Workload], kinds: list[Kind]) -> None:
        """Fill `samples`. All servers stay up, and take turns."""
        with contextlib.ExitStack() as stack:
            places: dict[Kind, tuple[Place, Place]] = {}
            for which in kinds:
                with self._noting(f"start {which.name}"):
                    both = [
                        stack.enter_context(cluster(which, 2, self.env, self._measured_on))[0],
                        stack.enter_context(cluster(which.peer, 1, self.env, self._measured_on))[0],
                    ]
                    for place in both:  # some subscribe when the first connection comes
                        self._load(which, place, Workload("", "", "idle", 20, 20), 0.5, 0)
                    places[which] = both[0], both[1]
            for work in works:
                for number in range(self.settings.rounds):
                    for which in rotated(list(places), number):
                        with self._noting(f"{work.name} {which.name}"):
                            self._take(work, which, *places[which])

    def _take(self, work: Workload, which: Kind, nodes: Place, alone: Place) -> None:
        rate = self._half_load(work, which, nodes) if work.name == HALF_LOAD.name else 0.0
        sample = self._beside(work, which, nodes, alone, rate)
        self.samples.setdefault(work.name, {}).setdefault(which.name, []).append(sample)
        print(
            f"{work.name:10} {which.name:18} {sample['cpu_us']:8.2f} µs {sample['ops_per_s']:10,.0f}/s "
            f"p99 {sample['p99_ms']:7.2f} ms; alone {sample['alone_cpu_us']:8.2f} µs {sample['alone_p99_ms']:7.2f} ms",
            file=sys.stderr,
        )

    def _beside(self, work: Workload, which: Kind, nodes: Place, alone: Place, rate: float) -> dict[str, float]:
        seconds, warmup = self.settings.seconds, self.settings.warmup
        sample = self._load(which, nodes, work, seconds, warmup, rate)
        for figure, value in self._load(which, alone, work, seconds, warmup, rate).items():
            sample[f"alone_{figure}"] = value
        return sample

    def _half_load(self, work: Workload, which: Kind, nodes: Place) -> float:
        """The rate at which nodes and engine keep their cores half busy; found once.

        This is not half the rate of a closed loop: a closed loop always has more to send, so many messages share a read
        and a write, and each costs about half as much as when they come one by one.
        """
        rate = self._half_loads.get(which.name)
        if rate:
            return rate
        cores = min(len(self._measured_on), len(nodes.ports))
        rate = HALF_LOAD_STARTS
        for _ in range(HALF_LOAD_TRIES):
            sample = self._load(which, nodes, work, self.settings.seconds, self.settings.warmup, rate)
            busy = (sample["cpu_us"] + sample["engine_us"]) * sample["ops_per_s"] / 1e6 / cores
            if abs(busy - 0.5) <= HALF_LOAD_NEAR:
                break
            rate *= min(0.5 / busy, 4)
        self._half_loads[which.name] = rate
        return rate

    def _load(
        self, which: Kind, place: Place, work: Workload, seconds: float, warmup: float, rate: float = 0
    ) -> dict[str, float]:
        with on_cores(self._loading_on):
            return run_json(self._command(which.peer, place, work, seconds, warmup, rate), 60 + seconds + warmup)

    def _command(
        self, peer: Peer, place: Place, work: Workload, seconds: float, warmup: float, rate: float = 0
    ) -> list[str]:
        ports, pids = (",".join(map(str, numbers)) for numbers in (place.ports, place.pids))
        numbers = [work.connections, work.window, seconds, warmup, pids, place.engine, rate]
        return [str(self.env.load), HOST, ports, peer.dialect, work.mode, *map(str, numbers)]

    def measure_rates(self, kinds: list[Kind]) -> None:
        """Fill `rates`."""
        for which in kinds:
            with (
                self._noting(f"rates {which.name}"),
                cluster(which, 2, self.env, self._measured_on) as (nodes, _),
                cluster(which.peer, 1, self.env, self._measured_on) as (alone, _),
            ):
                for rate in RATES:
                    samples = [self._beside(HALF_LOAD, which, nodes, alone, rate) for _ in range(self.settings.rounds)]
                    self.rates.setdefault(which.name, {})[rate] = figures = medians(samples)
                    print(f"rates      {which.name:18} {rate}/s {figures}", file=sys.stderr)

    # Many users on three nodes.

    def measure_spread(self, kinds: list[Kind], users: int) -> None:
        """Fill `spread`."""
        for which in (BY_NAME["wse"], *kinds):
            name = which.name if isinstance(which, Kind) else "alone"
            with self._noting(f"spread {name}"), cluster(which, SPREAD_NODES, self.env, self._measured_on) as (at, _):
                figures = self._spread(which, at, users)
                self.spread[name] = figures
                print(f"spread     {name:18} {figures}", file=sys.stderr)

    def _spread(self, which: Kind | Peer, place: Place, users: int) -> dict[str, float]:
        peer = which.peer if isinstance(which, Kind) else which
        warm = Workload("", "", "idle", 102, 102)
        with on_cores(self._loading_on):
            run_json(self._command(peer, place, warm, 0.1, 0), 60)
        parts = []
        with contextlib.ExitStack() as stack:
            for first, count in shares(users):
                work = Workload("", "", "hold", count, count)
                command = self._command(peer, place, work, self.settings.settle, 0, first)
                with on_cores(self._loading_on):
                    parts.append(stack.enter_context(holding(command)))
            figures = {name: sum(part[name] for part in parts) for name in ("ops", "wall_s")}
            for name in ("cpu_us", "engine_us", "rss_kib", "engine_rss_kib"):
                if name in parts[0]:
                    figures[name] = sum(part[name] * part["ops"] for part in parts) / users
            if isinstance(which, Kind):
                figures |= asyncio.run(end_of_a_node(place, users))
        return figures

    def measure_engines(self, kinds: list[Kind], messages: int) -> None:
        """Fill `engines`."""
        for engine in sorted({which.engine for which in kinds}):
            for nodes in MANY_NODES:
                with self._noting(f"{nodes} nodes on {engine}"), running(engine, self.env, self._measured_on) as at:
                    with on_cores(self._loading_on):
                        cost = broadcast_cost(engine, at, nodes, max(50, messages // nodes)) * 1e6
                    self.engines.setdefault(engine, {})[nodes] = cost
                    print(f"engine     {engine:18} {cost:8.1f} µs for {nodes} nodes", file=sys.stderr)

    @contextlib.contextmanager
    def _noting(self, where: str) -> Iterator[None]:
        try:
            yield
        except (BenchError, WseError, OSError, TimeoutError) as exc:
            self.problems[where] = str(exc) or type(exc).__name__
            print(f"{where} FAILED: {exc}", file=sys.stderr)


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {figure: statistics.median(sample[figure] for sample in samples) for figure in samples[0]}


@contextlib.contextmanager
def holding(command: list[str]) -> Iterator[dict[str, float]]:
    """Run load/load.c until the end of the block; yields the results of the phase in which it connected.

    Raises:
        BenchError: It fails.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace") as load:
        assert load.stdin and load.stdout and load.stderr  # noqa: PT018 - they are pipes
        try:
            line = load.stdout.readline()
            if not line:
                raise BenchError(load.stderr.read().strip() or "the load has ended")
            yield json.loads(line)
        finally:
            load.stdin.close()


def shares(users: int) -> list[tuple[int, int]]:
    """The first user's number and the number of users for each load program, by the limit on open files."""
    most = raise_file_limit() // SPREAD_NODES * SPREAD_NODES
    return [(first, min(most, users - first)) for first in range(0, users, most)]


def users_of_first(users: int, nodes: int) -> int:
    """How many users the load has connected to the first node: see `dial` in load/load.c."""
    return sum((user // 2 + user % 2) % nodes == 0 for _, count in shares(users) for user in range(count))


async def left(clients: list[WseClient]) -> tuple[int, float]:
    """The number of users for which the clients' nodes have fired `left`, and the time of the last one."""
    told = [await client.call("left") for client in clients]
    return sum(of_node["count"] for of_node in told), max(of_node["last"] or 0.0 for of_node in told)


async def end_of_a_node(place: Place, users: int) -> dict[str, float]:
    """Ask for the number of users, then kill the first node, and wait until the others have fired `left` for all.

    Raises:
        BenchError: The number is wrong, or it takes too long.
    """
    lost = users_of_first(users, len(place.ports))
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(WseClient(f"ws://{HOST}:{port}/", identity=f"secret:asker{port}"))
            for port in place.ports[1:]
        ]
        began = time.monotonic()
        online = await clients[0].call("online")
        asked = time.monotonic() - began
        if online != users + len(clients):
            raise BenchError(f"{online} users are online, not {users + len(clients)}")
        before, _ = await left(clients)  # the user that warmed up the nodes has left as well
        os.kill(place.pids[0], signal.SIGKILL)
        killed = time.monotonic()
        while True:
            count, last = await left(clients)
            count -= before
            if count >= lost:
                break
            if time.monotonic() - killed > FIND_OUT:
                raise BenchError(f"{count} of {lost} users have left {FIND_OUT:.0f} s after their node has died")
            await asyncio.sleep(0.1)
        if count > lost:
            raise BenchError(f"{count} users have left, of a node that had {lost}")
        return {"online_ms": asked * 1e3, "lost_users": lost, "left_s": last - killed}
