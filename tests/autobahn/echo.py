"""One end of a run of the Autobahn TestSuite: a server or a client that sends every message back.

echo.py server wse 9001 deflate
echo.py client websockets ws://127.0.0.1:9002 plain
"""

import asyncio
import contextlib
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import WebSocketException

from support.echo import EchoServer, connect_echo
from wse import Compression, Limits

LIMITS = Limits(message_size=32 * 1024 * 1024)  # section 9 goes up to 16 MiB
COMPRESSIONS = {
    "plain": None,
    "deflate": Compression(threshold=126),
    "takeover": Compression(threshold=126, context_takeover=True),
}


async def serve_wse(port, compression):
    server = await EchoServer(LIMITS, COMPRESSIONS[compression]).listen(port)
    await server.serve_forever()


async def visit_wse(url, compression):
    """One connection, until it ends; the last message."""
    echo = await connect_echo(url, LIMITS, COMPRESSIONS[compression])
    await echo.end
    return echo.last


def options(compression):
    deflate = None if compression == "plain" else "deflate"
    return {"compression": deflate, "max_size": LIMITS.message_size, "ping_interval": None}


async def echo_with_websockets(socket):
    last = None
    with contextlib.suppress(WebSocketException):  # Autobahn breaks the rules, and websockets says so
        async for last in socket:
            await socket.send(last)
    return last


async def serve_websockets(port, compression):
    async with serve(echo_with_websockets, "127.0.0.1", port, **options(compression)) as server:
        await server.serve_forever()


async def visit_websockets(url, compression):
    async with connect(url, proxy=None, **options(compression)) as socket:
        return await echo_with_websockets(socket)


SERVERS = {"wse": serve_wse, "websockets": serve_websockets}
CLIENTS = {"wse": visit_wse, "websockets": visit_websockets}


async def walk(library, url, compression):
    """Go through all cases of Autobahn's server."""
    visit = CLIENTS[library]
    agent = f"agent={library}"
    for number in range(1, int(await visit(f"{url}/getCaseCount", "plain")) + 1):
        # What goes wrong is in the report.
        with contextlib.suppress(Exception):
            await visit(f"{url}/runCase?case={number}&{agent}", compression)
    await visit(f"{url}/updateReports?{agent}", "plain")


def main():
    role, library, where, compression = sys.argv[1:]
    if role == "server":
        asyncio.run(SERVERS[library](int(where), compression))
    else:
        asyncio.run(walk(library, where, compression))


if __name__ == "__main__":
    main()
