"""Two programs: a server that streams, and a reader that takes its time and then takes all it gets.

streaming.py serve               prints its port, and serves until its input ends
streaming.py read PORT COUNT     reads that many items, and prints what it has measured as JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic, perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counts import resident, trim
from wse import WseClient, WseServer

ROUND = 0.5
"""Seconds after which a new p99 begins."""


async def serve():
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, conns_per_user=2)
    made = 0

    @server.register("numbers")
    async def numbers(conn, count):
        nonlocal made
        for n in range(count):
            made = n + 1
            yield {"n": n, "text": "x" * 100}

    @server.register("state")
    def state(conn, payload):
        if payload:
            trim()
        return {"made": made, "resident": resident()}

    async with server:
        print(f"port {server.port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def read(port, count):
    taken, rounds, ahead = 0, [], 0
    slow = count // 100  # items at 100 a second, of which 300 are enough
    slow = min(slow, 300)

    async def calls():
        """Calls on the same connection: how long they take, and how far the generator is ahead."""
        nonlocal ahead
        while True:
            times, end = [], monotonic() + ROUND
            while monotonic() < end:
                start = perf_counter()
                made = (await client.call("state"))["made"]
                times.append(perf_counter() - start)
                ahead = max(ahead, made - taken)
                await asyncio.sleep(0.002)
            rounds.append(sorted(times)[len(times) * 99 // 100])

    async with WseClient(f"ws://127.0.0.1:{port}", identity="reader", timeout=60) as client:
        calling = asyncio.create_task(calls())
        async with client.stream("numbers", count) as items:
            async for item in items:
                assert item["n"] == taken
                taken += 1
                if taken <= slow:
                    await asyncio.sleep(0.01)
                if taken == count // 10:
                    trim()
                    first = resident(), (await client.call("state", True))["resident"]
        trim()
        last = resident(), (await client.call("state", True))["resident"]
        while not rounds and not calling.done():
            await asyncio.sleep(0.01)
        calling.cancel()
        grown = [after - before for before, after in zip(first, last, strict=True)]
        print(json.dumps({"taken": taken, "ahead": ahead, "p99": rounds, "grown": grown}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        asyncio.run(read(int(sys.argv[2]), int(sys.argv[3])))
