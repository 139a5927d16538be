"""The server of bench/inbox.py: `inbox_wse.py BROKER-URL`. It keeps messages by itself when it is told to."""

from __future__ import annotations

import asyncio
import sys
import time

from wse import Inbox, Limits, Resume, WseConnection, WseServer

PAYLOAD = "x" * 100


async def serve(url: str) -> None:
    server = WseServer(
        lambda auth: auth.accept(auth.identity),
        port=0,
        broker=url,
        conns_per_user=5,
        limits=Limits(unauthenticated=5000),
        resume=Resume(),
        inbox=Inbox(messages=1000),
        auth_timeout=60,
    )

    async def keep_for(users: asyncio.Queue[str], messages: int) -> None:
        while not users.empty():
            user = users.get_nowait()
            for _ in range(messages):
                await server.keep(user, "note", PAYLOAD)

    @server.register("keep")
    async def keep(conn: WseConnection, payload: dict[str, int]) -> list[float]:
        """Keep that many messages for each of that many users, some at a time; seconds, and those of CPU time."""
        users: asyncio.Queue[str] = asyncio.Queue()
        for number in range(payload["users"]):
            users.put_nowait(f"user {number}")
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(keep_for(users, payload["messages"]) for _ in range(payload["at_once"])))
        return [time.perf_counter() - wall, time.process_time() - cpu]

    server.register("cpu", lambda conn, payload: time.process_time())
    await server.start()
    print(server.port, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
