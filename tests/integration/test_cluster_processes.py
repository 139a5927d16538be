"""Three nodes, each a process of its own, on real engines: they are killed, stopped, and lose their engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

from support.brokers import run_cluster
from support.cluster import WAIT, Device, until
from support.net import Log
from support.programs import free_port, program, unmeasured
from support.resume import cut
from wse import Backoff, ClusterSettings, ErrorCode, WseClient, WseError
from wse.transports import picows

TESTS = Path(__file__).parents[1]
FAST = {
    "lease_ttl": 2.0,
    "renew_interval": 0.3,
    "canary_interval": 0.2,
    "canary_misses": 5,
    "query_timeout": 5.0,
}
BEATS = 4
"""How often FAST nodes renew their lease before a test concludes that nothing more follows: for about a second."""


class Node(Log):
    """A process that is a node, and the lines that it prints."""

    def __init__(self):
        super().__init__()
        self.url = ""

    async def start(self, url, options):
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "support.cluster_node", url, json.dumps(options)),
            stdout=asyncio.subprocess.PIPE,
            env={**unmeasured(), "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._reader = asyncio.ensure_future(self._read())

    async def ready(self):
        (_, self.url) = await self.until("url")

    async def _read(self):
        async for line in self.process.stdout:
            self.add(*json.loads(line))

    def signal(self, number):
        self.process.send_signal(number)

    async def beats(self, count):
        """Wait until it has renewed its lease some more times, so that it has reported all that happened before."""
        goal = len(self.all("beat")) + count
        await until(lambda: len(self.all("beat")) >= goal)

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
        url = self.engine.engine.url(self.engine.prefix)
        for _ in range(count):
            node = Node()
            await node.start(url, {"cluster": cluster, **options})
            self._stack.push_async_callback(node.end)
            self.append(node)
        for node in self:
            await node.ready()

    async def device(self, number, identity, **options):
        client = WseClient(self[number].url, identity=identity, timeout=WAIT, **options)
        self._stack.push_async_callback(client.close)
        device = Device(client)
        device.cid = identity
        async with asyncio.timeout(WAIT):
            await client.connect()
        return device

    def fired(self, name, *start):
        return sum(entry[: len(start)] == start for node in self for entry in node.all(name))

    def told(self, name):
        """All reports with this name, of all nodes, sorted."""
        return sorted(entry for node in self for entry in node.all(name))

    def errors(self):
        return {entry[0] for node in self for entry in node.all("error")}

    async def beat(self, *numbers, count=BEATS):
        """Wait until these nodes, or all of them, have run for a while, so that a second report would have come."""
        await asyncio.gather(*[self[number].beats(count) for number in numbers or range(len(self))])

    async def asks(self, device, name, payload, answer):
        """Wait until the answer to the call is this."""
        got = None
        end = time.monotonic() + WAIT
        while got != answer:
            assert time.monotonic() < end, f"{name}({payload}) is {got}, not {answer}"
            try:
                got = await device.client.call(name, payload)
            except WseError as exc:
                got = exc
            await asyncio.sleep(0.02)


# That brokers on both engines do the same is shown in one process already (contract/test_brokers.py, test_cluster.py).
@pytest.fixture(params=["redis", pytest.param("nats", marks=pytest.mark.slow)])
async def cluster(request):
    async for engine in run_cluster(request.param, request):
        async with AsyncExitStack() as stack:
            yield Cluster(stack, engine)


class Stream:
    """While it is open, each sender sends numbered messages to each receiver's user, through the sender's node."""

    def __init__(self, senders, receivers):
        self._senders = senders
        self._receivers = receivers
        self.sent = 0

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self._go_on())
        return self

    async def __aexit__(self, *exc_info):
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _go_on(self):
        while True:
            self._send()
            await asyncio.sleep(0.01)

    def _send(self):
        for sender in self._senders:
            for receiver in self._receivers:
                sender.client.send("send", {"to": receiver.cid, "text": [sender.cid, self.sent]})
        self.sent += 1

    def heard(self, receiver, sender):
        """The numbers in the order of their arrival."""
        texts = [text for text in receiver.payloads("said") if isinstance(text, list)]
        return [number for cid, number in texts if cid == sender.cid]

    async def passes(self, count=10):
        """Wait until this many more have been sent."""
        goal = self.sent + count
        await until(lambda: self.sent >= goal)

    async def arrives(self):
        """Wait for one more message of each sender at each receiver, and so for all before it; returns their number."""
        self._send()
        count = self.sent
        for receiver in self._receivers:
            for sender in self._senders:
                await until(lambda receiver=receiver, sender=sender: count - 1 in self.heard(receiver, sender))
        return count

    def check_that_each_came_once(self, *receivers):
        for receiver in receivers or self._receivers:
            for sender in self._senders:
                assert self.heard(receiver, sender) == list(range(self.sent))


async def test_processes_are_one_server(cluster):
    await cluster.start(conns_per_user=2)
    phone, laptop = await cluster.device(0, "ann"), await cluster.device(1, "ann")
    bob = await cluster.device(2, "bob")
    bob.client.send("send", {"to": "ann", "text": 1})
    bob.client.send("broadcast", {"text": 2, "exclude": "me"})
    phone.client.send("broadcast", {"text": 3, "exclude": "me"})
    for device, said in ((phone, [1, 2]), (laptop, [1, 2, 3]), (bob, [3])):
        await until(lambda device=device, said=said: sorted(device.payloads("said")) == said)
    third = await cluster.device(2, "ann")
    assert await phone.until("closed") == ("closed", 1000, "wse.clients-concurrency")
    bob.client.send("drop", "ann")
    for device in (laptop, third):
        assert await device.until("closed") == ("closed", 1000, "dropped")
    await until(lambda: cluster.fired("left", "ann"))
    assert (cluster.told("joined"), cluster.told("left")) == ([("ann",), ("bob",)], [("ann", 1000)])
    assert cluster.errors() == set()


async def test_every_node_knows_who_is_online_and_with_which_devices(cluster):
    await cluster.start(conns_per_user=2)
    watchers = [await cluster.device(number, f"watcher {number}") for number in range(3)]
    names = [watcher.cid for watcher in watchers]
    phone, laptop = await cluster.device(0, "ann"), await cluster.device(1, "ann")
    held = [conn_id for device in (phone, laptop) for conn_id in await device.client.call("here", "ann")]
    assert len(held) == 2

    async def see(users, devices):
        for watcher in watchers:
            await cluster.asks(watcher, "devices", "ann", devices)
            await cluster.asks(watcher, "users", None, [*users, *names])
            await cluster.asks(watcher, "online", None, len(users) + 3)

    await see(["ann"], held)
    await phone.client.close()
    await see(["ann"], held[1:])
    tablet = await cluster.device(2, "ann")
    await see(["ann"], held[1:] + await tablet.client.call("here", "ann"))
    watchers[0].client.send("drop", "ann")
    await see([], [])
    bob = await cluster.device(1, "bob")
    await see(["bob"], [])
    await bob.client.close()
    await see([], [])
    assert (await laptop.until("closed"), await tablet.until("closed")) == (("closed", 1000, "dropped"),) * 2


class TeaRoom:
    """A room with the messages that devices receive and the events of their nodes, each named by its index."""

    def __init__(self, cluster, devices):
        self._cluster = cluster
        self._devices = devices
        self._connected = set(range(len(devices)))
        self._said = [[] for _ in devices]
        self._told = {"entered": [], "exited": []}

    async def watch(self):
        self._ids = []
        for device in self._devices:
            await device.client.call("watch", "tea")
            self._ids += await device.client.call("here", device.cid)

    async def ask(self, number, what, who):
        await self._devices[number].client.call(what, {"room": "tea", "who": who})

    async def close(self, number):
        self._connected.remove(number)
        await self._devices[number].client.close()

    async def tells(self, name, *numbers):
        """Wait for the events that these have entered or exited, and check that there are no others."""
        self._told[name] += [("tea", self._devices[number].cid, self._ids[number]) for number in numbers]
        await until(lambda: len(self._cluster.told(name)) >= len(self._told[name]))
        assert {name: self._cluster.told(name) for name in self._told} == {n: sorted(t) for n, t in self._told.items()}
        for number in self._connected:
            await self._devices[number].client.call("flush")

    async def holds(self, *numbers):
        """Check that exactly these receive what any node sends to the room, and that every node knows their users."""
        cids = {self._devices[number].cid for number in numbers}
        for number in self._connected:
            await self._cluster.asks(self._devices[number], "members", "tea", sorted(cids))
            sender = self._devices[number].client
            sender.send("to room", {"room": "tea", "text": f"from {number}"})
            sender.send("broadcast", {"text": "that was all"})
            for receiver in self._connected:
                said = self._said[receiver]
                said += [f"from {number}"] * (receiver in numbers) + ["that was all"]
                heard = self._devices[receiver]
                await until(lambda heard=heard, said=said: len(heard.payloads("said")) >= len(said))
                assert heard.payloads("said") == said


async def test_rooms_hold_connections_of_all_processes_until_they_are_taken_out_or_end(cluster):
    await cluster.start(conns_per_user=2)
    phone, laptop, bob = range(3)
    room = TeaRoom(cluster, [await cluster.device(number, cid) for number, cid in enumerate(("ann", "ann", "bob"))])
    await room.watch()
    await room.ask(phone, "enter", "user")  # and so does the laptop, on the other node
    await room.tells("entered", phone, laptop)
    await room.holds(phone, laptop)
    await room.ask(bob, "enter", "device")
    await room.tells("entered", bob)
    await room.holds(phone, laptop, bob)
    await room.ask(phone, "leave", "device")
    await room.tells("exited", phone)
    await room.holds(laptop, bob)
    await room.ask(phone, "enter", "device")
    await room.tells("entered", phone)
    await room.holds(phone, laptop, bob)
    await room.ask(laptop, "leave", "user")  # and so does the phone
    await room.tells("exited", phone, laptop)
    await room.holds(bob)
    await room.ask(laptop, "enter", "user")
    await room.tells("entered", phone, laptop)
    await room.close(laptop)
    await room.tells("exited", laptop)
    await room.holds(phone, bob)
    await room.close(bob)
    await room.tells("exited", bob)
    await room.holds(phone)
    assert cluster.errors() == set()


async def test_who_is_excluded_gets_nothing_on_any_node(cluster):
    await cluster.start(conns_per_user=3)
    ann = [await cluster.device(number, "ann") for number in range(3)]
    bob = [await cluster.device(number, "bob") for number in range(2)]
    for device in ann + bob:
        await device.client.call("enter", {"room": "tea", "who": "device"})
    sender = ann[0].client
    ways = {"send": {"to": "ann"}, "to room": {"room": "tea"}, "broadcast": {}}
    for way, to in ways.items():
        for exclude in ("me", "ann", "bob", None):
            sender.send(way, {**to, "text": f"{way} without {exclude}", "exclude": exclude})
    sender.send("broadcast", {"text": "end"})
    for device in ann + bob:
        await device.until("said", "end")
        wanted = [
            f"{way} without {exclude}"
            for way in ways
            for exclude in ("me", "ann", "bob", None)
            if not (way == "send" and device in bob)
            and exclude != device.cid
            and not (exclude == "me" and device is ann[0])
        ]
        assert device.payloads("said") == [*wanted, "end"]


async def test_calls_reach_devices_of_all_processes_in_every_mode(cluster):
    await cluster.start(conns_per_user=3)
    names = ["phone", "laptop", "tablet"]
    devices = [await cluster.device(number, "ann") for number in range(3)]
    askers = [devices[0], await cluster.device(1, "bob")]
    asked = []

    async def answer(procedure, name):
        asked.append(name)
        if procedure == "where" or procedure == name:
            return name
        if procedure == "nowhere" or names[names.index(name) - 1] == procedure:
            raise WseError("NOT_HERE", {"name": name})
        return await asyncio.get_running_loop().create_future()  # never

    for device, name in zip(devices, names, strict=True):
        for procedure in ("where", "nowhere", *names):
            device.client.register(procedure, lambda _, p=procedure, n=name: answer(p, n))

    async def ask(asker, mode, procedure):
        asked.clear()
        question = {"whom": "ann", "mode": mode, "name": procedure}
        try:
            return await asker.client.call("ask", question)
        except WseError as exc:
            return exc.code, exc.details["name"]
        finally:
            wanted = names[-1:] if mode == "any" else names
            await until(lambda: len(asked) >= len(wanted))
            assert sorted(asked) == sorted(wanted)

    for asker in askers:
        assert await ask(asker, "all", "where") == names
        assert await ask(asker, "all", "nowhere") == ["NOT_HERE"] * 3
        assert await ask(asker, "any", "where") == "tablet"
        assert await ask(asker, "any", "nowhere") == ("NOT_HERE", "tablet")
        for name in names:
            assert await ask(asker, "first", name) == name
        code, name = await ask(asker, "first", "nowhere")
        assert code == "NOT_HERE"
        assert name in names
    await devices[1].client.close()
    names.remove("laptop")
    await cluster.asks(askers[1], "ask", {"whom": "ann", "mode": "all"}, names)  # of two other nodes


@pytest.mark.slow  # it waits for a lease of the default length
async def test_a_killed_node_is_found_within_ten_seconds_and_its_users_leave_once(cluster):
    await cluster.start(3, {}, conns_per_user=2)  # with the default times
    assert ClusterSettings().lease_ttl == 5.0
    ann = [await cluster.device(2, f"ann {number}") for number in range(5)]
    await cluster.device(2, "bob")
    bob, carol = await cluster.device(1, "bob"), await cluster.device(0, "carol")
    async with Stream([bob, carol], [bob, carol]) as stream:
        await stream.passes()
        cluster[2].signal(signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: cluster.fired("left") == len(ann))
        assert time.monotonic() - killed < 10
        await stream.passes()
    await cluster.beat(0, 1, count=2)
    for survivor in (bob, carol):
        await cluster.asks(survivor, "users", None, ["bob", "carol"])
    assert cluster.told("left") == [(user.cid, 1006) for user in ann]
    await stream.arrives()
    stream.check_that_each_came_once()
    (conn_id,) = await bob.client.call("devices", "bob")
    assert await bob.client.call("here", "bob") == [conn_id]


def nodes_from(cluster, number):
    """A connector to that node, and for each further connection to the next one that takes it."""
    numbers = itertools.count(number)

    async def connect(url, *args):
        living = [node for node in cluster if node.process.returncode is None]
        for _ in living:
            node = living[next(numbers) % len(living)]
            try:
                return await picows.connect(node.url, *args, ssl=None, compression=None)
            except WseError:  # it closes
                pass
        raise WseError(ErrorCode.WS_CLIENT_ERROR)

    return connect


async def resumable(cluster, number, identity):
    """A client that comes back to the nodes from that one on; it has one message that its node has handled."""
    options = {"reconnect": True, "resume": True, "backoff": Backoff(base=0.05, cap=0.2)}
    device = await cluster.device(number % len(cluster), identity, connector=nodes_from(cluster, number), **options)
    device.client.when.lost(device.adder("lost"))
    device.client.when.resumed(device.adder("resumed"))
    device.client.when.error(lambda error: None)  # attempts that fail
    device.client.send("send", {"to": "nobody", "text": "handled"})
    async with asyncio.timeout(WAIT):
        await device.client.flush()
    return device


@pytest.mark.slow
async def test_clients_of_a_killed_node_are_told_what_is_lost_and_others_lose_nothing(cluster):
    await cluster.start()
    bob, carol = await cluster.device(1, "bob"), await cluster.device(2, "carol")
    hers, away = await resumable(cluster, 1, "hers"), await resumable(cluster, 1, "away")
    lost = [await resumable(cluster, 0, f"lost {n}") for n in range(3)]
    async with Stream([bob, carol], [bob, carol, hers, away]) as stream:
        await stream.passes()
        cluster[0].signal(signal.SIGSTOP)
        for one in lost:
            one.client.send("send", {"to": "nobody", "text": f"of {one.cid}, to a node that is about to die"})
        await asyncio.sleep(0)  # the messages leave
        cut(away.client)
        cluster[0].signal(signal.SIGKILL)
        for one in lost:
            (_, loss) = await one.until("lost")
            assert loss.why in ("unknown", "unreachable")
            text = f"of {one.cid}, to a node that is about to die"
            assert (loss.uncertain, loss.unsent) == ([("send", {"to": "nobody", "text": text})], [])
            async with asyncio.timeout(WAIT):
                await one.client.wait_ready()
                assert await one.client.call("here", one.cid) != []
        await away.until("resumed")
        await stream.passes()
    await stream.arrives()
    stream.check_that_each_came_once()
    assert hers.all("closed") == hers.all("lost") == away.all("lost") == []
    assert all(len(one.all("lost")) == 1 and one.all("resumed") == [] for one in lost)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_processes_that_are_restarted_one_after_the_other_lose_nothing(cluster):
    await cluster.start()
    devices = [await resumable(cluster, number, f"user {number}") for number in range(6)]
    async with Stream(devices[:2], devices) as stream:
        for number in range(3):
            await stream.passes()
            await cluster.start(1)
            cluster[number].signal(signal.SIGTERM)
            async with asyncio.timeout(WAIT):
                assert await cluster[number].process.wait() == 0
        await stream.passes()
    await stream.arrives()
    stream.check_that_each_came_once()
    for device in devices:
        assert device.all("lost") == []
        assert device.all("resumed") != []
    assert cluster.told("joined") == [(device.cid,) for device in devices]
    assert cluster.told("left") == []


async def test_a_call_to_a_killed_node_ends(cluster):
    await cluster.start()
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


async def test_a_stream_ends_with_either_of_its_nodes(cluster):
    await cluster.start()
    ended = []

    async def numbers(payload):
        try:
            for n in range(3):
                yield n
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(payload)

    ann, carol = await cluster.device(1, "ann"), await cluster.device(2, "carol")
    bob = await cluster.device(0, "bob")
    for device in ann, carol:
        device.client.register("numbers", numbers)
    streams = [bob.client.stream("read", {"whom": cid, "name": "numbers"}) for cid in ("ann", "carol")]
    async with asyncio.timeout(WAIT):
        for items in streams:
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        cluster[1].signal(signal.SIGKILL)  # the node of the device
        with pytest.raises(WseError) as caught:
            await anext(streams[0])
        assert caught.value.code == ErrorCode.RP_DISCONNECT
        await until(lambda: len(ended) == 1)  # with its connection
        cluster[0].signal(signal.SIGKILL)  # the node of the reader
        await until(lambda: len(ended) == 2)


async def test_a_node_that_slept_past_its_lease_comes_back(cluster):
    await cluster.start()
    stays = await cluster.device(1, "stays")
    replaced = await cluster.device(1, "replaced")
    watcher, other = await cluster.device(0, "watcher"), await cluster.device(2, "other")
    async with Stream([watcher, other], [watcher, other, stays]) as stream:
        await stream.passes()
        before = await stream.arrives()
        cluster[1].signal(signal.SIGSTOP)
        await until(lambda: cluster.fired("left") == 2)
        await cluster.device(2, "replaced")
        cluster[1].signal(signal.SIGCONT)
        assert await replaced.until("closed") == ("closed", 1000, "wse.clients-concurrency")
        await until(lambda: cluster.fired("joined", "stays") == 2)
        back = stream.sent
        await stream.passes()
    for device in (watcher, other, stays):
        await cluster.asks(device, "users", None, ["other", "replaced", "stays", "watcher"])
    await stream.arrives()
    stream.check_that_each_came_once(watcher, other)
    for sender in (watcher, other):  # messages to a node that sleeps may be lost
        heard = stream.heard(stays, sender)
        assert heard == sorted(set(heard))
        assert {*range(before), *range(back, stream.sent)} <= set(heard)
    await stays.client.close()
    await until(lambda: cluster.fired("left", "stays") == 2)
    await cluster.beat()
    assert cluster.told("joined") == sorted(
        (cid,) for cid in ["other", "replaced", "replaced", "stays", "stays", "watcher"]
    )
    assert cluster.told("left") == [("replaced", 1006), ("stays", 1000), ("stays", 1006)]


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
    async with Stream(devices, devices) as stream:
        for number, device in enumerate(devices):
            device.client.send("broadcast", {"text": number, "exclude": "me"})
        await stream.passes()
        assert cluster.fired("left") == cluster.fired("joined", "new") == 0
        await asyncio.to_thread(cluster.engine.start)
        await until(lambda: cluster.fired("joined", "new") and cluster.fired("left", "gone"))
        for device in devices:
            await cluster.asks(device, "users", None, ["new", *[f"user {number}" for number in range(3)]])
            await cluster.asks(device, "healthy", None, True)
    await cluster.beat()
    await stream.arrives()
    stream.check_that_each_came_once()
    for number, device in enumerate(devices):
        said = [text for text in device.payloads("said") if not isinstance(text, list)]
        assert sorted(said) == sorted({0, 1, 2} - {number})
    assert cluster.told("joined") == sorted((device.cid,) for device in (*devices, gone, new))
    assert cluster.told("left") == [("gone", 1000)]
    assert cluster.errors() == {str(ErrorCode.BROKER_UNAVAILABLE)}


async def test_of_devices_that_three_nodes_accept_at_the_same_moment_exactly_one_remains(cluster):
    await cluster.start()
    watchers = [await cluster.device(number, f"watcher {number}") for number in range(3)]
    cids = [f"user {turn:02}" for turn in range(16)]
    for cid in cids:
        await asyncio.gather(*[cluster.device(number % 3, cid) for number in range(6)], return_exceptions=True)

        async def held(cid=cid):
            return [conn_id for watcher in watchers for conn_id in await watcher.client.call("here", cid)]

        end = time.monotonic() + WAIT
        while len(await held()) != 1:
            assert time.monotonic() < end, await held()
            await asyncio.sleep(0.01)
        for watcher in watchers:
            assert await watcher.client.call("devices", cid) == await held()
    await cluster.beat(count=2)
    assert cluster.told("joined") == [(user,) for user in (*cids, *[watcher.cid for watcher in watchers])]
    assert cluster.told("left") == []
    assert cluster.errors() == set()


async def test_what_routes_of_web_workers_send_arrives_whichever_worker_has_the_connection(cluster, monkeypatch):
    """A worker joins when it starts, not with its first WebSocket."""
    monkeypatch.setenv("BROKER", cluster.engine.engine.url(cluster.engine.prefix))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        for port in ports:
            worker = stack.enter_context(program("-m", "uvicorn", "support.worker_app:app", "--port", str(port)))
            await asyncio.to_thread(worker.read_until, "Uvicorn running")
        async with WseClient(f"ws://127.0.0.1:{ports[0]}/ws", identity="ann") as client:
            heard = asyncio.Queue()
            client.channel.on("news", heard.put_nowait)
            async with asyncio.timeout(WAIT):
                for port in ports:
                    await asyncio.to_thread(get, port, f"/send?text={port}")
                    assert await heard.get() == str(port)


def get(port, target):
    with urlopen(f"http://127.0.0.1:{port}{target}", timeout=WAIT) as response:
        return response.read()
