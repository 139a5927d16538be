"""A node of the soak of kept messages, which is killed and started again: `kept_node.py PORT BROKER-URL`."""

from __future__ import annotations

import asyncio
import logging
import sys

from wse import ClusterSettings, Inbox, WseServer

SETTINGS = ClusterSettings(lease_ttl=3.0, renew_interval=0.5, canary_interval=0.5, canary_misses=6, wait_for_broker=60)
INBOX = Inbox(messages=1_000_000, bytes=1 << 30, ttl=3600)


async def serve(port, url):
    logging.getLogger("wse").disabled = True  # that the engine is away is no news here
    server = WseServer(
        lambda auth: auth.accept(auth.identity),
        port=port,
        broker=url,
        cluster=SETTINGS,
        inbox=INBOX,
        conns_per_user=10,
        auth_timeout=60,
    )

    @server.register("keep")
    async def keep(conn, message):
        return await server.keep(message["to"], "note", message["text"], key=message["text"])

    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
