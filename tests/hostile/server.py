"""A server for others to attack, in a process of its own: prints its port, and serves until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counts import counts, raise_file_limit
from wse import Compression, Heartbeat, Limits, Resume, WseServer

AUTH_TIMEOUT = 10.0
"""Seconds that strangers have; below the default of 20, for attacks that end when it is over."""


async def serve():
    raise_file_limit()
    logging.getLogger("wse").disabled = True  # what a peer does wrong is reported, and here that is expected
    server = WseServer(
        lambda auth: auth.accept(auth.identity),
        port=0,
        api_keys="a-key-that-nobody-guesses",
        metrics="/metrics",
        admin=lambda auth: (
            auth.accept("grace") if auth.identity["key"] == "a-key-that-nobody-guesses" else auth.refuse()
        ),
        auth_timeout=AUTH_TIMEOUT,
        heartbeat=Heartbeat(interval=1, timeout=30),
        compression=Compression(),
        limits=Limits(handler_linger=1, streams=30, rooms=10),
        resume=Resume(window=2, detached=300, retained=8 * 1024 * 1024),
    )
    server.register("echo", lambda conn, payload: payload)
    server.register("counts", lambda conn, payload: counts(server))

    @server.register("slow")
    async def slow(conn, payload):
        await asyncio.sleep(0.05)
        return payload

    @server.register("ask")
    async def ask(conn, payload):
        return await conn.call("question")

    @server.register("endless")
    async def endless(conn, payload):
        while True:
            yield payload

    @server.register("swallow", upload=True)
    async def swallow(conn, payload, items):
        await asyncio.Event().wait()

    @server.register("stubborn")
    async def stubborn(conn, payload):
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(0.05)
        yield payload

    @server.register("broken")
    async def broken(conn, payload):
        yield payload
        yield object()

    for number in range(20):
        server.room(f"r{number}", presence=True)

    @server.room_guard
    async def guard(conn, name):
        return name in {f"r{number}" for number in range(20)}

    @server.channel.on("say")
    def say(conn, message):
        pass

    async with server:
        print(f"port {server.port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
