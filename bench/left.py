"""Measures how long `left` takes when a node dies: `python bench/left.py [--quick]`.

The users are simulated: they are written into the engine's register as the brokers write them, one device each. A node
that exists in the register only has a share of them and dies. Two servers reap it, and fire `left` for its users. The
time is that from the node's last renewal of its lease, so it includes the lease of 5 s, until the last `left`.

The engines are the binaries of the test dependencies, started on free ports of 127.0.0.1 and ended with the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nats
import redis.asyncio

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.engines import Engine, Nats, Valkey  # noqa: E402 - of the tests, whose folder has just been added
from wse import ClusterSettings, WseServer  # noqa: E402 - as above
from wse.brokers import from_url  # noqa: E402 - as above
from wse.brokers.nats.records import write_record  # noqa: E402 - as above
from wse.brokers.placement import UserRecord  # noqa: E402 - as above
from wse.brokers.reconnecting import REGISTER_VERSION  # noqa: E402 - as above
from wse.core.ports.broker import Device  # noqa: E402 - as above

SIZES = [(50_000, 16_667), (1_000_000, 100_000)]
"""All users, and those of the node that dies."""

QUICK_SIZES = [(2_000, 500)]
PREFIX = "left"
BATCH = 2_000
PATIENCE = 120.0
LEASE = ClusterSettings().lease_ttl


class Deaf:
    def received(self, topic: str, data: bytes) -> None: ...

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        print("connection lost:", repr(cause), file=sys.stderr)

    def connection_restored(self) -> None: ...


def device(number: int, dying: int) -> Device:
    """The device of a user, who is named as `wse.core.cluster.envelope.encode_name` names users."""
    return Device(f"suser{number}", f"{number:016x}", "dying" if number < dying else "living", 1)


async def fill_valkey(engine: Engine, users: int, dying: int) -> None:
    async with redis.asyncio.Redis(port=engine.port) as client:
        for start in range(0, users, BATCH):
            pipe = client.pipeline(transaction=False)
            for number in range(start, min(start + BATCH, users)):
                one, name = device(number, dying), f"{PREFIX}:v{REGISTER_VERSION}:"
                pipe.hset(f"{name}u:{one.user}", mapping={"#g": 1, "#p": 1, one.conn_id: f"{one.node} 1 0"})
                pipe.sadd(f"{name}users", one.user)
                pipe.sadd(f"{name}n:{one.node}", f"{one.user} {one.conn_id}")
            await pipe.execute()


async def fill_nats(engine: Engine, users: int, dying: int) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{engine.port}")
    name = f"{PREFIX}-v{REGISTER_VERSION}"
    for number in range(users):
        one = device(number, dying)
        record = UserRecord(one.user, 1, 1, {one.conn_id: one})
        await client.publish(f"$KV.{name}.user.{one.user}", write_record(record))
        await client.publish(f"$KV.{name}-hints.{one.node}.{one.user}", one.conn_id.encode())
        if number % BATCH == 0:
            await client.flush(60)
    await client.flush(60)
    stream = client.jetstream()
    for bucket in f"KV_{name}", f"KV_{name}-hints":
        while (await stream.stream_info(bucket)).state.messages < users:  # noqa: ASYNC110 - it cannot tell
            await asyncio.sleep(0.1)
    await client.close()


FILL = {"nats": fill_nats, "valkey": fill_valkey}
ENGINES = {"nats": Nats, "valkey": Valkey}


async def serve(url: str) -> None:
    """A node that reaps; for each line of its input it says how many users have left, and when the last one."""
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, broker=url)
    count, last = 0, 0.0

    @server.when.left
    def left(identity, code, reason):
        nonlocal count, last
        count, last = count + 1, time.monotonic()

    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with server:
        print(json.dumps([count, last, time.process_time()]), flush=True)
        while await reader.readline():
            print(json.dumps([count, last, time.process_time()]), flush=True)
    os._exit(0)


async def measure(kind: str, users: int, dying: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory, ENGINES[kind](directory) as engine:
        url = engine.url(PREFIX)
        brokers = {}
        for name in ("living", "dying"):
            brokers[name] = broker = from_url(url)
            await broker.open(name, Deaf())
            await broker.renew(LEASE)
            await broker.registered()
        renewing = {name: asyncio.ensure_future(renew(broker)) for name, broker in brokers.items()}
        servers = [await start(url) for _ in range(2)]
        try:
            await FILL[kind](engine, users, dying)
            began = time.monotonic()
            assert await brokers["living"].online() == users
            online = time.monotonic() - began
            await asyncio.sleep(2 * LEASE)  # the servers are sure of themselves
            cpu, engine_cpu = sum([(await ask(server))[2] for server in servers]), cpu_of(engine.pid)
            renewing["dying"].cancel()
            await brokers["dying"].renew(LEASE)
            died = time.monotonic()
            while True:
                counts = [await ask(server) for server in servers]
                if sum(count for count, *_ in counts) >= dying:
                    break
                if time.monotonic() - died > PATIENCE:
                    raise TimeoutError(f"{counts} of {dying} users have left")
                await asyncio.sleep(0.2)
            last = max(last for _, last, _ in counts)
            cpu, engine_cpu = sum(cpu for *_, cpu in counts) - cpu, cpu_of(engine.pid) - engine_cpu
            await asyncio.sleep(2)  # for events that would be too many
            assert sum([(await ask(server))[0] for server in servers]) == dying, "once for each"
            return {
                "left_s": last - died,
                "cpu_us": cpu / dying * 1e6,
                "engine_us": engine_cpu / dying * 1e6,
                "online_ms": online * 1e3,
            }
        finally:
            for server in servers:
                server.stdin.close()
                await server.wait()
            for task in renewing.values():
                task.cancel()
            for broker in brokers.values():
                await broker.close(1.0)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def renew(broker) -> None:
    while True:
        await broker.renew(LEASE)
        await asyncio.sleep(1)


async def start(url: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", url, stdin=pipe, stdout=pipe)
    await server.stdout.readline()
    return server


async def ask(server: asyncio.subprocess.Process) -> tuple[int, float, float]:
    server.stdin.write(b"\n")
    return json.loads(await server.stdout.readline())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a smoke run: do not quote its figures")
    options.add_argument("--users", type=int, nargs=2, help="all users, and those of the node that dies")
    options.add_argument("--engine", choices=ENGINES, nargs="+", default=[*ENGINES])
    options.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve))
        return
    for kind in args.engine:
        sizes = [args.users] if args.users else QUICK_SIZES if args.quick else SIZES
        for users, dying in sizes:
            figures = asyncio.run(measure(kind, users, dying))
            print(f"{kind:8} {users:>9,} users: left of {dying:,} after {figures['left_s']:.1f} s,", end=" ")
            print(
                f"{figures['cpu_us']:.0f} and {figures['engine_us']:.0f} µs of CPU of servers and engine for each,",
                f"online() in {figures['online_ms']:.2f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
