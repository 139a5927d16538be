"""What can go wrong in a cluster, as one table: each nemesis makes one fault, and undoes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaos.run import Run

LEASE = 5.0
"""Seconds; the default of `ClusterSettings`. Faults last shorter and longer than that."""


@dataclass(frozen=True)
class Nemesis:
    """A kind of fault.

    Attributes:
        make: Makes the fault and undoes it; gets the run and the name of a node that it may concern.
        breaks_promises: Whether messages may be lost meanwhile.
    """

    make: Callable[[Run, str], Awaitable[None]]
    breaks_promises: bool = True


NEMESES: dict[str, Nemesis] = {}


def nemesis(name, *, breaks_promises=True):
    def register(make):
        NEMESES[name] = Nemesis(make, breaks_promises)
        return make

    return register


@nemesis("none", breaks_promises=False)
async def none(run, name):
    await asyncio.sleep(5)  # as long as a fault


# Nodes.


@nemesis("kill")
async def kill(run, name):
    """A node is killed, and started again before or after others take it for dead."""
    await run.kill(name)
    await asyncio.sleep(run.chance.choice([0.2, 3, LEASE + 4]))
    await run.start_node(name)


@nemesis("close")
async def close(run, name):
    """A node closes in good order, and another one takes its place."""
    await run.nodes[name].stop()
    await asyncio.sleep(0.5)
    await run.start_node(name)


@nemesis("stop")
async def stop(run, name):
    """A node sleeps so long that others take it for dead."""
    run.nodes[name].freeze()
    await asyncio.sleep(run.chance.uniform(LEASE + 2, LEASE + 6))
    run.nodes[name].thaw()


@nemesis("stop-short", breaks_promises=False)
async def stop_short(run, name):
    """A node sleeps, but wakes before its lease has run out, which it renews every second."""
    run.nodes[name].freeze()
    await asyncio.sleep(run.chance.uniform(1.5, LEASE - 1.5))
    run.nodes[name].thaw()


@nemesis("stop-kill")
async def stop_kill(run, name):
    """A node sleeps and is reaped, and those that have reaped it die before it wakes up."""
    others = [other for other in run.nodes if other != name]
    run.nodes[name].freeze()
    await asyncio.sleep(LEASE + 4)
    for other in others:
        await run.kill(other)
    await asyncio.gather(*[run.start_node(other) for other in others])
    run.nodes[name].thaw()


@nemesis("cpu", breaks_promises=False)
async def cpu(run, name):
    """A node's interpreter is busy with other threads."""
    run.nodes[name].tell("spin", seconds=8)
    await asyncio.sleep(9)


@nemesis("block", breaks_promises=False)
async def block(run, name):
    """A handler blocks a node's event loop."""
    run.nodes[name].tell("block", seconds=run.chance.choice([2, 4, LEASE + 2]))
    await asyncio.sleep(LEASE + 3)


# The network between a node and the engine.


@nemesis("cut")
async def cut(run, name):
    """A node's connections to the engine break, and new ones are refused."""
    proxy = run.proxies[name]
    proxy.accepts = False
    proxy.cut()
    await asyncio.sleep(run.chance.choice([1, LEASE - 1, LEASE + 4]))


@nemesis("flap")
async def flap(run, name):
    """A node's connections to the engine break again and again."""
    for _ in range(6):
        run.proxies[name].cut()
        await asyncio.sleep(run.chance.uniform(0.3, 1.5))


@nemesis("part-recv")
async def part_recv(run, name):
    """The engine receives nothing from a node, which receives from it; it all arrives afterwards."""
    run.proxies[name].stall(to_client=False)
    await asyncio.sleep(run.chance.choice([2, LEASE, LEASE + 4, LEASE + 9]))


@nemesis("part-pub")
async def part_pub(run, name):
    """A node receives nothing from the engine, which receives from it; it all arrives afterwards."""
    run.proxies[name].stall(to_server=False)
    await asyncio.sleep(run.chance.choice([2, LEASE, LEASE + 4, LEASE + 9]))


async def slow_down(run, seconds, delay):
    for proxy in run.proxies.values():
        proxy.delay = delay
    await asyncio.sleep(seconds)
    for proxy in run.proxies.values():
        proxy.delay = 0.0


@nemesis("slow", breaks_promises=False)
async def slow(run, name):
    """The engine answers all nodes after half a second."""
    await slow_down(run, 15, 0.25)


@nemesis("slower")
async def slower(run, name):
    """The engine answers all nodes so slowly, after nearly two seconds, that it often counts as out of reach."""
    await slow_down(run, 20, 0.9)


# The engine.


@nemesis("engine-restart")
async def engine_restart(run, name):
    """The engine is killed, and is soon back."""
    run.engine.stop()
    await asyncio.sleep(run.chance.uniform(0.3, 3))
    await run.start_engine()


@nemesis("engine-long")
async def engine_long(run, name):
    """The engine is killed, and is back when all leases would have run out."""
    run.engine.stop()
    await asyncio.sleep(run.chance.uniform(LEASE + 3, LEASE + 7))
    await run.start_engine()


@nemesis("engine-pause")
async def engine_pause(run, name):
    """The engine hangs."""
    run.engine.freeze()
    await asyncio.sleep(run.chance.choice([1.5, LEASE - 1, LEASE + 3, LEASE + 7]))
    run.engine.thaw()


@dataclass(frozen=True)
class Scenario:
    """Nemeses that follow each other, or come at the same time, and how the processes are run.

    Args:
        text: Names with commas between those that follow each other at random, and `+` between such lists that go on at
            the same time; after a slash, `persist` for an engine that keeps its data, and `skew` for nodes whose clocks
            differ by 30 s.
    """

    text: str

    @property
    def series(self):
        return [part.split(",") for part in self.text.partition("/")[0].split("+")]

    @property
    def persists(self):
        return "persist" in self.text.partition("/")[2]

    @property
    def skew(self):
        return 30.0 if "skew" in self.text.partition("/")[2] else 0.0

    def check(self):
        """Raises ValueError for a name that there is not."""
        for name in (name for names in self.series for name in names):
            if name not in NEMESES:
                raise ValueError(f"no nemesis {name!r}; there are {', '.join(NEMESES)}")


SCENARIOS = [
    *NEMESES,
    "engine-restart/persist",
    "engine-long,engine-restart/persist",
    "cut,engine-restart/skew",
    "cut,flap+kill",
    "part-recv,part-pub+engine-restart",
    "stop,kill+engine-pause",
    "kill,close+engine-restart/persist",
]
"""What `make chaos` runs."""
