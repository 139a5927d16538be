"""While somebody does the server harm, others are served, memory stays bounded, and afterwards nothing is left.

The server, the attacker and the honest clients are processes of their own.
"""

import asyncio
import random
import signal
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter

import pytest
import pytest_asyncio

from support.counts import LEAKS, raise_file_limit, resident
from support.programs import program
from wse import WseClient

HERE = Path(__file__).parent
MIB = 1024 * 1024

HONEST = 50
ROUND = 0.4
"""Seconds of one measurement: some 400 calls, of which the slowest four are beyond the 99th percentile."""

SERVED = 2.0
"""Seconds for the p99 of a server that serves others at all, on whatever machine and whatever else runs on it: one that
an attack takes up makes them wait four seconds and more."""

FLOOR = 0.01
"""Seconds that a quiet p99 counts for at least: where it is a fraction of a millisecond, ten times that is less than
what the machine makes one process wait while others run."""

PATIENCE = 60
"""Seconds within which the attack has arrived and enough measurements are below the bound. One that has waited for the
processor tells nothing of the server; a server that is slowed down is so in all of them."""

PEAK = 160 * MIB
"""What the server's memory may grow by while attacks last. Most of it are 10,000 half-open connections, 10 KiB each."""

LEFT = 12 * MIB
"""What it may have grown by after each of the attacks, and so after all of them: tables that have been larger once, and
gaps between what lives."""

LEFT_AFTER_CROWD = 48 * MIB
"""The same after the 10,000, which leave more such gaps; a second crowd goes into them."""

UNBOUNDED = 1.5
"""Seconds for the p99 while some send as fast as the server takes it. They get most of the processor, but in turns that
are bounded: without a bound on what is read in one turn it is four seconds and more."""

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("hostile"),  # one after the other: they would be each other's attackers
]


@asynccontextmanager
async def attack(name, port):
    with program(str(HERE / "attacker.py"), name, str(port)) as attacker:
        await asyncio.to_thread(attacker.read_until, "attacking")
        yield
        assert attacker.process.poll() is None, attacker.stop()


class Honest:
    """Clients that call a procedure now and then, and stay for all attacks."""

    def __init__(self, server):
        self.port = int(server.output.split()[1])
        self.url = f"ws://127.0.0.1:{self.port}"
        self.pid = server.process.pid
        self.clients = []
        self.quiet = deque(maxlen=5)
        self.first = 0
        self.most = 0

    async def join(self, stack):
        for n in range(HONEST):
            client = WseClient(self.url, identity=f"honest{n}", timeout=PATIENCE)
            self.clients.append(await stack.enter_async_context(client))
        await self.p99()
        self.first = resident(self.pid)

    async def p99(self):
        """Seconds within which 99 of 100 calls are answered; memory is looked at meanwhile."""
        times = []
        end = monotonic() + ROUND

        async def calls(client):
            await asyncio.sleep(random.random() * 0.05)
            while True:
                start = perf_counter()
                assert await client.call("echo", start) == start
                times.append(perf_counter() - start)
                if client is self.clients[0]:
                    self.most = max(self.most, resident(self.pid))
                if monotonic() > end:
                    break
                await asyncio.sleep(0.04)

        await asyncio.gather(*map(calls, self.clients))
        return sorted(times)[len(times) * 99 // 100]

    async def bound(self):
        """What a p99 under attack must be below."""
        while len(self.quiet) < 3:
            self.quiet.append(await self.p99())
        self.quiet.append(await self.p99())
        return 10 * max(median(self.quiet), FLOOR)

    async def counts(self):
        return await self.clients[0].call("counts")

    async def newcomer(self):
        """Somebody who comes now is let in, called and served."""
        async with asyncio.timeout(PATIENCE), WseClient(self.url, identity="newcomer", timeout=PATIENCE) as client:
            client.register("question", lambda payload: "answer")
            assert await client.call("ask") == "answer"

    async def until_as(self, before):
        """The server holds no more than it held before, when a timer of the last attack may still have run."""
        end = monotonic() + PATIENCE
        while more := {name: (before[name], now) for name, now in (await self.leaks()).items() if now > before[name]}:
            assert monotonic() < end, more
            await asyncio.sleep(0.05)

    async def leaks(self):
        counts = await self.counts()
        return {name: counts[name] for name in LEAKS}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def honest():
    """One server and its clients for all attacks: what one leaves behind, the next would add to."""
    with program(str(HERE / "server.py")) as server:
        await asyncio.to_thread(server.read_until, "\n")
        honest = Honest(server)
        async with AsyncExitStack() as stack:
            await honest.join(stack)
            yield honest
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.output


ATTACKS = (
    "slowloris",
    "never_reading",
    "one_byte_a_second",
    "ping_flood",
    "unbounded_flood",
    "empty_fragments",
    "giant_messages",
    "deep_nesting",
    "compression_bombs",
    "call_flood",
    "stamp_reuse",
    "forged_answers",
    "reconnect_storm",
    "failing_handshakes",
    "api_and_metrics",
    "operations_page",
    "never_acking",
    "ghosts",
    "greedy_readers",
    "streams_left",
    "unwanted_items",
    "restless_members",
)


EVIDENCE = {
    "operations_page": lambda before, during: during["files"] >= before["files"] + 15,
    "api_and_metrics": lambda before, during: during["files"] >= before["files"] + 30,
    "slowloris": lambda before, during: during["files"] >= before["files"] + 400,
    "never_reading": lambda before, during: grew("closes", "wse.slow-receiver", before, during),
    "one_byte_a_second": lambda before, during: during["connections"] >= before["connections"] + 150,
    "giant_messages": lambda before, during: grew("closes", "wse.limit.message-size", before, during),
    "deep_nesting": lambda before, during: (
        grew("closes", "wse.limit.nesting", before, during) and grew("closes", "wse.protocol-error", before, during)
    ),
    "compression_bombs": lambda before, during: grew("closes", "wse.limit.message-size", before, during),
    "call_flood": lambda before, during: during["running_handlers"] > 50,
    "stamp_reuse": lambda before, during: during["running_handlers"] > 50,
    "forged_answers": lambda before, during: during["bytes_in"] > before["bytes_in"] + 20_000,
    "reconnect_storm": lambda before, during: during["opened"] > before["opened"] + 20,
    "failing_handshakes": lambda before, during: (
        grew("closes", "wse.limit.handshake-size", before, during)
        and grew("closes", "wse.not-authorized", before, during)
    ),
    "never_acking": lambda before, during: (
        during["retained"] > 1_000_000 and grew("closes", "wse.protocol-error", before, during)
    ),
    "ghosts": lambda before, during: during["detached"] > 20,
    "greedy_readers": lambda before, during: during["running_handlers"] > before["running_handlers"] + 100,
    "streams_left": lambda before, during: grew("errors", "wse.server.rp.failed", before, during),
    "unwanted_items": lambda before, during: (
        grew("limits", "stream_window", before, during) and grew("limits", "streams", before, during)
    ),
    "restless_members": lambda before, during: (
        grew("limits", "state_size", before, during)
        and grew("limits", "rooms", before, during)
        and grew("closes", "wse.protocol-error", before, during)
    ),
    "half_open": lambda before, during: during["files"] > before["files"] + 3000,
}
"""By which the server shows that an attack has reached it. Of pings and empty fragments it counts nothing."""


def grew(what, key, before, during):
    return during[what].get(key, 0) > before[what].get(key, 0)


async def withstands(honest, name, bound, rounds):
    """While the attack lasts, a newcomer is served and that many measurements are below the bound; nothing is left."""
    if name == "half_open" and raise_file_limit() < 10_500:
        pytest.skip("10,000 half-open connections need 10,500 open files, and the limit here is lower")
    arrived = EVIDENCE.get(name, lambda before, during: True)
    before = await honest.counts()
    measured = []
    async with attack(name, honest.port):
        await honest.newcomer()
        end = monotonic() + PATIENCE
        while sum(p99 < bound for p99 in measured) < rounds or not arrived(before, await honest.counts()):
            assert monotonic() < end, f"bound {bound:.3f} s, under attack {[round(p99, 3) for p99 in measured]}"
            measured.append(await honest.p99())
        if name == "half_open":
            await honest.until_as(before)  # the server has ended them
    await honest.until_as(before)
    left = (await honest.counts())["resident"] - honest.first
    assert honest.most - honest.first < PEAK
    assert left < (LEFT_AFTER_CROWD if name == "half_open" else LEFT)


@pytest.mark.parametrize("name", [*ATTACKS, pytest.param("half_open", marks=pytest.mark.slow)])
async def test_others_are_served_during_an_attack(honest, name):
    await withstands(honest, name, SERVED, rounds=1)


@pytest.mark.long
@pytest.mark.parametrize("name", [*ATTACKS, "half_open"])
async def test_an_attack_slows_others_by_no_more_than_ten_times(honest, name):
    bound = await honest.bound()
    if name == "unbounded_flood":
        bound = max(bound, UNBOUNDED)
    await withstands(honest, name, bound, rounds=2)
