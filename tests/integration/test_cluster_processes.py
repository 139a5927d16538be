"""Three nodes, each a process of its own, on real engines: they are killed, put to sleep, and lose their engine."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from support.brokers import ENGINES, run_cluster
from support.cluster import WAIT, Device, until
from support.net import Log
from wse import ClusterSettings, ErrorCode, WseClient, WseError

PROGRAM = Path(__file__).parents[1] / "support" / "cluster_node.py"
FAST = {"lease": 2.0, "renew": 0.3, "canary": 0.2, "deaf_after": 5, "query": 5.0}


class Node(Log):
    """A process that is a node, and what it tells."""

    def __init__(self):
        super().__init__()
        self.url = ""
        self.alive = True

    async def start(self, url, options):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", PROGRAM, url, json.dumps(options), stdout=asyncio.subprocess.PIPE
        )
        self._reader = asyncio.ensure_future(self._read())
        await until(lambda: self.all("url"))
        self.url = self.all("url")[0][0]

    async def _read(self):
        async for line in self.process.stdout:
            self.add(*json.loads(line))

    def signal(self, number):
        self.process.send_signal(number)

    async def end(self):
        if self.process.returncode is None:
            self.signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()
        await self._reader


class Cluster(list):
    def __init__(self, stack, engine):
        super().__init__()
        self._stack = stack
        self.engine = engine

    async def start(self, count=3, cluster=FAST, **options):
        for _ in range(count):
            node = Node()
            self.append(node)
            self._stack.push_async_callback(node.end)
            await node.start(self.engine.engine.url(self.engine.prefix), {"cluster": cluster, **options})
        return self

    async def device(self, number, identity, **options):
        client = WseClient(self[number].url, identity=identity, timeout=WAIT, **options)
        self._stack.push_async_callback(client.close)
        device = Device(client)
        async with asyncio.timeout(WAIT):
            await client.connect()
        return device

    def fired(self, name, *start):
        return sum(entry[: len(start)] == start for node in self for entry in node.all(name))

    def errors(self):
        return {entry[0] for node in self for entry in node.all("error")}

    async def asks(self, device, name, payload, answer):
        """The answer to the call comes to be this."""
        got = None
        end = time.monotonic() + WAIT
        while got != answer:
            assert time.monotonic() < end, f"{name}({payload}) is {got}, not {answer}"
            try:
                got = await device.client.call(name, payload)
            except WseError as exc:
                got = exc
            await asyncio.sleep(0.02)


@pytest.fixture(params=ENGINES)
async def cluster(request):
    async for engine in run_cluster(request.param, request):
        async with AsyncExitStack() as stack:
            yield Cluster(stack, engine)


async def test_processes_are_one_server(cluster):
    await cluster.start(conns_per_user=2)
    phone, laptop = await cluster.device(0, "ann"), await cluster.device(1, "ann")
    bob = await cluster.device(2, "bob")
    bob.client.send("send", {"to": "ann", "text": 1})
    bob.client.send("broadcast", 2)
    phone.client.send("broadcast", 3)
    for device, said in ((phone, [1, 2]), (laptop, [1, 2, 3]), (bob, [3])):
        await until(lambda device=device, said=said: sorted(device.payloads("said")) == said)
    await phone.client.call("enter", "tea")
    await cluster.asks(bob, "members", "tea", ["ann"])
    await bob.client.call("enter", "tea")
    await cluster.asks(phone, "members", "tea", ["ann", "bob"])
    await until_room(cluster, bob, (phone, laptop))
    laptop.client.register("where", lambda _: "laptop")
    assert await bob.client.call("ask", {"whom": "ann", "mode": "first"}) == "laptop"
    assert await bob.client.call("ask", {"whom": "ann", "mode": "any"}) == "laptop"
    phone.client.register("where", lambda _: "phone")
    assert await bob.client.call("ask", {"whom": "ann", "mode": "all"}) == ["phone", "laptop"]
    third = await cluster.device(2, "ann")
    assert await phone.until("closed") == ("closed", 1000, "wse.clients-concurrency")
    bob.client.send("drop", "ann")
    for device in (laptop, third):
        assert await device.until("closed") == ("closed", 1000, "dropped")
    await until(lambda: cluster.fired("left", "ann"))
    assert [cluster.fired(name, cid) for name in ("joined", "left") for cid in ("ann", "bob")] == [1, 1, 1, 0]
    assert cluster.errors() == set()


async def until_room(cluster, sender, receivers):
    """A message to the room reaches these: connections of other nodes are added a moment later."""
    for number in range(1000):
        sender.client.send("to room", {"room": "tea", "text": f"room {number}"})
        await asyncio.sleep(0.02)
        if all(f"room {number}" in device.payloads("said") for device in receivers):
            return
    raise AssertionError("the room does not hear")


async def test_a_killed_node_is_found_within_ten_seconds_and_its_users_leave_once(cluster):
    await cluster.start(3, {}, conns_per_user=2)  # with the times that users have
    assert ClusterSettings().lease == 5.0
    ann = [await cluster.device(2, f"ann {number}") for number in range(5)]
    await cluster.device(2, "bob")
    bob = await cluster.device(1, "bob")
    cluster[2].signal(signal.SIGKILL)
    killed = time.monotonic()
    await until(lambda: cluster.fired("left") == len(ann))
    assert time.monotonic() - killed < 10
    await cluster.asks(bob, "online", None, ["bob"])
    assert cluster.fired("left", "bob") == 0
    assert {tuple(entry) for node in cluster for entry in node.all("left")} == {
        (f"ann {number}", 1006) for number in range(5)
    }
    (conn_id,) = await bob.client.call("devices", "bob")
    assert await bob.client.call("here", "bob") == [conn_id]


async def test_a_call_to_a_killed_node_ends(cluster):
    await cluster.start(2)
    ann, bob = await cluster.device(1, "ann"), await cluster.device(0, "bob")
    asked = asyncio.Event()

    async def where(_):
        asked.set()
        await asyncio.get_running_loop().create_future()

    ann.client.register("where", where)
    call = asyncio.ensure_future(bob.client.call("ask", {"whom": "ann", "mode": "any", "timeout": 0}))
    async with asyncio.timeout(WAIT):
        await asked.wait()
    cluster[1].signal(signal.SIGKILL)
    with pytest.raises(WseError) as caught:
        await call
    assert caught.value.code == ErrorCode.RP_DISCONNECT


async def test_a_node_that_slept_past_its_lease_comes_back(cluster):
    await cluster.start(2)
    stays = await cluster.device(1, "stays")
    replaced = await cluster.device(1, "replaced")
    watcher = await cluster.device(0, "watcher")
    cluster[1].signal(signal.SIGSTOP)
    await until(lambda: cluster[0].all("left") and cluster.fired("left") == 2)
    await cluster.device(0, "replaced")
    cluster[1].signal(signal.SIGCONT)
    assert await replaced.until("closed") == ("closed", 1000, "wse.clients-concurrency")
    await until(lambda: cluster.fired("joined", "stays") == 2)
    await cluster.asks(watcher, "online", None, ["replaced", "stays", "watcher"])
    watcher.client.send("send", {"to": "stays", "text": "again"})
    await stays.until("said", "again")
    await stays.client.close()
    await until(lambda: cluster.fired("left", "stays") == 2)
    assert [cluster.fired(name, "replaced") for name in ("joined", "left")] == [2, 1]


async def test_the_engine_is_stopped_and_started_again(cluster):
    await cluster.start(3, conns_per_user=2)
    devices = [await cluster.device(number, f"user {number}") for number in range(3)]
    gone = await cluster.device(0, "gone")
    cluster.engine.stop()
    for node in cluster:
        await until(lambda node=node: node.all("error"))
    assert [await device.client.call("healthy") for device in devices] == [False] * 3
    await gone.client.close()
    new = await cluster.device(2, "new")
    for number, device in enumerate(devices):
        device.client.send("broadcast", number)
    assert cluster.fired("left") == cluster.fired("joined", "new") == 0
    await asyncio.to_thread(cluster.engine.start)
    for number, device in enumerate(devices):
        await until(lambda device=device: len(device.payloads("said")) >= 2)
        assert sorted(device.payloads("said")) == sorted({0, 1, 2} - {number})
    await until(lambda: cluster.fired("joined", "new") and cluster.fired("left", "gone"))
    await cluster.asks(new, "online", None, ["new", *[f"user {number}" for number in range(3)]])
    for device in devices:
        await cluster.asks(device, "healthy", None, True)
    assert all(cluster.fired("joined", f"user {number}") == 1 for number in range(3))
    assert [cluster.fired(*event) for event in (("joined", "new"), ("left", "gone"), ("left",))] == [1, 1, 1]
    assert cluster.errors() == {str(ErrorCode.BROKER_UNAVAILABLE)}


async def test_of_devices_that_two_nodes_accept_at_the_same_moment_exactly_one_remains(cluster):
    await cluster.start(2)
    watcher = await cluster.device(0, "watcher")
    other = await cluster.device(1, "other watcher")
    for turn in range(25):
        cid = f"user {turn}"
        await asyncio.gather(*[cluster.device(number % 2, cid) for number in range(4)], return_exceptions=True)

        async def held(cid=cid):
            return await watcher.client.call("here", cid) + await other.client.call("here", cid)

        end = time.monotonic() + WAIT
        while len(await held()) != 1:
            assert time.monotonic() < end, await held()
            await asyncio.sleep(0.01)
        assert await watcher.client.call("devices", cid) == await held()
        await until(lambda cid=cid: cluster.fired("joined", cid) == 1)
        assert cluster.fired("left", cid) == 0
    assert cluster.errors() == set()
