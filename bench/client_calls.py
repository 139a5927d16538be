"""Calls of one client, against the C server: usage: client_calls.py wse|websockets PORT WINDOW SECONDS WARMUP [uvloop]

Prints one line of JSON, as load/load.c does; `cpu_us` is the CPU time of this process for one call. Every answer is
compared with the value that was sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def wse(url: str):
    from wse import WseClient

    async with WseClient(url, identity="secret") as client:
        yield client.call


@asynccontextmanager
async def websockets(url: str):
    """The least that an application can do with `websockets` to call: a dictionary of futures, no timeouts."""
    from websockets.asyncio.client import connect

    waiting: dict[int, asyncio.Future[Any]] = {}
    loop = asyncio.get_running_loop()
    stamp = 0

    async def receive() -> None:
        async for text in socket:
            _, result, number = json.loads(text)
            waiting.pop(number).set_result(result)

    async def call(name: str, payload: Any) -> Any:
        nonlocal stamp
        stamp += 1
        future = waiting[stamp] = loop.create_future()
        await socket.send(json.dumps([name, payload, stamp]))
        return await future

    async with connect(url, subprotocols=["wse-default-json"], compression=None) as socket:
        await socket.send(json.dumps(["~wse:hi", {"identity": "secret", "meta": {}}, None]))
        if json.loads(await socket.recv())[0] != "~wse:welcome":
            raise SystemExit("not welcome")
        receiver = asyncio.create_task(receive())
        yield call
        receiver.cancel()


async def measure(make: Any, port: int, window: int, seconds: float, warmup: float) -> dict[str, float]:
    latencies: list[float] = []
    done = 0
    running = True

    async def caller(call: Any) -> None:
        nonlocal done
        while running:
            payload = {"a": 5, "b": 3, "n": done}
            since = time.perf_counter()
            if await call("echo", payload) != payload:
                raise SystemExit("not the answer that is due")
            latencies.append(time.perf_counter() - since)
            done += 1

    async with make(f"ws://127.0.0.1:{port}/") as call, asyncio.timeout(warmup + seconds + 20):
        callers = [asyncio.create_task(caller(call)) for _ in range(window)]
        await asyncio.sleep(warmup)
        latencies.clear()
        before, since, cpu, times = done, time.perf_counter(), time.process_time(), os.times()
        await asyncio.sleep(seconds)
        ops, wall, cpu = done - before, time.perf_counter() - since, time.process_time() - cpu
        user, kernel = (now - was for now, was in zip(os.times()[:2], times[:2], strict=True))
        running = False
        await asyncio.gather(*callers)
    latencies.sort()
    return {
        "ops": ops,
        "wall_s": wall,
        "ops_per_s": ops / wall,
        "cpu_us": cpu / ops * 1e6,
        "kernel_us": cpu / ops * 1e6 * kernel / ((user + kernel) or 1),
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


if __name__ == "__main__":
    which, port, window, seconds, warmup = sys.argv[1:6]
    main = measure({"wse": wse, "websockets": websockets}[which], int(port), int(window), float(seconds), float(warmup))
    if "uvloop" in sys.argv:
        import uvloop

        print(json.dumps(uvloop.run(main)))
    else:
        print(json.dumps(asyncio.run(main)))
