"""Measures WSE inside web servers: server CPU per call, compared with the built-in listener.

    python bench/asgi_overhead.py [--rounds 5] [--calls 40000] [--loops asyncio uvloop] [--only listener socket]

Every server runs in a process of its own, one after the other, in rounds whose order alternates; `wseload.c` (this
directory) loads it and reads its CPU clock. The figures are medians of the rounds. The rows:

    listener        the built-in listener
    bare            uvicorn and the least application that answers every call with the frame that WSE answers with, made
                    of the call's own text: no JSON, no handlers, no procedures
    messages        uvicorn and `server.asgi`, which gets messages from uvicorn's own WebSocket implementation
    socket          uvicorn with `--ws wse.uvicorn:WebSocketProtocol` and `server.asgi`, which gets the socket
    aiohttp         aiohttp and `server.aiohttp`, which gets the socket as well
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from aiohttp import web

from wse import WseServer

HERE = Path(__file__).parent
CONNECTIONS = 50
WINDOWS = {"1 call": 1, "32 calls": 32}
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

# The servers. The load generator says hi, and then calls `["echo",<payload>,"<stamp>"]`.


def wse(**options: Any) -> WseServer:
    numbers = count()
    server = WseServer(lambda auth: auth.accept(f"u{next(numbers)}"), **options)
    server.register("echo", lambda conn, payload: payload)
    return server


async def bare(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    await receive()
    await send({"type": "websocket.send", "text": '["~wse:welcome",null,null]'})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": '["~wse:response",' + event["text"][8:]})


async def listener() -> None:
    async with wse(port=0) as server:
        print(server.port, flush=True)
        await server.serve_forever()


async def on_uvicorn(app: Any, ws: str) -> None:
    config = uvicorn.Config(app, port=0, ws=ws, lifespan="off", access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


async def on_aiohttp() -> None:
    app = web.Application()
    app.router.add_get("/", wse().aiohttp)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


SERVERS = {
    "listener": listener,
    "bare": lambda: on_uvicorn(bare, "websockets-sansio"),
    "messages": lambda: on_uvicorn(wse().asgi, "websockets-sansio"),
    "socket": lambda: on_uvicorn(wse().asgi, "wse.uvicorn:WebSocketProtocol"),
    "aiohttp": on_aiohttp,
}

# The measurement.


def measure(load: Path, server: str, loop: str, window: int, calls: int) -> float:
    """Server CPU per call, in microseconds."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", server, loop], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None  # it is a pipe
        port = process.stdout.readline().strip()
        spec = ["127.0.0.1", port, "rpc", str(CONNECTIONS), str(calls), str(window), str(process.pid)]
        result = subprocess.run([load, *spec], stdout=subprocess.PIPE, check=True, text=True, timeout=120)
        cost: float = json.loads(result.stdout)["server_cpu_us_per_op"]
        return cost
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS)
    parser.add_argument("--only", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        server, loop = options.serve
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(SERVERS[server]())
        return
    compiler = shutil.which("cc")
    if compiler is None:
        print("asgi_overhead: skipped, the load generator needs a C compiler (cc)")
        return
    with tempfile.TemporaryDirectory() as directory:
        load = Path(directory, "wseload")
        subprocess.run([compiler, "-O2", "-w", "-o", load, HERE / "wseload.c"], check=True)
        print(f"server CPU per call, {CONNECTIONS} connections; in brackets, compared with the first row")
        for loop in options.loops:
            print(f"\n{loop:16}" + "".join(f"{f'{name} in flight':>24}" for name in WINDOWS))
            costs: dict[tuple[str, int], list[float]] = {}
            for number in range(options.rounds):
                for server in options.only if number % 2 == 0 else reversed(options.only):
                    for window in WINDOWS.values():
                        cost = measure(load, server, loop, window, options.calls)
                        costs.setdefault((server, window), []).append(cost)
            medians = {key: statistics.median(values) for key, values in costs.items()}
            for server in options.only:
                row = ""
                for window in WINDOWS.values():
                    cost = medians[server, window]
                    row += f"{cost:12.2f} us  ({cost / medians[options.only[0], window]:5.2f})"
                print(f"{server:16}{row}")


if __name__ == "__main__":
    main()
