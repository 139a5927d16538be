"""Measures what is kept for users who are away, beside Socket.IO's Redis streams adapter: `python bench/inbox.py`.

    python bench/inbox.py            some minutes
    python bench/inbox.py --quick    a smoke run of some seconds: do not quote its figures

Messages have 100 bytes. First they are kept, then that many devices connect at once and catch up. WSE keeps them one
after the other for each user, 64 users at a time, and waits for the engine each time. Socket.IO writes without waiting;
it is measured until the engine has everything. Its clients have been connected before, since it keeps nothing for
others. The Node packages are installed below bench/.env by `python bench/cluster.py --quick`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent / "src"), str(BENCH.parent / "tests")]

from harness.env import ENV, machine  # noqa: E402 - the paths above

from support.engines import Engine, Nats, Valkey  # noqa: E402 - as above
from wse import WseClient  # noqa: E402 - as above

AT_ONCE = 64
SMALL, LARGE, QUICK = (100, 100), (1000, 1000), (20, 10)
"""Devices, and messages for each. Socket.IO reads at most 10,000 entries of the one stream that all users share."""

Row = tuple[str, str, str, str, str, str]


class Child:
    """A program that answers lines with lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def read(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    async def ask(self, name: str, payload: Any = None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, payload]).encode() + b"\n")
        return await self.read()


@asynccontextmanager
async def child(*command: str) -> AsyncIterator[Child]:
    variables = os.environ | {"NODE_PATH": str(ENV / "node" / "node_modules"), "NODE_ENV": "production"}
    variables["PYTHONPATH"] = str(BENCH.parent / "src")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=variables)
    try:
        yield Child(process)
    finally:
        process.kill()
        await process.wait()


def engine_bytes(engine: Engine) -> int:
    """What the engine holds: Valkey's memory, or NATS's files."""
    if isinstance(engine, Nats):
        return sum(path.stat().st_size for path in engine.directory.rglob("*") if path.is_file())
    import redis

    return int(redis.Redis(port=engine.port).info("memory")["used_memory"])


async def catch_up(url: str, devices: int, messages: int) -> float:
    """Seconds in which so many devices connect, and get all their messages."""
    left = devices
    done = asyncio.Event()
    clients: list[WseClient] = []

    def make(number: int) -> WseClient:
        client = WseClient(url, identity=f"user {number}", inbox="phone", timeout=120)
        missing = messages

        @client.channel.on("note")
        def note(payload: str) -> None:
            nonlocal missing, left
            missing -= 1
            if not missing:
                left -= 1
                if not left:
                    done.set()

        return client

    clients += [make(number) for number in range(devices)]
    begin = time.perf_counter()
    await asyncio.gather(*(client.connect() for client in clients))
    await asyncio.wait_for(done.wait(), 600)
    seconds = time.perf_counter() - begin
    await asyncio.gather(*(client.close() for client in clients))
    return seconds


def row(name: str, size: tuple[int, int], kept: list[float], back: tuple[float, float], held: int) -> Row:
    count = size[0] * size[1]
    (wall, cpu), (seconds, server) = kept, back
    return (
        name,
        f"{size[0]:,} x {size[1]:,}",
        f"{count / wall:,.0f}",
        f"{cpu / count * 1e6:.0f} µs",
        f"{seconds:.2f} s, {server / count * 1e6:.0f} µs",
        f"{held / count:.0f}",
    )


async def measure_wse(kind: type[Engine], name: str, size: tuple[int, int]) -> Row:
    devices, messages = size
    with tempfile.TemporaryDirectory() as directory, kind(directory) as engine:
        async with child(sys.executable, str(BENCH / "servers" / "inbox_wse.py"), engine.url()) as server:
            url = f"ws://127.0.0.1:{await server.read()}"
            async with WseClient(url, identity="controller", timeout=600) as controller:
                await controller.call("keep", {"users": 1, "messages": 1, "at_once": 1})
                held = engine_bytes(engine)
                kept = await controller.call("keep", {"users": devices, "messages": messages, "at_once": AT_ONCE})
                held = engine_bytes(engine) - held
                cpu = await controller.call("cpu")
                seconds = await catch_up(url, devices, messages)
                cpu = await controller.call("cpu") - cpu
                return row(name, size, kept, (seconds, cpu), held)


async def measure_socketio(size: tuple[int, int]) -> Row:
    devices, messages = size
    with tempfile.TemporaryDirectory() as directory, Valkey(directory) as engine:
        redis = f"redis://127.0.0.1:{engine.port}"
        async with child("node", str(BENCH / "servers" / "inbox_socketio.cjs"), redis) as server:
            port = await server.read()
            program = str(BENCH / "load" / "inbox_socketio.cjs")
            async with child("node", program, str(port), str(devices)) as clients:
                assert await clients.ask("connect") == devices
                await server.ask("keep", {"users": devices, "messages": 1})  # without one they could not come back
                assert await clients.ask("until", devices) == devices
                await clients.ask("lose")
                await server.ask("gone")
                held = engine_bytes(engine)
                kept = await server.ask("keep", {"users": devices, "messages": messages})
                held = engine_bytes(engine) - held
                cpu = await server.ask("cpu")
                seconds, came, recovered = await clients.ask("back", devices * messages)
                cpu = await server.ask("cpu") - cpu
                name = "Socket.IO, streams adapter on Valkey"
                if came < devices * messages:
                    name += f" ({came:,} came, {recovered:,} sessions recovered)"
                return row(name, size, kept, (seconds, cpu), held)


async def main(argv: list[str]) -> None:
    small, large = (QUICK, QUICK) if "--quick" in argv else (SMALL, LARGE)
    rows = [
        await measure_wse(Valkey, "WSE on Valkey", small),
        await measure_wse(Nats, "WSE on NATS", small),
        await measure_socketio(small),
    ]
    if "--quick" not in argv:
        rows += [await measure_wse(Valkey, "WSE on Valkey", large), await measure_wse(Nats, "WSE on NATS", large)]
    print(machine())
    head = (
        "",
        "devices x messages",
        "kept per second",
        "CPU to keep one",
        "catching up, CPU for one",
        "bytes",
    )
    for cells in (head, ("---",) * len(head), *rows):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
