"""Measures the memory of an idle connection, by the place that allocated it.

    python bench/memory.py [CONNECTIONS]

A server in this process, with tracemalloc on, accepts connections from load/load.c. The figures are the memory of
Python's own allocators for each connection, grouped by file. They do not contain the kernel's buffers and the gaps
between blocks; bench/run.py measures resident memory. Memory that compiled code allocates counts for the line of Python
that called it: picows appears as `aiofastnet`, `picows/api.py` and `asyncio/events.py`.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import count
from pathlib import Path

from harness.env import ROOT, compile_c
from harness.measure import raise_file_limit

from wse import WseServer


def place_of(filename: str) -> str:
    """A short name for a file."""
    path = Path(filename)
    for root in (ROOT / "src", Path(sys.prefix), Path(asyncio.__file__).parent.parent):
        if path.is_relative_to(root):
            path = path.relative_to(root)
    return "/".join(part for part in path.parts if part not in ("lib", "site-packages"))


async def measure(connections: int) -> Counter[str]:
    """Bytes by place, for all connections."""
    numbers = count(1)
    server = WseServer(lambda auth: auth.accept(f"user{next(numbers)}"), port=0)
    async with server:
        load = compile_c("load", ROOT / "bench" / ".env" / "c")

        async def idle(connections: int, settle: float) -> asyncio.subprocess.Process:
            arguments = ["127.0.0.1", server.port, "wse", "idle", connections, connections, settle, 0, 0]
            return await asyncio.create_subprocess_exec(load, *map(str, arguments), stdout=subprocess.DEVNULL)

        async def until(connections: int) -> None:
            async with asyncio.timeout(60):
                while len(server.clients) != connections:  # noqa: ASYNC110 - no event to await, and no hurry
                    await asyncio.sleep(0.05)

        warm = await idle(50, 0)
        await warm.wait()
        await until(0)
        gc.collect()
        tracemalloc.start(1)
        before = tracemalloc.take_snapshot()
        clients = await idle(connections, 60)
        try:
            await until(connections)
            gc.collect()
            after = tracemalloc.take_snapshot()
        finally:
            clients.kill()
            await clients.wait()
        tracemalloc.stop()
        await until(0)
    sizes: Counter[str] = Counter()
    for line in after.compare_to(before, "lineno"):
        sizes[f"{place_of(line.traceback[0].filename)}:{line.traceback[0].lineno}"] += line.size_diff
    return sizes


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    connections = min(wanted, raise_file_limit() // 2)
    sizes = asyncio.run(measure(connections))
    files: Counter[str] = Counter()
    for place, size in sizes.items():
        files[place.rpartition(":")[0]] += size
    print(f"{connections} idle connections, {sum(sizes.values()) / connections:,.0f} bytes each\n")
    for title, counter, many in (("by file", files, 15), ("by line", sizes, 30)):
        print(title)
        for place, size in counter.most_common(many):
            if size / connections >= 16:
                print(f"  {size / connections:8,.0f}  {place}")


if __name__ == "__main__":
    main()
