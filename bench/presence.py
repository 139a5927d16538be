"""Measures what a delivered change of presence costs beside a plain room message: `python bench/presence.py`.

    python bench/presence.py [--members 1000] [--movers 1000] [--seconds 5] [--rounds 3] [--rate 10] [--messages 20]

Members of one room are spread over two nodes of a cluster. The nodes run in this process, with the broker in memory, on
real sockets; the members are a process of their own, which sends moves and discards what it gets. In turn, each mover
moves `--rate` times a second, which is a state of its cursor, and members send `--messages` room messages a second of
the same content. The figure is the CPU time of this process, user and system, for each delivery: of one state, or of
one message, to one member. Deliveries are counted where the server writes them. It fails above the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from harness.measure import raise_file_limit

from wse import Heartbeat, Limits, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.core.hub import fanout
from wse.core.hub.presence import watchers
from wse.transports.picows.frames import masked_frame

BOUND = 1.3
ROOM = "doc:7"
SLICES = 10
"""Parts of the time between two moves of a member, over which the members are spread."""

TEXT = 0x81
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: wse-default-json\r\n\r\n"
)


# The members, a process of their own.


def message(type: str, payload: Any, stamp: int | None = None) -> bytes:
    return masked_frame(json.dumps([type, payload, stamp]).encode(), TEXT)


class Member(asyncio.Protocol):
    """A client that enters the room, and discards what it gets."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_in = asyncio.get_running_loop().create_future()
        self._heard = b""
        self._has_asked = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        hello = {"identity": f"user{self.number}", "meta": {}, "ext": {"rooms": {}}}
        transport.write(UPGRADE + message("~wse:hi", hello))

    def data_received(self, data: bytes) -> None:
        if not self.is_in.done():
            self._heard = self._heard[-100:] + data
            if b"~wse:welcome" in self._heard and not self._has_asked:
                self._has_asked = True
                self.transport.write(message("~wse:join", ROOM, 1))
            if b'["~wse:response",true,1]' in self._heard:
                self.is_in.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_in.done():
            self.is_in.set_exception(ConnectionError(f"a member was not let in: {exc}"))


def move(turn: int, number: int) -> dict[str, Any]:
    return {"cursor": [(turn * 7 + number) % 1920, (turn * 3 + number) % 1080]}


async def send_moves(members: list[Member], rate: float, turns: range) -> None:
    """Each member moves, in its part of the time."""
    loop = asyncio.get_running_loop()
    start, pause = loop.time(), 1 / rate
    for turn in turns:
        for part in range(SLICES):
            for member in members[part::SLICES]:
                member.transport.write(message("~wse:set", [ROOM, move(turn, member.number), None]))
            due = start + (turn - turns.start + (part + 1) / SLICES) * pause
            await asyncio.sleep(max(0.0, due - loop.time()))


async def send_messages(members: list[Member], rate: float, turns: range) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    for turn in turns:
        member = members[turn % len(members)]
        member.transport.write(message("move", move(turn, member.number)))
        await asyncio.sleep(max(0.0, start + (turn - turns.start + 1) / rate - loop.time()))


async def be_members(ports: list[int], count: int, movers: int) -> None:
    """Say `in` when all are in, and do what the lines of standard input ask for."""
    loop = asyncio.get_running_loop()
    members: list[Member] = []
    for number in range(count):
        _, member = await loop.create_connection(
            lambda number=number: Member(number), "127.0.0.1", ports[number % len(ports)]
        )
        members.append(member)
        if number % 50 == 49:
            await member.is_in
    await asyncio.gather(*(member.is_in for member in members))
    print("in", flush=True)
    turn = 0
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, rate, times = line.split()
        turns = range(turn, turn + int(times))
        await (send_moves if what == "moves" else send_messages)(members[:movers], float(rate), turns)
        turn = turns.stop
        print("sent", flush=True)


# The nodes, and what they deliver.


class Deliveries:
    """Counts what is written: states and messages, by the member that each is for."""

    def __init__(self) -> None:
        self.states = 0
        self.frames = 0
        self.messages = 0
        self._sizes: dict[int, int] = {}
        encode, deliver, write = watchers.Watchers._encode, fanout.deliver, watchers.Watchers._write

        def counted_encode(self_: Any, protocol: Any, keys: Any, **options: Any) -> Any:
            packed = encode(self_, protocol, keys, **options)
            if len(self._sizes) > 1000:
                self._sizes.clear()
            self._sizes[id(packed)] = len(keys)
            return packed

        def counted_deliver(endpoint: Any, conns: Collection[Any], type: Any, forms: Mapping[Any, Any]) -> None:
            (packed,) = forms.values()
            self.states += len(conns) * self._sizes[id(packed)]
            self.frames += len(conns)
            deliver(endpoint, conns, type, forms)

        def counted_write(self_: Any, session: Any, packed: Any) -> None:
            self.states += self._sizes.get(id(packed), 0)
            self.frames += 1
            write(self_, session, packed)

        watchers.Watchers._encode = counted_encode  # type: ignore[method-assign]  # to count
        watchers.Watchers._write = counted_write  # type: ignore[method-assign]  # to count
        watchers.deliver = counted_deliver


def make_node(cluster: MemoryCluster) -> WseServer:
    server = WseServer(
        lambda auth: auth.accept(auth.identity),
        port=0,
        broker=MemoryBroker(cluster),
        limits=Limits(send_buffer=1 << 24),
        heartbeat=Heartbeat(interval=0),
    )
    room = server.room(ROOM, presence=True)
    server.room_guard(lambda conn, name: None)
    server.channel.on("move", lambda conn, payload: room.send("moved", [conn.cid, conn.conn_id, payload]))
    return server


class Measurement:
    """Two nodes with their members."""

    def __init__(self, args: argparse.Namespace, deliveries: Deliveries) -> None:
        self._args = args
        self._deliveries = deliveries

    async def run(self) -> float:
        """Measure in turn; returns how many times as much a change of presence costs."""
        cluster = MemoryCluster()
        nodes = [make_node(cluster), make_node(cluster)]
        async with nodes[0], nodes[1]:
            options = ["--members", str(self._args.members), "--movers", str(self._args.movers)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--as-members", *(str(node.port) for node in nodes), *options),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                await self._until(process, b"in\n")
                return await self._measure(nodes, process)
            finally:
                process.kill()
                await process.wait()

    async def _measure(self, nodes: list[WseServer], process: asyncio.subprocess.Process) -> float:
        args, ratios = self._args, []
        await self._cost(nodes, process, "moves", args.rate, 1.0)  # a warm-up, which gives each member a state
        await self._cost(nodes, process, "messages", args.messages, 1.0)
        print(f"{args.members} members in a room of two nodes")
        for _ in range(args.rounds):
            plain, messages = await self._cost(nodes, process, "messages", args.messages, args.seconds)
            frames = self._deliveries.frames
            state, states = await self._cost(nodes, process, "moves", args.rate, args.seconds)
            each = states / (self._deliveries.frames - frames)
            ratios.append(state / plain)
            print(
                f"a room message: {plain * 1e6:.2f} µs of CPU for each of {messages:,} deliveries; "
                f"a state: {state * 1e6:.3f} µs for each of {states:,}, {each:.0f} in a frame; ratio {ratios[-1]:.3f}"
            )
        return median(ratios)

    async def _cost(
        self, nodes: list[WseServer], process: asyncio.subprocess.Process, what: str, rate: float, seconds: float
    ) -> tuple[float, int]:
        """Seconds of CPU for each delivery, and the number of deliveries."""
        assert process.stdin is not None
        before, counted = time.process_time(), self._count(nodes, what)
        process.stdin.write(f"{what} {rate} {max(1, round(rate * seconds))}\n".encode())
        await self._until(process, b"sent\n")
        while any(node.stats().queued_bytes for node in nodes):  # noqa: ASYNC110 - no event to await, and no hurry
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for the last report of changes
        delivered = self._count(nodes, what) - counted
        return (time.process_time() - before) / delivered, delivered

    def _count(self, nodes: list[WseServer], what: str) -> int:
        if what == "moves":
            return self._deliveries.states
        return sum(node.stats().messages_out for node in nodes) - self._deliveries.frames

    @staticmethod
    async def _until(process: asyncio.subprocess.Process, line: bytes) -> None:
        assert process.stdout is not None
        heard = await process.stdout.readline()
        if heard != line:
            raise RuntimeError(f"the members said {heard!r}, not {line!r}")


def main() -> int:
    assert __doc__
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--members", type=int, default=1000)
    options.add_argument("--movers", type=int, default=1000, help="those of them who move")
    options.add_argument("--seconds", type=float, default=5.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rate", type=float, default=10.0, help="moves of each member a second")
    options.add_argument("--messages", type=float, default=20.0, help="room messages a second")
    options.add_argument("--as-members", type=int, nargs="+", help=argparse.SUPPRESS)
    args = options.parse_args()
    raise_file_limit()
    if args.as_members:
        asyncio.run(be_members(args.as_members, args.members, args.movers))
        return 0
    ratio = asyncio.run(Measurement(args, Deliveries()).run())
    print(f"a delivered state costs {ratio:.3f} times a delivered room message; the bound is {BOUND}")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
