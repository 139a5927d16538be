"""One run: engine, nodes behind proxies, clients, publishers and faults; then the truth is asked for."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urlsplit

import redis.asyncio

from chaos.children import Child
from chaos.nemeses import NEMESES, Scenario
from chaos.promises import check
from support.engines import Nats, Valkey, free_port
from support.proxy import TcpProxy
from wse.brokers import from_url

ROOMS = ["room0", "room1", "room2", "room3"]
PREFIX = "chaos"
WARM_UP = 5.0
QUIET = 15.0
"""Seconds of calm after the faults, before the truth is asked for: nothing may be left to be done then."""

LEFT_WITHIN = 6.0
"""Seconds after which nothing is left of clients that have all gone."""

HEALTHY_WITHIN = 40.0
GAP = (3.0, 6.0)
"""Seconds between two faults."""


@dataclass(frozen=True)
class Options:
    """What a run is made of.

    Attributes:
        engine: `nats` or `valkey`.
        scenario: The faults.
        seconds: For how long faults are made.
        seed: Of everything that is random.
        nodes: How many there are.
        rate: Messages a second that clients send.
        users: Users of each kind; see `clients.py`.
        source: The directory of another version of the package, which the first node runs.
    """

    engine: str
    scenario: Scenario
    seconds: float = 60.0
    seed: int = 1
    nodes: int = 3
    rate: float = 40.0
    users: tuple[tuple[str, int], ...] = (("stable", 10), ("multi", 6), ("hop", 4))
    source: str | None = None

    @property
    def name(self):
        return f"{self.engine} {self.scenario.text}"


class Observer:
    """Looks at the register, as a node without a lease."""

    def received(self, topic, data): ...

    def connection_lost(self, cause, unsent): ...

    def connection_restored(self): ...


class Run:
    def __init__(self, options, directory):
        self.options = options
        self.chance = random.Random(options.seed)
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "engine").mkdir(parents=True)
        self._log = (directory / "run.log").open("w", buffering=1)
        self.proxies = {}
        self.nodes = {}
        self._ports = {f"n{i}": free_port() for i in range(options.nodes)}
        self._statuses = {}
        self._others = []  # clients and publishers
        self.problems = []

    def log(self, event, **what):
        self._log.write(json.dumps({"t": round(monotonic(), 4), "event": event, **what}) + "\n")

    async def run(self):
        """Make the run; the report on it."""
        scenario = self.options.scenario
        self.log("begin", name=self.options.name, seed=self.options.seed, keeps_register=scenario.persists)
        self.engine = self._engine()
        polling = None
        try:
            await self.start_engine()
            for name in self._ports:
                self.proxies[name] = await TcpProxy(self.engine.port).__aenter__()
            (self.directory / "ready.json").write_text("[]")
            await asyncio.gather(*map(self.start_node, self._ports))
            polling = asyncio.ensure_future(self._poll_readiness())
            await self._run()
        finally:
            if polling is not None:
                polling.cancel()
            for child in (*self.nodes.values(), *self._others):
                child.abandon()
            for proxy in self.proxies.values():
                await proxy.__aexit__()
            self.engine.stop()
            self._log.close()
        report = check(self.directory)
        report.violations[:0] = self.problems
        return report

    async def _run(self):
        await self._all_ready()
        before = {name: await node.ask("state") for name, node in self.nodes.items()}
        topics_before = await self._topics()
        clients = await self._start_clients()
        publishers = self._child("publishers", {"seconds": self.options.seconds + 5, "broker": self._url()})
        starting = asyncio.ensure_future(publishers.start(within=None))  # it says nothing
        await asyncio.sleep(WARM_UP)
        end = monotonic() + self.options.seconds
        await asyncio.gather(*[self._make_faults(names, end) for names in self.options.scenario.series])
        self._heal()
        if not await self._all_ready():
            self.problems.append("not all nodes were ready again when the faults were over")
        await clients.ask("quiet")
        await asyncio.sleep(QUIET)
        await self._compare(clients)
        await clients.ask("close", within=60)
        await asyncio.sleep(LEFT_WITHIN)
        await self._look_for_leftovers(before, topics_before)
        await clients.stop()
        async with asyncio.timeout(60):
            with suppress(ConnectionError):
                await starting
            await publishers.process.wait()
        for name, status in zip(
            self.nodes, await asyncio.gather(*[node.stop() for node in self.nodes.values()]), strict=True
        ):
            if status != 0:
                self.problems.append(f"node {name} ended with {status}, where None is for one that had to be killed")

    # The parts.

    def _engine(self):
        directory = self.directory / "engine"
        if self.options.engine == "nats":
            self._monitor = free_port()
            return Nats(directory, "-m", str(self._monitor))
        keep = ["--appendonly", "yes", "--appendfsync", "everysec"] if self.options.scenario.persists else []
        return Valkey(directory, *keep)

    async def start_engine(self):
        self.engine.launch()
        await asyncio.to_thread(self.engine.wait)

    def _url(self, port=None):
        address = urlsplit(self.engine.url(PREFIX))
        return address._replace(netloc=f"127.0.0.1:{port or self.engine.port}").geturl()

    def _child(self, program, settings, **options):
        settings |= {"log": str(self.directory / f"{program}.log"), "users": settings.get("users", self._stable)}
        child = Child(f"{program}.py", settings, self.directory / f"{program}.err", **options)
        self._others.append(child)
        return child

    @property
    def _stable(self):
        return [f"stable{i}" for i in range(dict(self.options.users)["stable"])]

    async def _start_clients(self):
        settings = {
            "seed": self.options.seed,
            "rate": self.options.rate,
            "users": dict(self.options.users),
            "rooms": ROOMS,
            "ports": [*self._ports.values()],
            "ready": str(self.directory / "ready.json"),
        }
        clients = self._child("clients", settings)
        await clients.start()
        return clients

    async def start_node(self, name):
        number = int(name[1:])
        settings = {
            "name": name,
            "port": self._ports[name],
            "broker": self._url(self.proxies[name].port),
            "log": str(self.directory / f"{name}.log"),
            "skew": self.options.scenario.skew * (number - 1),
        }
        source = self.options.source if number == 0 else None
        end = monotonic() + HEALTHY_WITHIN
        while True:
            node = Child("node.py", settings, self.directory / f"{name}.err", source)
            self.nodes[name] = node
            try:
                self.log("started", node=name, id=await node.start())
            except (ConnectionError, TimeoutError) as exc:
                self.log("not started", node=name, cause=repr(exc))
                node.abandon()
                if monotonic() > end:
                    raise
                await asyncio.sleep(1)  # the engine may be away
            else:
                return

    async def kill(self, name):
        await self.nodes[name].kill()
        self.log("killed", node=name)

    # Faults.

    async def _make_faults(self, names, end):
        while monotonic() < end:
            kind, node = self.chance.choice(names), self.chance.choice([*self.nodes])
            nemesis = NEMESES[kind]
            self.log("fault", kind=kind, node=node, breaks_promises=nemesis.breaks_promises)
            try:
                await nemesis.make(self, node)
            finally:
                self._heal(node)
                self.log("fault ended", kind=kind, node=node)
            await self._all_ready()
            self.log("healed", kind=kind, node=node)
            await asyncio.sleep(self.chance.uniform(*GAP))

    def _heal(self, node=None):
        for name in self.proxies if node is None else [node]:
            proxy = self.proxies[name]
            proxy.delay, proxy.accepts = 0.0, True
            proxy.stall(False)

    # Readiness.

    async def _poll_readiness(self):
        while True:
            statuses = dict(zip(self._ports, await asyncio.gather(*map(_status, self._ports.values())), strict=True))
            for name, status in statuses.items():
                if self._statuses.get(name) != status:
                    self.log("readyz", node=name, status=status)
            self._statuses = statuses
            ports = [self._ports[name] for name, status in statuses.items() if status == 200]
            (self.directory / "ready.new").write_text(json.dumps(ports))
            (self.directory / "ready.new").rename(self.directory / "ready.json")
            await asyncio.sleep(0.25)

    async def _all_ready(self):
        end = monotonic() + HEALTHY_WITHIN
        while monotonic() < end:
            if self._statuses and set(self._statuses.values()) == {200}:
                return True
            await asyncio.sleep(0.1)
        return False

    # The truth.

    async def _topics(self):
        """How many topics the engine knows."""
        if self.options.engine == "nats":
            reader, writer = await asyncio.open_connection("127.0.0.1", self._monitor)
            writer.write(b"GET /subsz?subs=1&limit=10000 HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            subscriptions = json.loads(answer.partition(b"\r\n\r\n")[2])["subscriptions_list"]
            return len({one["subject"] for one in subscriptions if one["subject"].startswith(f"{PREFIX}.")})
        async with redis.asyncio.Redis(port=self.engine.port) as client:
            return len(await client.pubsub_channels())

    async def _register(self):
        """The devices in the register, by user, and the nodes with a lease."""
        broker = from_url(self._url())
        await broker.open("observer", Observer())
        try:
            users = {user[1:]: await broker.devices(user) async for user in broker.users()}
            return users, await broker.nodes()
        finally:
            await broker.close()

    async def _compare(self, clients):
        """Compare what clients, nodes and the register know."""
        truth = {one["conn"]: one for one in await clients.ask("connections")}
        states = {name: await node.ask("state") for name, node in self.nodes.items()}
        register, living = await self._register()
        ids = {state["id"]: name for name, state in states.items()}
        if living != set(ids):
            self.problems.append(f"the nodes with a lease are {sorted(living)}, not {sorted(ids)}")
        held = {conn: (cid, name) for name, state in states.items() for conn, cid in state["connections"].items()}
        known = {d.conn_id: (user, ids.get(d.node, "a dead node")) for user, all_ in register.items() for d in all_}
        self._compare_devices({conn: (one["cid"], one["node"]) for conn, one in truth.items()}, held, known)
        for name, state in states.items():
            for what, count in state["must be zero"].items():
                if count:
                    self.problems.append(f"{what} of {name} is {count} after {QUIET:.0f} s of calm")
        users = {}
        for one in truth.values():
            users.setdefault(one["cid"], []).append(one["label"])
        for cid, labels in users.items():
            if len(labels) > 3:
                self.problems.append(f"{cid} has {len(labels)} devices, and may have 3: {labels}")
        await self._compare_rooms(truth, states)
        await self._probe(clients, truth, users)

    def _compare_devices(self, truth, held, known):
        for what, devices in ("held by the node", held), ("in the register", known):
            for conn in truth.keys() - devices.keys():
                self.problems.append(f"{truth[conn]} is connected with {conn}, which is not {what}")
            for conn in devices.keys() - truth.keys():
                self.problems.append(f"{devices[conn]} has no connection {conn}, which is {what}")
            for conn in devices.keys() & truth.keys():
                if devices[conn] != truth[conn]:
                    self.problems.append(f"{conn} is {truth[conn]}, and {what} as {devices[conn]}")

    async def _compare_rooms(self, truth, states):
        unsure = {(room, one["cid"]) for one in truth.values() for room in one["unsure"]}
        for conn, one in truth.items():
            rooms = {room for room, members in states[one["node"]]["rooms"].items() if conn in members}
            if (rooms ^ set(one["rooms"])) - set(one["unsure"]):
                self.problems.append(f"{one['label']} is in {sorted(rooms)}, and entered {one['rooms']}")
        for name, node in self.nodes.items():
            for room in ROOMS:
                try:
                    members = await node.ask("members", room=room)
                except RuntimeError as exc:
                    self.problems.append(f"the members of {room} on {name}: {exc}")
                    continue
                expected = {one["cid"] for one in truth.values() if room in one["rooms"]}
                if wrong := {cid for cid in set(members) ^ expected if (room, cid) not in unsure}:
                    self.problems.append(f"the members of {room} on {name} are wrong about {sorted(wrong)}")

    async def _probe(self, clients, truth, users):
        """Every node reaches everybody with messages and calls, and counts them."""
        for name, node in self.nodes.items():
            online = await node.ask("online")
            if online != len(users):
                self.problems.append(f"online() on {name} is {online}, and there are {len(users)} users")
            await node.ask("probe", users=[*users], rooms=ROOMS)
            for cid in self.chance.sample([*users], min(5, len(users))):
                answer = await node.ask("call", cid=cid)
                if not isinstance(answer, list) or sorted(answer) != sorted(users[cid]):
                    self.problems.append(f"a call of {cid} from {name} is answered by {answer}, not {users[cid]}")
        await asyncio.sleep(2)  # for what should not come any more
        await clients.ask("connections")  # its log is written
        arrived = {}
        for line in (self.directory / "clients.log").read_text().splitlines():
            _, event, *what = json.loads(line)
            if event == "p":
                arrived[tuple(what)] = arrived.get(tuple(what), 0) + 1
        for conn, one in truth.items():
            for probe in (f"{kind}-{name}" for kind in ("user", "all", *one["rooms"]) for name in self.nodes):
                if arrived.get((conn, probe)) != 1:
                    self.problems.append(f"{probe} reached {one['label']} {arrived.get((conn, probe), 0)} times")

    async def _look_for_leftovers(self, before, topics_before):
        """All clients have gone: nothing is left of them."""
        register, _ = await self._register()
        if register:
            self.problems.append(f"after all have gone, the register has {sorted(register)}")
        topics = await self._topics()
        if topics > topics_before:
            self.problems.append(f"the engine has {topics} topics, and had {topics_before} before")
        for name, node in self.nodes.items():
            state, earlier = await node.ask("state"), before[name]
            for what, count in (state["must be zero"] | state["must be zero in the end"]).items():
                if count:
                    self.problems.append(f"{what} of {name} is {count} after all have gone")
            for what, slack in ("topics", 0), ("tasks", 4), ("files", 3), ("memory", 60 << 20):
                if state[what] > earlier[what] + slack:
                    self.problems.append(f"{what} of {name} were {earlier[what]}, and are {state[what]} in the end")


async def _status(port):
    """The status of `/readyz`, or 0 if there is none."""
    try:
        async with asyncio.timeout(0.5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return int((await reader.readline()).split()[1])
            finally:
                writer.close()
    except (OSError, TimeoutError, IndexError):
        return 0
