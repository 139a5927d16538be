"""A node of a cluster in a process of its own, which prints what happens and does what clients ask.

python -m support.cluster_node BROKER-URL JSON-OF-SETTINGS
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from support.beats import when_renewed
from wse import ClusterSettings, WseError, WseServer

options = json.loads(sys.argv[2])
server = WseServer(
    port=0, broker=sys.argv[1], cluster=ClusterSettings(**options.pop("cluster")), auth_timeout=30, **options
)


closing = []  # the task that closes the server, held until it ends


def tell(*what):
    print(json.dumps(what), flush=True)


@server.identify
def identify(auth):
    auth.accept(auth.identity)


server.when.joined(lambda identity, meta: tell("joined", identity.cid))
server.when.left(lambda identity, code, reason: tell("left", identity.cid, code))
server.when.disconnected(lambda conn, code, reason: tell("disconnected", conn.cid, conn.conn_id, reason))
server.when.error(lambda err, conn: tell("error", err.code, str(err.__cause__ or "")))
when_renewed(server, lambda: tell("beat"))


def excluded(conn, message):
    """The receiver to exclude: none, a user, or "me", the connection that asks."""
    who = message.get("exclude")
    return conn if who == "me" else who


@server.channel.on("send")
def send(conn, message):
    server.send(message["to"], "said", message["text"], exclude=excluded(conn, message))


@server.channel.on("broadcast")
def broadcast(conn, message):
    server.broadcast("said", message["text"], exclude=excluded(conn, message))


@server.channel.on("to room")
def to_room(conn, message):
    server.room(message["room"]).send("said", message["text"], exclude=excluded(conn, message))


@server.channel.on("drop")
def drop(conn, cid):
    server.drop_client(cid, "dropped")


def member(conn, who):
    return {"device": conn, "user": conn.client}[who]


@server.register("enter")
async def enter(conn, what):
    server.room(what["room"]).add(member(conn, what["who"]))
    await server.cluster.broker.flush()  # messages of other nodes arrive from now on


@server.register("leave")
def leave(conn, what):
    server.room(what["room"]).discard(member(conn, what["who"]))


@server.register("watch")
def watch(conn, name):
    when = server.room(name).when
    when.joined(lambda conn: tell("entered", name, conn.cid, conn.conn_id))
    when.left(lambda conn: tell("exited", name, conn.cid, conn.conn_id))


@server.register("flush")
async def flush(conn, payload):
    await server.cluster.broker.flush()


@server.register("members")
async def members(conn, name):
    return sorted(await server.room(name).members())


@server.register("ask")
async def ask(conn, question):
    mode, name = question["mode"], question.get("name", "where")
    answer = await server.call(question["whom"], name, mode=mode, timeout=question.get("timeout", 10))
    if mode == "all":
        return [str(one.code) if isinstance(one, WseError) else one for one in answer]
    return answer


@server.register("read")
async def read(conn, question):
    async with server.stream(question["whom"], question["name"]) as items:
        async for item in items:
            yield item


@server.register("online")
async def online(conn, payload):
    return await server.online()


@server.register("users")
async def users(conn, payload):
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
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: closing.append(loop.create_task(server.close(grace=1))))
        tell("url", server.url)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
