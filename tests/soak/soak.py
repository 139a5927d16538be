"""Many clients join, talk, call, drop and return at random, and every message is accounted for.

    make soak                                   ten minutes
    .venv/bin/python tests/soak/soak.py 30      as many seconds as it is told
    make soak ARGS=--resume                     clients that keep their sessions over lost connections
    make soak ARGS=--kept                       messages that are kept, while nodes and engines are killed: see kept.py

A message is delivered, in its place and once, or the connection that it was sent on is lost. Each side counts what it
sends and hears on each connection, and the books are compared: while connections end at random, each side must have
heard a beginning of what the other has sent; where a client's goodbye has arrived, and on what is open at the end, all.
"""

from __future__ import annotations

import asyncio
import random
import runpy
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counts import LEAKS, held, raise_file_limit
from support.programs import program
from support.resume import cut_unnoticed
from wse import Backoff, CloseReason, ErrorCode, WseClient, WseError

CLIENTS = 2000
PAUSE = 1.5
"""Seconds between what one client does, on average: some thousand acts a second leave the machine time for others."""

FIRST = 0.7
"""What a client does first: a call that makes the server call it, too. Then all that a connection needs is there, and
memory is steady from the beginning."""


@dataclass
class Life:
    """One connection of one client, as the client knows it."""

    key: str
    cid: str
    client: WseClient
    sent: int = 0
    received: int = 0
    doubled: int = 0
    disorder: int = 0
    lost: bool = False

    def heard(self, number):
        self.received += 1
        self.disorder += number != self.received


@dataclass
class Soak:
    """The clients, and the books.

    Attributes:
        counted: What has happened, by name.
        problems: What must not have: empty when all is well.
        patience: Seconds until nothing of those who have gone may be left.
    """

    port: int
    clients: int
    counted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)
    patience = 30
    over: bool = False

    async def run(self, seconds):
        self.url = f"ws://127.0.0.1:{self.port}"
        async with WseClient(self.url, identity="watcher", meta={"watcher": True}, timeout=60) as self.watcher:
            empty = await self.watcher.call("counts")
            ours = held()
            users = [asyncio.ensure_future(self.user(n)) for n in range(self.clients)]
            await self.steady(seconds)
            self.over = True
            live = await asyncio.gather(*users)
            after = await self.at_rest(live)
            await asyncio.gather(*(self.leave(life) for life in live))
            await self.balance()
            if self.lives:
                self.problems.append(f"{len(self.lives)} connections that the server knows nothing of")
            await self.nothing_left(empty, ours)
        return after

    async def steady(self, seconds):
        """Wait until all have come and until it is over; memory at steady state is that of the middle third.

        To look at memory collects garbage and gives free memory back, which keeps it small. So it is looked at all the
        time, at the same pace: looked at in the middle third only, it seemed to grow by 7% thereafter.
        """
        while self.counted["joins"] < self.clients:
            await asyncio.sleep(0.1)
        begin = monotonic()
        samples = []
        while (now := monotonic() - begin) < seconds:
            await asyncio.sleep(min(seconds / 30, 5))
            await self.balance()
            resident = (await self.watcher.call("counts"))["resident"]
            if seconds / 3 < now < seconds * 2 / 3:
                samples.append(resident)
        self.at_steady_state = median(samples or [resident])  # a machine that is very busy may take none in that third

    async def at_rest(self, live):
        """All are there and nobody says anything: everything has arrived, and memory is what it was.

        A `drop` of the last moment may still end a connection here; its books are then balanced like any other's.
        """
        self.after = (await self.watcher.call("counts"))["resident"]  # before the books make lists of all
        end = monotonic() + 20
        while True:
            open_books = await self.watcher.call("alive", [life.cid for life in live])
            differences = [
                f"{life.key}: {life} {open_books.get(life.cid)}"
                for life in live
                if not life.lost
                and (
                    open_books.get(life.cid, [])[1:] != [life.sent, 0, life.received, life.doubled, life.doubled]
                    or life.disorder
                )
            ]
            if not differences or monotonic() > end:
                break
            await asyncio.sleep(0.1)
        self.problems += differences[:10]
        now = await self.watcher.call("counts")
        for name in ("pending_calls", "running_handlers", "queued_bytes", "unauthenticated"):
            if now[name]:
                self.problems.append(f"{name} at rest: {now[name]}")
        return now

    async def nothing_left(self, empty, ours):
        """Whoever has gone has left nothing behind, at either side."""
        end = monotonic() + self.patience
        while True:
            now = await self.watcher.call("counts")
            here = held()
            left = [f"{name}: {empty[name]}, now {now[name]}" for name in LEAKS if now[name] != empty[name]]
            left += [
                f"clients' {name}: {ours[name]}, now {here[name]}"
                for name in ("files", "tasks")
                if here[name] > ours[name]
            ]
            if not left or monotonic() > end:
                break
            await asyncio.sleep(0.2)
        self.problems += left

    # One user.

    async def user(self, number):
        """Live one life after the other; returns the last, which is still open."""
        generation = 0
        await asyncio.sleep(random.random() * min(5, self.clients / 400))
        while True:
            generation += 1
            life = await self.join(number, f"{number}/{generation}")
            await self.act(life, FIRST)
            while not self.over and not life.lost:
                await asyncio.sleep(random.expovariate(1 / PAUSE))
                if not life.lost and not self.over:
                    await self.act(life)
            if not life.lost:
                return life
            await life.client.close()

    async def join(self, number, key):
        client = WseClient(self.url, identity=f"user{number}", meta={"key": key}, timeout=60)
        life = self.lives[key] = Life(key, f"user{number}", client)
        client.channel.on("talk", life.heard)

        @client.register("double")
        def double(payload):
            life.doubled += 1
            return 2 * payload

        @client.when.closed
        def closed(code, reason):
            life.lost = True

        await client.connect()
        self.counted["joins"] += 1
        return life

    async def act(self, life, what=None):
        client = life.client
        self.counted["acts"] += 1
        what = random.random() if what is None else what
        try:
            if what < 0.4:
                life.sent += 1
                client.send("note", life.sent)
                self.counted["messages"] += 1
            elif what < 0.7:
                life.sent += 1
                client.send("talk", {"number": life.sent, "to": f"user{random.randrange(self.clients)}"})
                self.counted["messages"] += 1
            elif what < 0.95:
                self.counted["calls"] += 1
                await self.call(life, "ask" if what == FIRST else random.choice(("add", "later", "ask")))
            elif what < 0.97:
                self.counted["goodbyes"] += 1
                await client.close()
                life.lost = True
            elif what < 0.985:
                self.counted["cuts"] += 1
                client._connections.session.link.abort()  # as a network does it: no client has a method for that
                await client.close()
                life.lost = True
            else:
                self.counted["drops"] += 1
                await client.call("drop", f"user{random.randrange(self.clients)}")
        except WseError as exc:
            if exc.code != ErrorCode.RP_DISCONNECT:
                self.problems.append(f"{life.key}: {exc!r}")
            self.counted["calls that the end cut off"] += 1

    async def call(self, life, name):
        number = random.randrange(1000)
        if name == "add":
            right, payload = number + 1, {"a": number, "b": 1}
        else:
            right = payload = number
        result = await life.client.call(name, payload)
        if result != right:
            self.problems.append(f"{life.key}: {name} of {payload} is {result}")

    async def leave(self, life):
        await life.client.close()

    # The books.

    async def balance(self):
        """Compare the books of connections that have ended."""
        while part := await self.watcher.call("ledger"):
            for key, received, disorder, sent, asked, answered, reason in part:
                life = self.lives.pop(key, None)
                if life is None:
                    self.problems.append(f"a second session of {key}")
                    continue
                self.counted["delivered"] += received + life.received
                wrong = (
                    disorder
                    or life.disorder
                    or received > life.sent
                    or life.received > sent
                    or not answered <= life.doubled <= asked
                    or (reason == CloseReason.BY_CLIENT and received != life.sent)
                )
                if wrong:
                    self.problems.append(
                        f"{life} but at the server {received, disorder, sent, asked, answered, reason}"
                    )
                self.counted["sent on connections that were lost"] += life.sent - received
                self.counted["sent to connections that were lost"] += sent - life.received

    def summary(self):
        mib = 1024 * 1024
        lines = [f"{name}: {count:,}" for name, count in self.counted.items()]
        lines.append(f"memory at steady state: {self.at_steady_state / mib:.1f} MiB")
        lines.append(f"memory after: {self.after / mib:.1f} MiB ({self.after / self.at_steady_state - 1:+.1%})")
        return "\n".join(lines)


class ResumingSoak(Soak):
    """The same with clients that keep their session: what is cut goes on, and nothing is lost with it."""

    patience = 90  # a client that goes while it is away leaves a session for its window

    async def join(self, number, key):
        client = WseClient(
            self.url,
            identity=f"user{number}",
            meta={"key": key},
            timeout=60,
            reconnect=True,
            resume=True,
            backoff=Backoff(base=0.2, cap=2),
        )
        life = self.lives[key] = Life(key, f"user{number}", client)
        client.channel.on("talk", life.heard)
        client.when.error(lambda error: None)  # attempts that fail

        @client.register("double")
        def double(payload):
            life.doubled += 1
            return 2 * payload

        @client.when.resumed
        def resumed(welcome):
            self.counted["returns"] += 1

        @client.when.lost
        def lost(loss):
            life.lost = True
            if loss.why != "ended":  # by another client's `drop`
                self.problems.append(f"{life.key}: {loss!r}")

        await client.connect()
        self.counted["joins"] += 1
        return life

    async def act(self, life, what=None):
        what = random.random() if what is None else what
        if 0.97 <= what < 0.985:
            self.counted["acts"] += 1
            self.cut(life.client)
        elif 0.95 <= what < 0.97:
            self.counted["acts"] += 1
            self.counted["goodbyes"] += 1
            with suppress(WseError):
                await life.client.flush()
            life.lost = True
            await life.client.close()
        else:
            await super().act(life, what)

    def cut(self, client):
        """Break a connection; half of the time the server does not notice."""
        session = client._connections.session
        if session is None or session.ledger is None or not session.ledger.is_attached:
            return
        self.counted["cuts"] += 1
        if random.random() < 0.5:
            session.ledger.abort()
        else:
            link = cut_unnoticed(client)
            asyncio.get_running_loop().call_later(30, link.abort)

    async def leave(self, life):
        await life.client.flush()
        await super().leave(life)


async def soak(seconds, clients=CLIENTS, kind=Soak):
    """Run it; what is found is in `problems`."""
    files = raise_file_limit()
    if files < clients + 200:
        raise OSError(f"{clients:,} clients need {clients + 200:,} open files, and the limit here is {files:,}")
    with program(str(Path(__file__).parent / "server.py")) as server:
        port = int((await asyncio.to_thread(server.read_until, "\n")).split()[1])
        run = kind(port, clients)
        await run.run(seconds)
        status = server.stop(signal.SIGINT)
        if status or "Traceback" in server.output:
            run.problems.append(f"the server ended with {status}: {server.output}")
    return run


def main():
    args = sys.argv[1:]
    if "--kept" in args:
        runpy.run_path(str(Path(__file__).with_name("kept.py")), run_name="__main__")
        return
    kind = ResumingSoak if "--resume" in args else Soak
    numbers = [arg for arg in args if arg != "--resume"]
    run = asyncio.run(soak(float(numbers[0]) if numbers else 600.0, kind=kind))
    print(run.summary())
    print(*run.problems[:20] or ["every message is accounted for, and nothing is left"], sep="\n")
    sys.exit(bool(run.problems) or run.after > 1.05 * run.at_steady_state)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
