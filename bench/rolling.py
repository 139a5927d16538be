"""Counts connections that fail while the workers of `wse serve` are replaced: `python bench/rolling.py`.

Clients on this machine open connections as fast as they can, request the upgrade, and disconnect. Meanwhile three
workers are replaced three times.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

CLIENTS = 20
ROLLS = 3
WORKERS = 3

APP = "from wse import WseServer\nserver = WseServer(lambda auth: auth.accept(auth.conn_id))\n"
SUPERVISE = """
import asyncio, sys
from wse.cli.commands import set_up_logging
from wse.cli.supervisor import Supervisor

set_up_logging("info", "supervisor")
command = [sys.executable, "-m", "wse", "serve", "app:server", "--port", sys.argv[1]]
sys.exit(asyncio.run(Supervisor(command, int(sys.argv[2])).run()))
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: wse-default-json\r\n\r\n"
)


async def connect(port: int, outcomes: Counter[str]) -> None:
    """Open one connection after another."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as exc:
            outcomes[f"no connection: {type(exc).__name__}"] += 1
            continue
        try:
            writer.write(UPGRADE)
            status = (await reader.readline()).decode().strip()
            outcomes[status or "closed before an answer"] += 1
        except OSError as exc:
            outcomes[f"no answer: {type(exc).__name__}"] += 1
        finally:
            writer.transport.abort()


async def until(stream: asyncio.StreamReader, text: bytes) -> None:
    while text not in (line := await stream.readline()):
        assert line, "the supervisor has ended"


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(APP)
        supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SUPERVISE, str(port), str(WORKERS), cwd=folder, stderr=asyncio.subprocess.PIPE
        )
        assert supervisor.stderr is not None
        await until(supervisor.stderr, b"workers are ready")
        clients = [asyncio.ensure_future(connect(port, outcomes)) for _ in range(CLIENTS)]
        for _ in range(ROLLS):
            await asyncio.sleep(1)
            os.kill(supervisor.pid, signal.SIGHUP)
            await until(supervisor.stderr, b"have been replaced")
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        supervisor.terminate()
        await supervisor.communicate()
    for outcome, count in outcomes.most_common():
        print(f"{count:8,} {outcome}")


if __name__ == "__main__":
    asyncio.run(main())
