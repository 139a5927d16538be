"""A node of a cluster in a process of its own, which tells what happens and does what clients ask.

python cluster_node.py BROKER-URL JSON-OF-SETTINGS
"""

from __future__ import annotations

import json
import sys

from wse import ClusterSettings, WseServer

options = json.loads(sys.argv[2])
server = WseServer(
    port=0, broker=sys.argv[1], cluster=ClusterSettings(**options.pop("cluster")), auth_timeout=30, **options
)


def tell(*what):
    print(json.dumps(what), flush=True)


@server.identify
def identify(auth):
    auth.accept(auth.identity)


server.when.joined(lambda identity, meta: tell("joined", identity.cid))
server.when.left(lambda identity, code, reason: tell("left", identity.cid, code))
server.when.disconnected(lambda conn, code, reason: tell("disconnected", conn.cid, conn.conn_id, reason))
server.when.error(lambda err, conn: tell("error", err.code, str(err.__cause__ or "")))


@server.channel.on("send")
def send(conn, message):
    server.send(message["to"], "said", message["text"])


@server.channel.on("broadcast")
def broadcast(conn, text):
    server.broadcast("said", text, exclude=conn)


@server.channel.on("drop")
def drop(conn, cid):
    server.drop_client(cid, "dropped")


@server.register("enter")
def enter(conn, name):
    server.room(name).add(conn.client)


@server.channel.on("to room")
def to_room(conn, message):
    server.room(message["room"]).send("said", message["text"], exclude=conn)


@server.register("members")
async def members(conn, name):
    return sorted(await server.room(name).members())


@server.register("ask")
async def ask(conn, question):
    return await server.call(question["whom"], "where", mode=question["mode"], timeout=question.get("timeout", 10))


@server.register("online")
async def online(conn, payload):
    return sorted([cid async for cid in server.users()])


@server.register("devices")
async def devices(conn, cid):
    return [device.conn_id for device in await server.devices(cid)]


@server.register("here")
def here(conn, cid):
    return list(server.clients[cid].conns) if cid in server.clients else []


@server.register("healthy")
def healthy(conn, payload):
    return server.cluster.healthy


async def main():
    async with server:
        tell("url", server.url)
        await server.serve_forever()


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
