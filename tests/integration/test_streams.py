"""Streams over sockets: a network that cuts them, readers that leave them, and a slow one for a million items."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import pytest

from support.counts import LEAKS, counts
from support.net import ServerLog, make_server, soon
from support.programs import program, unmeasured
from support.proxy import TcpProxy
from support.resume import RETURNING, session_of
from wse import ErrorCode, WseClient, WseError

MIB = 1024 * 1024
STREAMING = str(Path(__file__).parents[1] / "support" / "streaming.py")


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


# Cuts.


class Network:
    """Cuts a connection whenever some more items have arrived, in all the ways in which connections break.

    Attributes:
        cuts: How often it has.
        returns: How often the client is back.
    """

    def __init__(self, proxy, most):
        self.proxy = proxy
        self.most = most
        self.cuts = self.returns = 0
        self._chance = random.Random(5)
        self._left = 50

    @property
    def is_done(self):
        return self.returns == self.most

    def item_arrived(self):
        self._left -= 1
        if self._left > 0 or self.cuts != self.returns or self.cuts == self.most:
            return
        self._left = self._chance.randrange(200)
        (front,) = [front for front in self.proxy.fronts if not front.transport.is_closing() and front.other.other]
        self.cuts += 1
        match self.cuts % 3:
            case 0:
                front.transport.abort()
            case 1:
                front.reset()
            case _:  # the server does not notice
                front.other.other = None
                front.transport.abort()


async def test_every_item_arrives_once_and_in_order_over_fifty_cuts(listen):
    """Four flows at once: a generator and an upload in each direction."""
    server = make_server()
    log = ServerLog(server)
    await listen(server)
    async with TcpProxy(server.port) as proxy:
        network = Network(proxy, most=50)
        made, seen = {}, {}

        async def numbers(flow):
            made[flow] = 0
            while not network.is_done:
                made[flow] += 1
                yield made[flow] - 1
            made[flow] += 1
            yield made[flow] - 1  # also after the last return

        async def take(flow, items):
            seen[flow] = []
            async for item in items:
                seen[flow].append(item)
                network.item_arrived()
            return "taken"

        async def take_stream(flow, stream):
            async with stream as items:
                return await take(flow, items)

        @server.register("numbers")
        async def serve_numbers(conn, flow):
            async for n in numbers(flow):
                yield n

        server.register("take", lambda conn, flow, items: take(flow, items), upload=True)
        client = WseClient(proxy.url, identity="ann", timeout=60, **RETURNING)
        client.register("numbers", numbers)
        client.register("take", take, upload=True)
        client.when.error(lambda error: None)  # attempts that fail
        lost = []
        client.when.lost(lost.append)

        @client.when.resumed
        def resumed(welcome):
            network.returns += 1

        await soon(client.connect())
        conn = await log.conn("ann")
        flows = asyncio.gather(
            take_stream("down", client.stream("numbers", "down")),
            take_stream("up", conn.stream("numbers", "up")),
            client.call("take", "upload", timeout=0, upload=numbers("upload")),
            conn.call("take", "download", timeout=0, upload=numbers("download")),
        )
        async with asyncio.timeout(120):
            assert await flows == ["taken"] * 4
        assert lost == []
        assert network.cuts == network.returns == 50
        for flow in ("down", "up", "upload", "download"):
            assert seen[flow] == list(range(made[flow]))
            assert made[flow] > 10
        for session in (client._connections.session, conn._session):
            await until(lambda session=session: not session.tasks)
            assert not session._serving.calls
            assert not session._serving.streams
            assert not session._asking.calls
        await client.close()


# Streams that are left.


class Generators:
    """Counts those that have begun and those whose `finally` has run."""

    def __init__(self):
        self.begun = self.ended = 0

    async def endless(self, *args):
        self.begun += 1
        try:
            n = 0
            while True:
                yield n
                n += 1
                if n % 3 == 2:
                    await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            self.ended += 1


async def leave(how, stream, number):
    """Read some items, and leave."""
    match how:
        case "break":
            async with stream as items:
                async for n in items:
                    if n == number % 5:
                        break
        case "at once":
            async with stream:
                pass
        case "garbage":
            async for n in stream:
                if n == number % 5:
                    break
        case "cancel":
            began = asyncio.Event()

            async def read():
                async with stream as items:
                    async for _ in items:
                        began.set()

            task = asyncio.create_task(read())
            await began.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        case "disconnect":
            with pytest.raises(WseError, match=ErrorCode.RP_DISCONNECT):
                [item async for item in stream]


WAYS = ("break", "at once", "garbage", "cancel", "disconnect")
EACH = 20
"""Streams that are left in one of these ways by one client, and by the server."""


@pytest.mark.parametrize("visits", [5, pytest.param(50, marks=pytest.mark.slow)])
async def test_thousands_of_streams_opened_and_left_leave_nothing_behind(listen, visits):
    """Each visit has 200 streams."""
    server = make_server()
    log = ServerLog(server)
    place = await listen(server)
    generators = Generators()
    server.register("endless", generators.endless)

    async def visit(name):
        client = WseClient(place.url, identity=name)
        client.register("endless", generators.endless)
        await client.connect()
        conn = await log.conn(name)
        sessions = session_of(client), conn._session
        for side in (client, conn):
            for how in WAYS[:-1]:
                await asyncio.gather(*(leave(how, side.stream("endless", window=4), n) for n in range(EACH)))
        await until(lambda: all(is_at_rest(session) for session in sessions))
        left = [leave("disconnect", side.stream("endless"), n) for side in (client, conn) for n in range(EACH)]
        leaving = asyncio.gather(*left)
        await until(lambda: all(session._serving and session._serving.streams == EACH for session in sessions))
        conn._session.link.abort()
        await leaving
        await client.close()
        await until(lambda: all(is_at_rest(session) for session in sessions))

    async with asyncio.timeout(200):
        await visit("first")  # some things are made once
        await place.empty()
        before = counts(server)
        for number in range(0, visits, 5):
            await asyncio.gather(*(visit(f"u{number + n}") for n in range(5)))
            log.entries.clear()
        await place.empty()
        await until(lambda: len(timers()) <= before["timers"] + 1)  # its own
    after = counts(server)
    assert {name: max(after[name], before[name]) for name in LEAKS} == {name: before[name] for name in LEAKS}
    assert after["calls_in"] + after["calls_out"] - before["calls_in"] - before["calls_out"] == 200 * visits
    assert generators.begun > 150 * visits  # one that is left at once may not have begun
    assert generators.ended == generators.begun
    assert after["objects"] - before["objects"] < 2000
    assert after["errors"] == {}


def timers():
    """Those of the loop that will run."""
    return [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]


def is_at_rest(session):
    """Whether nothing of any stream is left, at either end of it."""
    serving, asking = session._serving, session._asking
    return (
        not session.tasks
        and not session.pending_calls
        and not session._running_calls
        and not (serving and (serving.calls or serving.streams))
        and not (asking and asking.calls)
    )


# A slow reader.


async def read_slowly(count):
    """A process reads that many items of another one: what it has measured."""
    with program(STREAMING, "serve") as server:
        port = (await asyncio.to_thread(server.read_until, "\n")).split()[1]
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", STREAMING, "read", port, str(count), stdout=PIPE, env=unmeasured()
        )
        try:
            async with asyncio.timeout(250):
                output, _ = await reader.communicate()
        finally:
            if reader.returncode is None:
                reader.kill()
                await reader.wait()
    assert reader.returncode == 0
    measured = json.loads(output)
    assert measured["taken"] == count
    assert measured["ahead"] <= 33  # the window, and the item that waits for credit
    return measured


async def test_a_slow_reader_holds_the_generator_and_nobody_else():
    measured = await read_slowly(10_000)
    assert max(measured["grown"]) < 8 * MIB
    assert min(measured["p99"]) < 2


@pytest.mark.slow
async def test_a_million_items_for_a_slow_reader_take_no_memory_and_delay_no_calls():
    """A call beside them takes less than 10 ms, whenever nothing else has the processor."""
    measured = await read_slowly(1_000_000)
    assert max(measured["grown"]) < 2 * MIB
    assert min(measured["p99"]) < 0.01


# How soon.


@pytest.mark.slow
@pytest.mark.parametrize("how", ["break", "cancelled task", "timeout", "first answer"])
async def test_what_nobody_waits_for_ends_within_100_ms(listen, how):
    """Usually: one in ten may wait for the processor."""
    server = make_server(conns_per_user=2)
    place = await listen(server)
    loop = asyncio.get_running_loop()
    times = []

    async def never(payload):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set_result(loop.time())

    async def numbers(conn, payload):
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            ended.set_result(loop.time())

    async def answer(payload):
        await began.wait()
        return payload

    server.register("never", lambda conn, payload: never(payload), cancel=True)
    server.register("numbers", numbers)
    one, other = await place.connect(), await place.connect()
    one.register("ring", answer)
    other.register("ring", never, cancel=True)
    for _ in range(10):
        began, ended = asyncio.Event(), loop.create_future()
        match how:
            case "break":
                async with one.stream("numbers") as items:
                    async for _ in items:
                        break
                    since = loop.time()
            case "cancelled task":
                task = asyncio.create_task(one.call("never"))
                await soon(began.wait())
                task.cancel()
                since = loop.time()
            case "timeout":
                with pytest.raises(WseError, match=ErrorCode.RP_TIMEOUT):
                    await one.call("never", timeout=0.5)
                since = loop.time()
            case _:
                assert await soon(server.call("ann", "ring", 5)) == 5
                since = loop.time()
        times.append(await soon(ended) - since)
    assert sorted(times)[8] < 0.1
