"""Measures WSE inside a web application: server CPU per call on uvicorn, compared with a bare ASGI echo.

    python bench/asgi_overhead.py [--rounds 5] [--calls 40000] [--ws websockets-sansio]

Both applications run in a uvicorn process of their own, one after the other, in alternating rounds; `wseload.c` (this
directory) loads them and reads their CPU clocks. The figures are medians of the rounds. The bare application answers
every call with the frame that WSE answers with, made of the call's own text: no JSON, no handlers, no procedures.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from wse import WseServer

HERE = Path(__file__).parent
CONNECTIONS = 50
WINDOWS = {"one call at a time": 1, "32 calls in flight": 32}

# The applications. The load generator says hi, and then calls `["echo",<payload>,"<stamp>"]`.

_numbers = count()
server = WseServer(lambda auth: auth.accept(f"u{next(_numbers)}"))
server.register("echo", lambda conn, payload: payload)
wse = server.asgi


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI application can do to answer the same calls."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    await receive()
    await send({"type": "websocket.send", "text": '["~wse:welcome",null,null]'})
    while True:
        event = await receive()
        if event["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": '["~wse:response",' + event["text"][8:]})


# The measurement.


def measure(load: Path, app: str, ws: str, window: int, calls: int) -> float:
    """Server CPU per call, in microseconds."""
    uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--port", "0", "--ws", ws]
    options = ["--lifespan", "off", "--loop", "asyncio", "--no-access-log", "--no-use-colors"]
    command = [*uvicorn, *options, f"asgi_overhead:{app}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None  # it is a pipe
        port = next(found[1] for line in process.stderr if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        spec = ["127.0.0.1", port, "rpc", str(CONNECTIONS), str(calls), str(window), str(process.pid)]
        result = subprocess.run([load, *spec], stdout=subprocess.PIPE, check=True, text=True, timeout=120)
        cost: float = json.loads(result.stdout)["server_cpu_us_per_op"]
        return cost
    finally:
        process.terminate()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40_000)
    parser.add_argument("--ws", default="websockets-sansio", choices=["websockets-sansio", "wsproto"])
    options = parser.parse_args()
    compiler = shutil.which("cc")
    if compiler is None:
        print("asgi_overhead: skipped, the load generator needs a C compiler (cc)")
        return
    with tempfile.TemporaryDirectory() as directory:
        load = Path(directory, "wseload")
        subprocess.run([compiler, "-O2", "-w", "-o", load, HERE / "wseload.c"], check=True)
        print(f"{'server CPU per call, uvicorn ' + options.ws:45} {'bare':>9} {'WSE':>9} {'ratio':>6}")
        for name, window in WINDOWS.items():
            costs: dict[str, list[float]] = {"bare": [], "wse": []}
            for number in range(options.rounds):
                for app in sorted(costs, reverse=number % 2 == 1):
                    costs[app].append(measure(load, app, options.ws, window, options.calls))
            one, other = statistics.median(costs["bare"]), statistics.median(costs["wse"])
            print(f"{f'{CONNECTIONS} connections, {name}':45} {one:6.1f} us {other:6.1f} us {other / one:6.2f}")


if __name__ == "__main__":
    main()
