"""Measures the brokers with their engines: `python bench/brokers.py [--quick]`.

The engines are the binaries of the test dependencies, started on free ports of 127.0.0.1 and ended with the program.
Every figure is measured in a process that does nothing else. CPU times are those of the process, or of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.engines import Engine, Nats, Valkey  # noqa: E402 - as above
from wse.brokers import from_url  # noqa: E402 - as above
from wse.core.ports.broker import Device  # noqa: E402 - as above

BATCH = 100
"""Messages that are published in one turn of the event loop."""

DATA = b"x" * 200


class Listener:
    """Counts the messages that it receives."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.count = 0
        self.awaited = 0
        self.done = asyncio.Event()

    def received(self, topic: str, data: bytes) -> None:
        self.count += 1
        if self.count == self.awaited:
            self.done.set()

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        print("connection lost:", repr(cause), file=sys.stderr)

    def connection_restored(self) -> None:
        self.done.set()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def publish(broker, listener, count: int) -> dict:
    cpu = time.process_time()
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            broker.publish("nobody", DATA)
        await asyncio.sleep(0)
    await broker.flush()
    return {"cpu": (time.process_time() - cpu) / count}


async def send(broker, listener, count: int) -> dict:
    """Publish the messages that `receive` counts."""
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            broker.publish("talk", DATA)
        await broker.flush()
    return {}


async def receive(broker, listener, count: int) -> dict:
    broker.subscribe("talk")
    await broker.flush()
    listener.awaited = count
    print("ready", flush=True)
    cpu = time.process_time()
    await listener.done.wait()
    return {"cpu": (time.process_time() - cpu) / count}


async def subscribe(broker, listener, count: int) -> dict:
    topics = [f"user-{n}" for n in range(count)]
    memory, start = resident(), time.perf_counter()
    for topic in topics:
        broker.subscribe(topic)
    await broker.flush()
    figures = {"seconds": time.perf_counter() - start, "memory": (resident() - memory) / count}
    print("ready", flush=True)
    await listener.done.wait()  # the engine has been restarted
    return figures | {"restored": time.perf_counter() - float(sys.stdin.readline())}


async def register(broker, listener, count: int) -> dict:
    await broker.renew(60)
    await broker.registered()
    figures = {}
    devices = [Device(f"user-{n}", f"c{n}", "node") for n in range(count)]

    async def fire(step) -> None:
        transitions = (await step).transitions
        if transitions:
            broker.fired(await broker.claim(transitions))

    for name, steps in (
        ("one after the other", 500),
        ("all at once", count),
    ):
        some = devices[:steps]
        for step, make in (("join", lambda d: fire(broker.join(d, 10))), ("leave", lambda d: fire(broker.leave(d)))):
            start, cpu = time.perf_counter(), time.process_time()
            if steps == count:
                await asyncio.gather(*[make(device) for device in some])
            else:
                for device in some:
                    await make(device)
            figures[f"{step}, {name}"] = (time.perf_counter() - start) / steps
            figures[f"{step}, {name}, cpu"] = (time.process_time() - cpu) / steps
    await asyncio.gather(*[fire(broker.join(device, 10)) for device in devices])
    start = time.perf_counter()
    await broker.online()
    figures["online"] = time.perf_counter() - start
    start = time.perf_counter()
    users = [user async for user in broker.users()]
    assert len(users) == count
    figures["users"] = time.perf_counter() - start
    start = time.perf_counter()
    await broker.reap()
    figures["reap of nobody"] = time.perf_counter() - start
    reaper = from_url(listener.url)
    await reaper.open("reaper", Listener(listener.url))
    await reaper.renew(60)
    await broker.resign()
    start = time.perf_counter()
    gone = []
    while len(gone) < count:
        reaped = await reaper.reap()
        reaper.fired(await reaper.claim(reaped))
        gone += reaped
    figures["reap"] = (time.perf_counter() - start) / count
    await reaper.close()
    return figures


ROLES = {role.__name__: role for role in (publish, send, receive, subscribe, register)}


async def play(role: str, url: str, count: int) -> None:
    broker, listener = from_url(url), Listener(url)
    await broker.open("node", listener)
    figures = await ROLES[role](broker, listener, count)
    await broker.close()
    print(json.dumps(figures))


def start(role: str, url: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", role, "--url", url, "--count", str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> dict:
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def engine_cpu(engine: Engine) -> float:
    fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engine_memory(engine: Engine) -> int:
    return int(Path(f"/proc/{engine.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(engine: Engine, messages: int, topics: int, users: int) -> None:
    url = engine.url("bench")
    cpu = engine_cpu(engine)
    figures = end(start("publish", url, messages))
    cpu = (engine_cpu(engine) - cpu) / messages
    print(f"  publish      {figures['cpu'] * 1e6:6.1f} µs of CPU a message; the engine {cpu * 1e6:.1f} µs")

    receiver = start("receive", url, messages)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    end(start("send", url, messages))
    print(f"  receive      {end(receiver)['cpu'] * 1e6:6.1f} µs of CPU a message")

    memory = engine_memory(engine)
    subscriber = start("subscribe", url, topics)
    assert subscriber.stdout is not None
    assert subscriber.stdin is not None
    subscriber.stdout.readline()
    memory = (engine_memory(engine) - memory) // topics
    engine.stop()
    engine.start()
    subscriber.stdin.write(f"{time.perf_counter()}\n")
    figures = end(subscriber)
    print(
        f"  subscribe    {figures['seconds']:6.2f} s and {figures['memory']:.0f} bytes a topic for {topics} topics;",
        end="",
    )
    print(f" the engine {memory} bytes; all again {figures['restored']:.2f} s after a restart")

    figures = end(start("register", url, users))
    for name in ("one after the other", "all at once"):
        parts = [
            f"{step} {figures[f'{step}, {name}'] * 1e6:.0f} µs, {figures[f'{step}, {name}, cpu'] * 1e6:.0f} µs of CPU"
            for step in ("join", "leave")
        ]
        print(f"  {name + ':':21s} {'; '.join(parts)}")
    for name in ("online", "users", "reap of nobody"):
        print(f"  {name + ':':21s} {figures[name] * 1e3:.1f} ms with {users} users")
    print(f"  {'reap:':21s} {figures['reap'] * 1e6:.0f} µs a device of a dead node that had {users}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: do not quote its figures")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        asyncio.run(play(arguments.role, arguments.url, arguments.count))
        return
    for kind in Nats, Valkey:
        with tempfile.TemporaryDirectory() as directory, kind(directory) as engine:
            print(kind.__name__)
            measure(engine, *((1000, 500, 600) if arguments.quick else (200_000, 50_000, 5000)))


if __name__ == "__main__":
    main()
