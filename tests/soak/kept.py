"""Messages are kept while nodes and the engine are killed (kill -9), and every one is accounted for.

    make soak ARGS=--kept                          ten minutes on each engine
    .venv/bin/python tests/soak/kept.py nats 30    one engine, as many seconds as it is told

Writers call a node, which keeps a message. If the answer does not come, they repeat the message with its key until it
does. Devices read: some keep their session, some reconnect without it, some are other programs each time. In the end,
the books are compared: the numbers of each user have no gap, each has one message, each message has one number, that
which its writer was told, and every device has had all of them, each once in one program.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.engines import Nats, Valkey
from support.programs import free_port
from wse import Backoff, WseClient, WseError

USERS = 6
WRITERS = 6
PATIENCE = 90.0
"""Seconds that everything may take to arrive after the last kill."""

SOON = Backoff(base=0.1, cap=0.5)


def engine_of(kind, directory):
    """An engine that has on disk what it has acknowledged."""
    if kind == "nats":
        return Nats(directory)
    return Valkey(directory, "--appendonly", "yes", "--appendfsync", "always")


class Node:
    """A node in a process of its own, which always has the same port."""

    def __init__(self, directory, url):
        self.port = free_port()
        self._url = url
        self._log = (Path(directory) / f"node-{self.port}").open("ab")
        self._process = None

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    def start(self):
        program = [sys.executable, "-W", "error", str(Path(__file__).with_name("kept_node.py"))]
        self._process = subprocess.Popen(
            [*program, str(self.port), self._url], stdout=self._log, stderr=self._log, cwd=Path(__file__).parents[2]
        )

    def kill(self):
        """Kill it, wherever it is."""
        self._process.kill()
        self._process.wait()

    def output(self):
        return Path(self._log.name).read_text()

    def close(self):
        self.kill()
        self._log.close()


class Program(list):
    """What one program of a device has had: numbers and messages, in order."""

    def __init__(self, node, cid, device, **options):
        super().__init__()
        self.name = f"{cid}/{device}"
        self.lost = []
        self.client = WseClient(
            node.url, identity=cid, inbox=device, reconnect=True, backoff=SOON, timeout=10, **options
        )
        self.client.channel.on("note", lambda text: self.append((self.client.kept.n, text)))
        self.client.when.inbox_lost(self.lost.append)
        self.client.when.error(lambda error: None)  # attempts that fail

    async def run(self):
        with suppress(WseError):
            await self.client.connect()


@dataclass
class KeptSoak:
    """The books.

    Attributes:
        told: By user, the number that the writer of each message was told.
        counted: What has happened, by name.
        problems: What must not have: empty when all is well.
    """

    nodes: list[Node]
    engine: object
    told: dict[str, dict[str, int]] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    over: bool = False

    async def run(self, seconds):
        users = [f"user{n}" for n in range(USERS)]
        self.told = {user: {} for user in users}
        for user in users:
            for node, (device, options) in zip(self.nodes, (("phone", {"resume": True}), ("pad", {})), strict=True):
                self.begin(node, user, device, **options)
        visitors = [asyncio.ensure_future(self.visit(user)) for user in users]
        writers = [asyncio.ensure_future(self.write(f"writer{n}", users)) for n in range(WRITERS)]
        await self.disturb(seconds)
        self.over = True
        await asyncio.wait_for(asyncio.gather(*writers), PATIENCE)
        await asyncio.wait_for(asyncio.gather(*visitors), PATIENCE)
        await self.arrive()
        self.compare()
        await asyncio.gather(*(program.client.close() for program in self.programs))

    def begin(self, node, user, device, **options):
        program = Program(node, user, device, **options)
        program.task = asyncio.ensure_future(program.run())
        self.programs.append(program)
        return program

    async def disturb(self, seconds):
        """Kill one thing after the other."""
        end = monotonic() + seconds
        victims = []
        while monotonic() < end:
            await asyncio.sleep(random.uniform(1.5, 3))
            victims = victims or random.sample([*self.nodes, self.engine], 3)
            victim = victims.pop()
            if victim is self.engine:
                self.counted["kills of the engine"] += 1
                victim.stop()
                await asyncio.sleep(random.uniform(0, 1))
                await asyncio.to_thread(victim.start)
            else:
                self.counted["kills of a node"] += 1
                victim.kill()
                await asyncio.sleep(random.uniform(0, 1))
                victim.start()

    async def write(self, name, users):
        """Keep one message after the other, each until it is acknowledged."""
        node = random.choice(self.nodes)
        client = WseClient(node.url, identity=name, reconnect=True, backoff=SOON, timeout=5)
        client.when.error(lambda error: None)
        number = 0
        connecting = asyncio.ensure_future(client.connect())
        while not self.over:
            number += 1
            user, text = random.choice(users), f"{name} {number}"
            while True:
                try:
                    self.told[user][text] = await client.call("keep", {"to": user, "text": text})
                    self.counted["kept"] += 1
                    break
                except WseError:
                    self.counted["repeats"] += 1
                    await asyncio.sleep(0.1)
        connecting.cancel()
        await client.close()

    async def visit(self, user):
        """A device that is another program each time, and says nothing of what it has had."""
        while not self.over:
            program = self.begin(random.choice(self.nodes), user, "visitor")
            await asyncio.sleep(random.uniform(0.5, 4))
            await self.end(program)

    async def end(self, program):
        program.task.cancel()
        await program.client.close()

    async def arrive(self):
        """Wait until every device has everything; what it lacks, `compare` finds."""
        for user in self.told:
            self.begin(random.choice(self.nodes), user, "new")
            self.begin(random.choice(self.nodes), user, "visitor")
        end = monotonic() + PATIENCE
        while monotonic() < end:
            newest = Counter()  # by device
            for program in self.programs:
                newest[program.name] = max(newest[program.name], program[-1][0] if program else 0)
            behind = [name for name, number in newest.items() if number < len(self.told[name.split("/")[0]])]
            if not behind:
                return
            await asyncio.sleep(0.1)

    def compare(self):
        """Compare the books of writers and devices."""
        by_device: dict[str, dict[int, str]] = {}
        for program in self.programs:
            numbers = [number for number, _ in program]
            if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                self.problems.append(f"{program.name} has had {numbers}")
            if program.lost:
                self.problems.append(f"{program.name} was told of a loss: {program.lost}")
            self.counted["delivered"] += len(numbers)
            had = by_device.setdefault(program.name, {})
            for number, text in program:
                if had.setdefault(number, text) != text:
                    self.problems.append(f"{program.name} has had two messages with the number {number}")
        for user, told in self.told.items():
            texts = {number: text for text, number in told.items()}
            if sorted(texts) != list(range(1, len(told) + 1)):
                self.problems.append(f"the numbers of {user} are not those of a row of {len(told)}: {sorted(texts)}")
            for device in ("phone", "pad", "visitor", "new"):
                had = by_device[f"{user}/{device}"]
                if had != texts:
                    missing = [number for number in texts if had.get(number) != texts[number]]
                    more = [number for number in had if number not in texts]
                    self.problems.append(f"{user}/{device}: missing {missing[:20]}, more {more[:20]}")

    def summary(self):
        return "\n".join(f"{name}: {count:,}" for name, count in self.counted.items())


async def soak_kept(kind, seconds):
    """Run it on an engine; what is found is in `problems`."""
    with tempfile.TemporaryDirectory() as directory:
        engine = engine_of(kind, directory)
        with engine:
            url = engine.url("kept")
            nodes = [Node(directory, url) for _ in range(2)]
            run = KeptSoak(nodes, engine)
            try:
                for node in nodes:
                    node.start()
                await run.run(seconds)
            finally:
                for node in nodes:
                    node.close()
            run.problems += [f"a node said: {node.output()}" for node in nodes if "Traceback" in node.output()]
    return run


def main(args):
    kinds = [arg for arg in args if arg in ("nats", "valkey")] or ["valkey", "nats"]
    seconds = next((float(arg) for arg in args if arg[0].isdigit()), 600.0)
    failed = False
    for kind in kinds:
        run = asyncio.run(soak_kept(kind, seconds))
        print(f"{kind}:", run.summary(), sep="\n")
        print(*run.problems[:20] or ["every message is accounted for"], sep="\n")
        failed = failed or bool(run.problems)
    sys.exit(failed)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1:])
