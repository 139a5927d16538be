"""Clients of a cluster under chaos, which reconnect through any node, and log what they send and receive.

python clients.py JSON-OF-SETTINGS

    stable  two devices of a user, which stay
    multi   five devices of a user, two more than the user may have, which come and go
    hop     two devices of a user, which are always on their way to another node
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from wse import ClientStatus, WseClient, WseError
from wse.backoff import Backoff
from wse.core.heartbeat import Heartbeat
from wse.transports import picows

settings = json.loads(sys.argv[1])
chance = random.Random(settings["seed"])
now = time.monotonic
log_file = Path(settings["log"]).open("w")  # noqa: SIM115 - until the program ends
ROOMS = settings["rooms"]
DEVICES = {"stable": 2, "multi": 5, "hop": 2}
devices = []
quiet = asyncio.Event()


def log(event, *what):
    log_file.write(json.dumps([round(now(), 4), event, *what]) + "\n")


class Ports:
    """Ports of nodes that are ready, which the run writes to a file."""

    def __init__(self):
        self._read_at = 0.0
        self._ports = settings["ports"]

    def pick(self):
        if now() - self._read_at > 0.2:
            self._read_at = now()
            self._ports = json.loads(Path(settings["ready"]).read_text()) or settings["ports"]
        return chance.choice(self._ports)


ports = Ports()


async def connect_somewhere(url, *args):
    await picows.connect(f"ws://127.0.0.1:{ports.pick()}", *args, ssl=None, compression=None)


class Device:
    def __init__(self, kind, cid, label):
        self.kind, self.cid, self.label = kind, cid, label
        self.conn = self.node = None
        self.rooms, self.unsure = set(), set()
        self.sent = {}  # by receiver, the number of messages
        self.client = client = WseClient(
            "ws://127.0.0.1:1/",
            identity=[cid, label],
            reconnect=True,
            timeout=6,
            backoff=Backoff(base=0.3, cap=1.5),
            heartbeat=Heartbeat(interval=2, timeout=2),
            connector=connect_somewhere,
        )
        client.when.ready(self.ready)
        client.when.closed(self.closed)
        client.when.error(lambda err: None)
        client.channel.on("m", lambda m: log("m", self.conn, m["s"], m["n"], ""))
        client.channel.on("b", lambda m: log("b", self.conn, m["s"], m["n"], ""))
        client.channel.on("r", lambda m: log("r", self.conn, m["s"], m["n"], m["room"]))
        client.channel.on("p", lambda probe: log("p", self.conn, probe))
        client.register("where", lambda _: label)

    def ready(self, welcome):
        self.conn, self.node = welcome["conn"], welcome["node"]
        self.rooms, self.unsure, self.sent = set(), set(), {}
        log("up", self.label, self.cid, self.conn, self.node, self.kind)

    def closed(self, code, reason):
        if self.conn is not None:
            log("down", self.label, self.conn, code, str(reason))
        self.conn = None

    @property
    def is_connected(self):
        return self.conn is not None and self.client.status == ClientStatus.READY

    async def connect(self):
        if self.client.status in (ClientStatus.IDLE, ClientStatus.OFFLINE):
            with suppress(WseError):
                await self.client.connect()

    async def close(self):
        try:
            async with asyncio.timeout(8):
                await self.client.close()
        except Exception as exc:
            log("exception", repr(exc))
        self.closed(1000, "closed")

    async def live(self):
        await asyncio.sleep(chance.random() * 3)
        while not quiet.is_set():
            await self.connect()
            if self.kind == "stable":
                await asyncio.sleep(chance.uniform(0.3, 1.0))
                continue
            await asyncio.sleep(chance.uniform(0.05, 0.8) if self.kind == "hop" else chance.expovariate(1 / 4))
            if not quiet.is_set():
                await self.close()
                await asyncio.sleep(chance.uniform(0, 0.1) if self.kind == "hop" else chance.expovariate(1 / 2))

    def number(self, receiver):
        self.sent[receiver] = self.sent.get(receiver, 0) + 1
        return self.sent[receiver]


def connected():
    return [device for device in devices if device.is_connected]


def users(kind=None):
    return sorted({device.cid for device in devices if kind in (None, device.kind)})


async def send():
    """Random messages: most of them to users, some to all and to rooms; now and then a user is dropped."""
    due = now()
    stable, everybody = users("stable"), users()
    droppable = sorted(set(everybody) - set(stable))
    while not quiet.is_set():
        due = max(due + 1 / settings["rate"], now() - 1)
        await asyncio.sleep(max(0, due - now()))
        if not (there := connected()):
            continue
        device, kind = chance.choice(there), chance.random()
        with suppress(WseError):
            if kind < 0.8:
                to = chance.choice(stable if chance.random() < 0.7 else everybody)
                n = device.number(to)
                log("sent", device.conn, to, n, device.node)
                device.client.send("to", {"to": to, "s": device.conn, "n": n})
            elif kind < 0.84:
                n = device.number("*")
                log("sent to all", device.conn, n)
                device.client.send("all", {"s": device.conn, "n": n})
            elif kind < 0.94:
                room = chance.choice(ROOMS)
                n = device.number("#" + room)
                log("sent to room", device.conn, room, n)
                device.client.send("room", {"room": room, "s": device.conn, "n": n})
            elif kind > 0.998:
                device.client.send("drop", chance.choice(droppable))


async def change_room(device, room, change):
    conn = device.conn
    if room in device.unsure:
        return
    device.unsure.add(room)
    with suppress(WseError):
        await device.client.call(change, room, timeout=5)
        if device.conn == conn:
            device.unsure.discard(room)
            (device.rooms.add if change == "enter" else device.rooms.discard)(room)
            log(change, conn, room)


async def ask(device, whom, mode):
    start, conn = now(), device.conn
    try:
        answer = await device.client.call("ask", {"whom": whom, "mode": mode}, timeout=30)
    except WseError as exc:
        answer = {"failed": str(exc.code)}
    log("asked", conn, whom, mode, start, answer)


async def repeat(interval, act, *choices):
    running = set()
    while not quiet.is_set():
        await asyncio.sleep(interval)
        if there := connected():
            acting = asyncio.ensure_future(act(chance.choice(there), *[chance.choice(of) for of in choices]))
            running.add(acting)
            acting.add_done_callback(running.discard)


async def do(command):
    match command:
        case "quiet":  # nobody sends, comes or goes
            quiet.set()
            log("quiet")
        case "connections":
            return [
                {
                    "label": device.label,
                    "cid": device.cid,
                    "conn": device.conn,
                    "node": device.node,
                    "rooms": sorted(device.rooms - device.unsure),
                    "unsure": sorted(device.unsure),
                }
                for device in connected()
            ]
        case "close":
            await asyncio.gather(*[device.close() for device in devices])
    return None


async def main():
    for kind, count in settings["users"].items():
        for i in range(count):
            devices.extend(Device(kind, f"{kind}{i}", f"{kind}{i}.{j}") for j in range(DEVICES[kind]))
    acts = [device.live() for device in devices]
    acts += [send(), repeat(0.05, change_room, ROOMS, ["enter", "exit"])]
    acts += [repeat(0.2, ask, users(), ["first", "all", "any"])]
    running = [asyncio.ensure_future(act) for act in acts]
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        number, command, _ = json.loads(line)
        answer = await do(command)
        log_file.flush()
        print(json.dumps([number, answer]), flush=True)
    for act in running:
        if act.done() and act.exception() is not None:
            log("exception", repr(act.exception()))
    log_file.flush()
    os._exit(0)  # calls may still wait


if __name__ == "__main__":
    print(json.dumps([0, None]), flush=True)
    asyncio.run(main())
