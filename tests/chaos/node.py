"""A node of a cluster under chaos: it logs what happens on it, and does what its clients and the run ask.

python node.py JSON-OF-SETTINGS

It is run by its path, so that the package may be of another version; see `--old`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

from wse import ClusterSettings, WseError, WseServer
from wse.core.heartbeat import Heartbeat

settings = json.loads(sys.argv[1])
name = settings["name"]
log_file = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
now = time.monotonic
logging.basicConfig(level="WARNING", format=f"%(asctime)s {name} %(levelname)s %(name)s %(message)s")


def log(event, **what):
    """Write an event at once, so that it is there if the node is killed."""
    os.write(log_file, (json.dumps({"t": round(now(), 4), "node": name, "event": event, **what}) + "\n").encode())


server = WseServer(
    port=settings["port"],
    broker=settings["broker"],
    conns_per_user=3,
    auth_timeout=20,
    cluster=ClusterSettings(),
    heartbeat=Heartbeat(interval=2, timeout=2),
    watchdog=None,
)


@server.identify
def identify(auth):
    cid, _ = auth.identity
    auth.accept(cid, {"conn": auth.conn_id, "node": name})


server.when.joined(lambda identity, meta: log("joined", cid=identity.cid))
server.when.left(lambda identity, code, reason: log("left", cid=identity.cid, code=code))
server.when.connected(lambda conn: log("connected", cid=conn.cid, conn=conn.conn_id))
server.when.disconnected(lambda conn, code, reason: log("disconnected", cid=conn.cid, conn=conn.conn_id, code=code))


@server.when.error
def error(err, conn):
    cause = repr(err.__cause__)[:300]
    log("error", code=str(err.code), cause=cause, lost=err.details.get("lost", 0), message=err.message[:200])


# What clients ask.


@server.channel.on("to")
def to(conn, message):
    bus = server._hub.network.bus
    if not bus.broker.connected or bus._backlog or bus._is_held:
        log("kept", sender=message["s"], n=message["n"], to=message["to"])
    server.send(message["to"], "m", {"s": message["s"], "n": message["n"]})


@server.channel.on("all")
def to_all(conn, message):
    server.broadcast("b", message)


@server.channel.on("room")
def to_room(conn, message):
    server.room(message["room"]).send("r", message)


@server.channel.on("drop")
def drop(conn, cid):
    server.drop_client(cid, "chaos-drop")


@server.register("enter")
def enter(conn, room):
    server.room(room).add(conn)


@server.register("exit")
def exit_(conn, room):
    server.room(room).discard(conn)


@server.register("ask")
async def ask(conn, question):
    start = now()
    try:
        answer = await server.call(question["whom"], "where", mode=question["mode"], timeout=4)
    except WseError as exc:
        return {"error": str(exc.code), "took": now() - start}
    if question["mode"] == "all":
        answer = [str(one.code) if isinstance(one, WseError) else one for one in answer]
    return {"answer": answer, "took": now() - start}


# What the run asks.


def state():
    """What the node holds."""
    gc.collect()
    hub, network = server._hub, server._hub.network
    presence, rpc = network.presence, network.rpc
    return {
        "id": server.cluster.node,
        "connections": {conn.conn_id: conn.cid for conn in hub.connections.values()},
        "rooms": {room: sorted(members) for room, members in hub.rooms._members.items()},
        "must be zero": {
            "unsettled": len(presence._registrations.unsettled),
            "joining": len(presence._joining),
            "backlog": len(network.bus._backlog),
            "asked": rpc.waiting,
            "called": len(rpc._called),
        },
        "must be zero in the end": {
            "registrations": len(presence._registrations),
            "sessions": len(hub.sockets.open),
            "topics of users and rooms": len(network.bus._interest),
        },
        "topics": len(network.broker._topics),
        "tasks": len(asyncio.all_tasks()),
        "memory": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if sys.platform == "linux" else 0,
        "files": len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0,
    }


def spin(seconds):
    """Keep the interpreter busy."""
    end = now() + seconds

    def burn():
        while now() < end:
            sum(i * i for i in range(1000))

    for _ in range(2):
        threading.Thread(target=burn, daemon=True).start()


async def call_all(cid):
    try:
        return [str(one) for one in await server.call(cid, "where", mode="all", timeout=5)]
    except WseError as exc:
        return str(exc.code)


async def do(command, args):
    match command:
        case "state":
            return state()
        case "probe":  # one message to each user, to all, and to each room
            for cid in args["users"]:
                server.send(cid, "p", f"user-{name}")
            server.broadcast("p", f"all-{name}")
            for room in args["rooms"]:
                server.room(room).send("p", f"{room}-{name}")
        case "members":
            return sorted(await server.room(args["room"]).members())
        case "online":
            return await server.online()
        case "call":
            return await call_all(args["cid"])
        case "block":
            time.sleep(args["seconds"])
        case "spin":
            spin(args["seconds"])
    return None


async def obey():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        number, command, args = json.loads(line)
        try:
            answer = await do(command, args)
        except Exception as exc:
            answer = {"exception": repr(exc)}
        print(json.dumps([number, answer]), flush=True)
    await server.close()  # the run has ended


# Steps of the register, for whoever looks for the cause of a violation.


def trace(broker):
    def follow(step, describe):
        real = getattr(broker, step)

        async def followed(*args, **options):
            start = round(now(), 4)
            log(f"{step}…", of=describe(*args))
            try:
                result = await real(*args, **options)
            except BaseException as exc:
                log(step, of=describe(*args), options=options, error=repr(exc.__cause__ or exc)[:100], start=start)
                raise
            log(step, of=describe(*args), options=options, result=str(result)[:400], start=start)
            return result

        setattr(broker, step, followed)

    follow("join", lambda device, limit: [device.user, device.conn_id, device.place])
    follow("leave", lambda device: [device.user, device.conn_id])
    follow("settle", str)
    follow("claim", lambda transitions: [[one.user, one.generation] for one in transitions])
    real = broker.fired

    def fired(transitions):
        log("fired", of=[[one.user, one.generation] for one in transitions])
        real(transitions)

    broker.fired = fired


async def main():
    if hasattr(server.cluster.broker, "claim"):
        trace(server.cluster.broker)
    try:
        await server.start()
    except WseError:  # the engine is away; the run tries again
        sys.exit(1)
    log("start", id=server.cluster.node)
    print(json.dumps([0, server.cluster.node]), flush=True)
    obeying = asyncio.ensure_future(obey())
    await server.serve_forever()
    obeying.cancel()
    log("stop")


class SkewedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock differs from that of other nodes."""

    def time(self):
        return super().time() + settings["skew"]


wall_clock = time.time
time.time = lambda: wall_clock() + settings["skew"]

if __name__ == "__main__":
    asyncio.Runner(loop_factory=SkewedLoop).run(main())
