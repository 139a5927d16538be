"""Messages that are kept for users, with real clients: on a server alone, and on clusters of two on every broker."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import ClassVar

import pytest

from support.brokers import ENGINES, be_patient, forget_boxes, run_cluster
from support.cluster import cluster_of, until
from support.net import accept_all, make_server, soon
from support.resume import RETURNING, cut
from wse import ClientStatus, ErrorCode, Inbox, Publisher, WseClient, WseError, WseJSON, WseMsgpack, WseServer
from wse.brokers.memory_store import MemoryStore
from wse.core.hub.kept import form
from wse.testing import URL, MemoryConnector, connect


@pytest.fixture(params=["alone", "memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ENGINES)])
async def nodes(request, monkeypatch):
    """Servers with the same users: one or two."""
    be_patient(monkeypatch)
    options = {"inbox": Inbox(messages=1000), "conns_per_user": 10}
    if request.param == "alone":
        async with cluster_of([None], **options) as nodes:
            yield nodes
        return
    async for cluster in run_cluster(request.param, request):
        async with cluster_of([cluster.broker(), cluster.broker()], **options) as nodes:
            nodes.cluster = cluster
            yield nodes


def count_reads(store):
    """The reads of a store from now on."""
    reads, read = [], store.read

    async def counted(box, after, count):
        reads.append(after)
        await asyncio.sleep(0)
        return await read(box, after, count)

    store.read = counted
    return reads


class Kept(list):
    """What a device has got: payloads and numbers."""

    def __init__(self, client, kind="note"):
        super().__init__()
        self.lost = []
        self.kept = None
        self.client = client
        client.channel.on(kind, self.came)
        client.when.inbox_lost(self.lost.append)

    def came(self, payload):
        self.kept = self.client.kept
        self.append((self.kept.n, payload))

    async def until(self, count):
        await until(lambda: len(self) >= count)


async def device(nodes, number=0, identity="ann", inbox="phone", **options):
    one = await nodes.device(number, identity, inbox=inbox, **options)
    return Kept(one.client)


async def test_a_user_who_is_away_gets_everything_in_order_on_every_device(nodes):
    for n in range(1, 151):
        assert await nodes[0].keep("ann", "note", n) == n
    phone = await device(nodes)
    await phone.until(150)
    assert phone == [(n, n) for n in range(1, 151)]
    await phone.client.close()
    pad = await device(nodes, -1, inbox="pad")
    await pad.until(150)
    assert pad == [(n, n) for n in range(1, 151)]
    await pad.client.close()
    again = await device(nodes, -1)
    await nodes[0].keep("ann", "note", "new")
    await again.until(1)
    assert again == [(151, "new")]
    assert not (phone.lost + pad.lost + again.lost)


async def test_devices_that_are_there_get_a_message_at_once(nodes):
    phone, pad = await device(nodes), await device(nodes, -1, inbox="pad")
    old = await nodes.device(-1, "ann")  # without an inbox
    bob = await device(nodes, 0, "bob")
    assert await nodes[0].keep("ann", "note", {"text": "hello"}) == 1
    assert await nodes[-1].keep("ann", "note", None) == 2
    for one in (phone, pad):
        await one.until(2)
        assert one == [(1, {"text": "hello"}), (2, None)]
    await until(lambda: len(old.payloads("note")) == 2)  # like any messages of two nodes, in either order
    assert {"text": "hello"} in old.payloads("note")
    assert bob == []


async def test_what_gave_way_to_newer_messages_is_counted_as_lost(nodes):
    for start in range(0, 1500, 100):
        await asyncio.gather(*(nodes[0].keep("ann", "note", n) for n in range(start, start + 100)))
    phone = await device(nodes)
    await phone.until(1000)
    assert [n for n, _ in phone] == list(range(501, 1501))
    assert phone.lost == [500]


async def test_a_user_with_two_devices_is_away_for_more_than_is_kept_and_one_program_crashes(nodes):
    for start in range(0, 1500, 250):
        await asyncio.gather(*(nodes[0].keep("ann", "note", n) for n in range(start, start + 250)))
    for name in ("phone", "pad"):
        one = await device(nodes, -1, inbox=name)
        await one.until(1000)
        assert [n for n, _ in one] == list(range(501, 1501))
        assert one.lost == [500]
        await one.client.close()
    again = await device(nodes)
    await nodes[0].keep("ann", "note", "last")
    await again.until(1)
    assert (again, again.lost) == ([(1501, "last")], [])
    again.client._connections._inbox.report = lambda: None  # it crashes between the handler and its report
    await again.client.close()
    third = await device(nodes)
    await third.until(1)
    assert third == [(1501, "last")]
    third.client._connections._inbox.report = lambda: None
    await third.client.close()
    knowing = await device(nodes, after=1501)
    await nodes[0].keep("ann", "note", "more")
    await knowing.until(1)
    assert knowing == [(1502, "more")]


@pytest.mark.slow
async def test_nothing_is_missing_or_twice_in_any_of_100_runs_in_which_devices_come_while_messages_are_kept(nodes):
    """500 messages a second, of which devices and members of a room that come get those before, and then the others."""
    count = 30
    at_once = [watch_reads(node._hub.kept.store) for node in nodes]

    async def write(name):
        room = nodes[0].room(name)
        for n in range(1, count + 1):
            kept = nodes[n % len(nodes)].keep(name, "note", n), room.keep("say", n)
            assert [await one for one in kept] == [n, n]
            await asyncio.sleep(1 / 500)

    async def come(name, number):
        await asyncio.sleep(random.uniform(0, count / 500))
        one = await device(nodes, number % len(nodes), name, inbox=f"device {number}")
        await one.until(count)
        assert one == [(n, n) for n in range(1, count + 1)]
        assert one.lost == []

    async def enter(name):
        one = await nodes.device(-1, f"{name} member")
        (conn,) = nodes[-1].clients[f"{name} member"].conns.values()
        await asyncio.sleep(random.uniform(0, count / 500))
        await nodes[-1].room(name).add(conn, last=20)
        await until(lambda: one.payloads("say")[-1:] == [count])
        first = one.payloads("say")[0]
        assert one.payloads("say") == list(range(first, count + 1))

    for run in range(100):
        name = f"user {run}"
        await asyncio.gather(write(name), enter(name), *(come(name, number) for number in range(3)))
        await asyncio.gather(*(one.client.close() for one in nodes.devices))
        nodes.devices.clear()
    assert all(set(most) == {1} for most in at_once)


def watch_reads(store):
    """How many reads of one box there have been at a time, through this store."""
    reading, most, read = {}, [], store.read

    async def watched(box, after, count):
        reading[box] = reading.get(box, 0) + 1
        most.append(reading[box])
        try:
            return await read(box, after, count)
        finally:
            reading[box] -= 1

    store.read = watched
    return most


async def test_a_message_whose_listener_fails_comes_again_after_a_restart(nodes):
    for n in range(1, 4):
        await nodes[0].keep("ann", "note", n)
    first = await nodes.device(0, "ann", inbox="phone")
    heard = []

    def fail_at_two(payload):
        heard.append(payload)
        if payload == 2:
            raise ValueError("no")

    errors = []
    first.client.when.error(errors.append)
    first.client.channel.on("note", fail_at_two)
    await until(lambda: len(heard) == 3)
    await first.client.close()
    assert [error.code for error in errors] == [ErrorCode.MSG_PROCESSING_ERROR]
    second = await device(nodes)
    await second.until(2)
    assert second == [(2, 2), (3, 3)]


async def test_async_listeners_count_when_they_have_returned(nodes):
    for n in range(1, 4):
        await nodes[0].keep("ann", "note", n)
    go_on = asyncio.Event()
    one = await nodes.device(0, "ann", inbox="phone")
    heard = []

    async def slow(payload):
        heard.append((payload, one.client.kept.n))
        if payload == 2:
            await go_on.wait()

    one.client.channel.on("note", slow)
    await until(lambda: len(heard) == 3)
    assert heard == [(1, 1), (2, 2), (3, 3)]
    await one.client.close()
    go_on.set()
    again = await device(nodes)
    await again.until(2)
    assert again == [(2, 2), (3, 3)]


async def test_the_application_may_know_better_where_it_is(nodes):
    for n in range(1, 6):
        await nodes[0].keep("ann", "note", n)
    phone = await device(nodes, after=3)
    await phone.until(2)
    assert phone == [(4, 4), (5, 5)]


async def test_a_repeat_with_the_same_key_arrives_once(nodes):
    phone = await device(nodes)
    old = await nodes.device(-1, "ann")
    for node in (nodes[0], nodes[-1], nodes[0]):
        assert await node.keep("ann", "note", "invoice", key="7") == 1
    assert await nodes[0].keep("ann", "note", "end") == 2
    await phone.until(2)
    assert phone == [(1, "invoice"), (2, "end")]
    await old.until("note", "end")
    assert old.payloads("note") == ["invoice", "end"]


async def test_every_device_gets_everything_while_others_write_and_devices_come_and_go(nodes):
    count, devices = 300, []

    async def write(node, name):
        for n in range(count):
            await node.keep("ann", "note", f"{name} {n}")

    async def come_and_go(number):
        name, heard = f"device {number}", []
        while len(heard) < 2 * count:
            # Another node may not know yet what the device has seen; the device does.
            one = await device(nodes, random.randrange(len(nodes)), inbox=name, after=heard[-1][0] if heard else None)
            wanted = min(2 * count, len(heard) + random.randrange(1, 200))
            await one.until(wanted - len(heard))
            await one.client.close()
            heard += one
        devices.append(heard)

    writers = [write(nodes[0], "first"), write(nodes[-1], "last")]
    await asyncio.gather(*writers, *(come_and_go(number) for number in range(4)))
    for heard in devices:
        assert [n for n, _ in heard] == list(range(1, 2 * count + 1))
        assert heard == devices[0]
        for name in ("first", "last"):
            assert [payload for _, payload in heard if payload.startswith(name)] == [
                f"{name} {n}" for n in range(count)
            ]


async def test_a_session_that_is_resumed_goes_on_with_its_inbox(nodes):
    phone = await device(nodes, resume=True, reconnect=True)
    for n in range(1, 101):
        if not n % 20:
            cut(phone.client)
        await nodes[-1].keep("ann", "note", n)
    await phone.until(100)
    assert phone == [(n, n) for n in range(1, 101)]
    assert phone.lost == []


async def test_a_client_that_reconnects_without_its_session_gets_nothing_twice(nodes):
    phone = await device(nodes, reconnect=True)
    for n in range(1, 101):
        if not n % 20:
            await phone.client.wait_ready()
            phone.client._connections.session.link.abort()
        await nodes[-1].keep("ann", "note", n)
    await phone.until(100)
    assert phone == [(n, n) for n in range(1, 101)]


class Balancer:
    """A connector that opens every connection to the next node."""

    def __init__(self, nodes):
        self._connectors = [MemoryConnector(node) for node in nodes]
        self.opened = 0

    async def __call__(self, *args, **options):
        self.opened += 1
        return await self._connectors[self.opened % len(self._connectors)](*args, **options)


@pytest.mark.parametrize("inbox", [None, "phone"])
async def test_what_is_kept_arrives_once_while_the_session_moves_from_node_to_node(nodes, inbox):
    """For devices with an inbox and without, and for members of rooms, readers or not."""
    count, rooms = 150, ("plain", "read")
    client = WseClient(URL, identity="ann", connector=Balancer(nodes), inbox=inbox, **RETURNING)
    heard = {name: [] for name in ("note", *rooms)}
    for name, payloads in heard.items():
        client.channel.on(name, payloads.append)
    moves, lost = [], []
    for node in nodes:
        node.when.resumed(lambda conn: moves.append(conn.moved))
        node.register("nothing", lambda conn, payload: None)
    client.when.lost(lost.append)

    async def write(node, kind, keep):
        for n in range(count):
            await keep(kind, (node, n))
            await asyncio.sleep(0.002)

    async with client:
        (conn,) = [conn for node in nodes for conn in node.clients.get("ann", NOBODY).conns.values()]
        conn.server.room("plain").add(conn)
        await conn.server.room("read").add(conn, last=5)
        await conn.server._hub.network.subscribed()
        writers = []
        for number, node in enumerate(nodes):
            writers.append(write(number, "note", partial(node.keep, "ann")))
            writers += [write(number, name, node.room(name).keep) for name in rooms]
        writing = asyncio.gather(*writers)
        while not writing.done():
            await asyncio.sleep(random.uniform(0.01, 0.05))
            cut(client)
        await writing
        for name, payloads in heard.items():
            await until(lambda payloads=payloads: len(payloads) >= count * len(nodes))
            for number in range(len(nodes)):
                assert [n for origin, n in payloads if origin == number] == list(range(count)), name
        await client.call("nothing")  # a client that is away could not say goodbye
    assert lost == []
    assert any(moves) == (len(nodes) > 1)


class NOBODY:
    conns: ClassVar = {}


# A client that closes.


@pytest.mark.parametrize("seconds", [0.2, 3600])
async def test_listeners_that_run_while_the_client_closes_may_end_and_what_they_have_handled_is_reported(seconds):
    async with make_server(inbox=Inbox()) as server:
        for number in range(3):
            await server.keep("ann", "note", number)
        began = asyncio.Event()

        async def slow(payload):
            began.set()
            await asyncio.sleep(seconds)

        client = WseClient(server.url, identity="ann", inbox="phone")
        client.channel.on("note", slow)
        start = time.monotonic()
        async with client:
            await began.wait()
            await client.close()
        assert time.monotonic() - start < 30
        again = Kept(WseClient(server.url, identity="ann", inbox="phone"))
        async with again.client:
            await server.keep("ann", "note", "last")
            await until(lambda: again[-1:] == [(4, "last")])
        assert len(again) == (1 if seconds < 1 else 4)


async def test_a_listener_that_closes_the_client_does_not_wait_for_itself(monkeypatch):
    monkeypatch.setattr("wse.client.manager.ConnectionManager.close.__defaults__", (30.0,))
    async with make_server(inbox=Inbox()) as server:
        await server.keep("ann", "note", 1)
        client, times = WseClient(server.url, identity="ann", inbox="phone"), []

        @client.channel.on("note")
        async def note(payload):
            times.append(time.monotonic())
            await client.close()
            times.append(time.monotonic())

        await client.connect()
        await client.wait_closed()
        await until(lambda: len(times) == 2)
        assert times[1] - times[0] < 15


async def test_a_client_that_connects_anew_while_it_waits_for_listeners_stays_connected():
    async with make_server(inbox=Inbox()) as server:
        await server.keep("ann", "note", 1)
        began = asyncio.Event()

        async def slow(payload):
            began.set()
            await asyncio.sleep(0.3)

        async with WseClient(server.url, identity="ann", inbox="phone") as client:
            client.channel.on("note", slow)
            await began.wait()
            closing = asyncio.ensure_future(client.close())
            await asyncio.sleep(0)
            await client.jump(server.url)
            await closing
            assert client.status is ClientStatus.READY
            heard = asyncio.Queue()
            client.channel.on("later", heard.put_nowait)
            await server.keep("ann", "later", 2)
            assert await soon(heard.get()) == 2


async def test_what_came_while_a_client_closed_comes_when_it_connects_again():
    async with make_server(inbox=Inbox()) as server:
        await server.keep("ann", "note", 1)
        began, heard = asyncio.Event(), []

        async def slow(payload):
            began.set()
            heard.append(payload)
            await asyncio.sleep(0.2)

        client = WseClient(server.url, identity="ann", inbox="phone")
        client.channel.on("note", slow)
        await client.connect()
        await began.wait()
        closing = [asyncio.ensure_future(client.close()) for _ in range(2)]
        await asyncio.sleep(0)
        for number in (2, 3):
            await server.keep("ann", "note", number)
        await soon(asyncio.gather(*closing))
        assert heard == [1]
        async with client:
            await server.keep("ann", "note", 4)
            await until(lambda: heard == [1, 2, 3, 4])


async def test_a_close_that_is_cancelled_closes_all_the_same():
    async with make_server(inbox=Inbox()) as server:
        await server.keep("ann", "note", 1)
        began = asyncio.Event()

        async def never(payload):
            began.set()
            await asyncio.Event().wait()

        client = WseClient(server.url, identity="ann", inbox="phone")
        client.channel.on("note", never)
        await client.connect()
        await began.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.close(), 0.05)
        assert client.status is ClientStatus.OFFLINE
        await until(lambda: not server.clients)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"inbox": ""}, "inbox is the name of this device"),
        ({"inbox": "x" * 201}, "inbox is the name of this device"),
        ({"inbox": 5}, "inbox is the name of this device"),
        ({"inbox": "phone", "after": -1}, "after is the number of a message"),
        ({"inbox": "phone", "after": [1, 2.0, ""]}, "after is the number of a message"),
        ({"after": 3}, "after is for a client with an inbox"),
    ],
)
def test_a_device_that_cannot_have_an_inbox_is_told_at_once(options, problem):
    with pytest.raises(ValueError, match=problem):
        WseClient(URL, **options)


async def test_what_cannot_be_kept_or_read_is_told_plainly(nodes):
    for wrong, error in (({"key": 3}, TypeError), ({"key": ""}, ValueError), ({"ttl": "60"}, ValueError)):
        with pytest.raises(error):
            await nodes[0].keep("ann", "note", 1, **wrong)
    with pytest.raises(WseError, match=r"has 7\d,\d{3} bytes, and Inbox.message allows 65,536"):
        await nodes[0].keep("ann", "note", "x" * 70_000)
    for wrong, error in (({"after": "x"}, TypeError), ({"last": -1}, ValueError), ({"last": True}, TypeError)):
        with pytest.raises(error):
            await nodes[0].room("lobby").history(**wrong)


# From outside.


async def test_a_publisher_keeps_messages_for_users_and_rooms(nodes):
    if nodes[0].cluster is None:
        pytest.skip("a server alone has no publishers")
    phone = await device(nodes)
    member = await nodes.device(-1, "bob")
    room = nodes[-1].room("lobby")
    room.add(*nodes[-1].clients["bob"].conns.values())
    await nodes[-1]._hub.network.subscribed()
    async with Publisher(nodes.cluster.broker()) as publisher:
        assert await publisher.keep("ann", "note", "from outside") == 1
        assert await nodes[0].keep("ann", "note", "from inside") == 2
        assert await publisher.keep("ann", "note", "from outside", key="7") == 3
        assert await publisher.keep("ann", "note", "from outside", key="7") == 3
        assert await publisher.room("lobby").keep("say", "hello") == 1
        await phone.until(3)
        await member.until("say", "hello")
    assert phone == [(1, "from outside"), (2, "from inside"), (3, "from outside")]
    assert [message.payload for message in await room.history(last=5)] == ["hello"]


# Rooms.


async def test_a_connection_that_enters_late_gets_what_was_kept_and_then_what_comes(nodes):
    room = nodes[0].room("lobby")
    for n in range(1, 101):
        assert await room.keep("say", n) == n
    ann = await nodes.device(-1, "ann")
    (conn,) = nodes[-1].clients["ann"].conns.values()

    async def talk():
        for n in range(101, 201):
            await room.keep("say", n)

    talking = asyncio.ensure_future(talk())
    await nodes[-1].room("lobby").add(conn, last=50)
    await talking
    await until(lambda: ann.payloads("say")[-1:] == [200])
    first = ann.payloads("say")[0]
    assert first >= 51
    assert ann.payloads("say") == list(range(first, 201))


async def test_members_get_what_is_kept_like_any_message(nodes):
    ann, bob = await nodes.device(0, "ann"), await nodes.device(-1, "bob")
    for node, name in ((nodes[0], "ann"), (nodes[-1], "bob")):
        node.room("lobby").add(*node.clients[name].conns.values())
        await node._hub.network.subscribed()
    await nodes[0].room("lobby").keep("say", "hello")
    for one in (ann, bob):
        await one.until("say", "hello")
        assert one.payloads("say") == ["hello"]
    assert await nodes[-1].room("other").history(last=10) == []


async def test_the_history_of_a_room_begins_where_it_is_asked_for(nodes):
    room = nodes[0].room("lobby")
    for n in range(1, 151):
        await room.keep("say", {"n": n})
    history = await nodes[-1].room("lobby").history(last=100)
    assert [(message.n, message.type, message.payload) for message in history] == [
        (n, "say", {"n": n}) for n in range(51, 151)
    ]
    assert [message.n for message in await room.history(after=147)] == [148, 149, 150]
    assert await room.history(after=150) == []
    assert len(await room.history(after=0)) == 150
    for wrong in ({}, {"after": 1, "last": 1}):
        with pytest.raises(TypeError, match="either"):
            await room.history(**wrong)


# A server alone.


async def test_a_connection_that_leaves_while_it_enters_gets_nothing_more(server):
    room = server.room("lobby")
    for n in range(100):
        await room.keep("say", n)
    async with connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        entering = asyncio.ensure_future(room.add(conn, last=100))
        await until(lambda: entering.done() or server._hub.rooms.local("lobby"))
        room.discard(conn)
        await entering
        assert server._hub.kept._feeds == {}
        assert await room.keep("say", "more") == 101


async def test_what_is_kept_is_encoded_once_for_all_members_and_read_once_by_each(server, monkeypatch):
    encoded = []
    encode = form.encode
    monkeypatch.setattr(form, "encode", lambda *args: encoded.append(args[1]) or encode(*args))
    room = server.room("lobby")
    await room.keep("say", "old")
    reads = count_reads(server._hub.kept.store)
    async with AsyncExitStack() as stack:
        for name in ("ann", "bob", "cyd", "dan"):
            await stack.enter_async_context(connect(server, name))
            (conn,) = server.clients[name].conns.values()
            if name in ("ann", "bob"):
                await room.add(conn, last=5)
            else:
                room.add(conn)
        assert len(reads) == 2
        encoded.clear()
        await room.keep("say", "new")
        assert encoded == ["say", "say"]  # for the store, and for everybody


async def test_a_protocol_that_cannot_carry_a_message_harms_no_other(server_of_two):
    errors = []
    server_of_two.when.error(lambda error, conn: errors.append(error.code))
    room = server_of_two.room("lobby")
    async with connect(server_of_two, "ann") as one, connect(server_of_two, "bob", protocol=WseMsgpack()):
        heard = []
        one.channel.on("say", heard.append)
        for name in ("ann", "bob"):
            room.add(*server_of_two.clients[name].conns.values())
        assert await room.keep("say", 2**70) == 1
        await until(lambda: heard)
    assert errors == [ErrorCode.MSG_PROCESSING_ERROR]


async def test_a_hint_that_is_lost_is_made_good_by_a_look(nodes):
    if len(nodes) == 1:
        pytest.skip("a server alone gets no hints")
    phone = await device(nodes, 1)
    nodes[0]._hub.network.kept = lambda kind, name, record: None
    await nodes[0].keep("ann", "note", "lost on its way")
    nodes[1]._hub.kept.look()
    await phone.until(1)
    assert phone == [(1, "lost on its way")]


async def test_a_user_cannot_enter_with_a_history(server):
    async with connect(server, "ann"):
        with pytest.raises(TypeError, match="one connection"):
            server.room("lobby").add(server.clients["ann"], last=5)


async def test_a_room_of_a_server_without_inboxes_keeps_nothing():
    async with WseServer(accept_all) as server, connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        room = server.room("lobby")
        for ask in (lambda: room.keep("say"), lambda: room.history(last=1), lambda: room.add(conn, last=1)):
            with pytest.raises(WseError) as caught:
                await ask()
            assert caught.value.code == ErrorCode.UNSUPPORTED


@pytest.fixture
async def server():
    async with WseServer(accept_all, inbox=True, conns_per_user=5) as server:
        yield server


@pytest.fixture
async def server_of_two():
    """A server of two message protocols."""
    async with WseServer(accept_all, inbox=True, protocol=[WseJSON(), WseMsgpack()]) as server:
        yield server


async def test_a_server_without_inboxes_says_so():
    async with WseServer(accept_all) as server:
        with pytest.raises(WseError) as caught:
            await server.keep("ann", "note")
        assert caught.value.code == ErrorCode.UNSUPPORTED
        client = WseClient("ws://wse", identity="ann", inbox="phone", connector=MemoryConnector(server))
        errors = []
        client.when.error(errors.append)
        async with client:
            assert [(error.code, error.details) for error in errors] == [
                (ErrorCode.UNSUPPORTED, {"extension": "inbox"})
            ]


async def test_a_new_device_may_begin_now():
    async with WseServer(accept_all, inbox=Inbox(new_device="none"), conns_per_user=5) as server:
        await server.keep("ann", "note", "old")
        async with connect(server, "ann", inbox="phone") as client:
            phone = Kept(client)
            await server.keep("ann", "note", "new")
            await phone.until(1)
            assert phone == [(2, "new")]


async def test_messages_cross_from_one_protocol_to_another():
    async with WseServer(accept_all, inbox=True, conns_per_user=5, protocol=[WseJSON(), WseMsgpack()]) as server:
        await server.keep("ann", "note", {"n": [1, None]})
        async with connect(server, "ann", inbox="phone", protocol=WseMsgpack()) as client:
            phone = Kept(client)
            await server.keep("ann", "note", "é")
            await phone.until(2)
            assert phone == [(1, {"n": [1, None]}), (2, "é")]


async def test_what_cannot_be_kept_is_an_error_of_the_caller(server):
    with pytest.raises(WseError) as caught:
        await server.keep("ann", "note", object())
    assert caught.value.code == ErrorCode.MSG_PROCESSING_ERROR
    with pytest.raises(WseError) as caught:
        await server.keep("ann", "note", "x" * 100_000)
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    assert caught.value.details["limit"] == "message"
    with pytest.raises(WseError) as caught:
        await server.keep("ann", "~wse:hi")
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    with pytest.raises(ValueError, match="ttl"):
        await server.keep("ann", "note", ttl=0)
    assert await server.keep("ann", "note") == 1


async def test_a_slow_device_is_not_sent_more_than_it_takes(server):
    """What it has not taken stays in the store."""
    async with connect(server, "ann", inbox="phone") as client:
        phone = Kept(client)
        (conn,) = server.clients["ann"].conns.values()
        conn._session.writable(False)
        for n in range(1, 201):
            await server.keep("ann", "note", n)
        assert conn._session.outbox_size == 0
        conn._session.writable(True)
        await phone.until(200)
        assert phone == [(n, n) for n in range(1, 201)]


async def test_a_device_whose_listeners_are_slow_asks_for_no_more_until_they_have_caught_up(server, monkeypatch):
    monkeypatch.setattr("wse.client.inbox.ENOUGH", 8)
    monkeypatch.setattr("wse.client.inbox.MOST_AT_A_TIME", 2)
    monkeypatch.setattr("wse.core.hub.kept.feed.PAGE", 4)
    for n in range(1, 201):
        await server.keep("ann", "note", n)
    go_on, heard = asyncio.Event(), []
    client = WseClient("ws://wse", identity="ann", inbox="phone", connector=MemoryConnector(server))

    @client.channel.on("note")
    async def note(payload):
        await go_on.wait()
        heard.append(payload)

    async with client:
        inbox = client._connections._inbox
        device = next(iter(server.clients["ann"].conns.values()))._session.inbox
        await until(lambda: not device.wants)
        most = len(inbox._waiting)
        await server.keep("ann", "note", 201)
        assert most <= 24
        go_on.set()
        await until(lambda: len(heard) == 201)
        assert heard == list(range(1, 202))
        assert device.wants


async def test_the_store_is_read_once_for_all_devices_of_a_user(server):
    reads = count_reads(server._hub.kept.store)
    for n in range(64):
        await server.keep("ann", "note", n)
    clients = [connect(server, "ann", inbox=f"device {n}") for n in range(5)]
    phones = [Kept(await client.__aenter__()) for client in clients]
    for phone in phones:
        await phone.until(64)
    begun = len(reads)
    for n in range(50):
        await server.keep("ann", "note", n)
    for phone in phones:
        await phone.until(114)
    assert len(reads) == begun  # those who are there need none
    for client in clients:
        await client.__aexit__(None, None, None)


async def test_an_engine_that_has_lost_the_inbox_begins_anew():
    store = MemoryStore()
    async with WseServer(accept_all, inbox=Inbox(store=store)) as server:
        for n in range(3):
            await server.keep("ann", "note", n)
        async with connect(server, "ann", inbox="phone", reconnect=True) as client:
            phone = Kept(client)
            await phone.until(3)
            store._boxes.clear()
            assert await server.keep("ann", "note", "new") == 1
            await phone.until(4)
            assert phone[-1] == (1, "new")


async def test_an_inbox_that_was_lost_and_has_grown_again_begins_anew(nodes):
    """Its numbers have passed those of the device, which was away."""
    phone = await device(nodes, reconnect=True)
    for n in range(1, 4):
        await nodes[0].keep("ann", "note", n)
    await phone.until(3)
    kept = phone.kept
    await phone.client.close()
    await lose(nodes)
    for n in range(1, 6):
        assert await nodes[0].keep("ann", "note", f"new {n}") == n
    again = await device(nodes, -1, after=kept)
    await again.until(5)
    assert again == [(n, f"new {n}") for n in range(1, 6)]
    assert again.kept.epoch not in ("", kept.epoch)
    assert await nodes[0].keep("ann", "note", "more") == 6
    await again.until(6)


async def test_an_inbox_that_was_lost_and_has_grown_again_begins_anew_for_a_device_that_is_there(nodes):
    phone = await device(nodes, reconnect=True, resume=True)
    for n in range(1, 4):
        await nodes[0].keep("ann", "note", n)
    await phone.until(3)
    await lose(nodes)
    for node in nodes:
        node._hub.network.kept = lambda kind, name, record: None
    heard, nodes[0]._hub.kept.heard = nodes[0]._hub.kept.heard, lambda kind, name, record: None
    for n in range(1, 5):
        await nodes[0].keep("ann", "note", f"new {n}")
    nodes[0]._hub.kept.heard = heard
    nodes[0]._hub.kept.look()
    await phone.until(7)
    assert [payload for _, payload in phone[3:]] == [f"new {n}" for n in range(1, 5)]


async def lose(nodes):
    """Let the engine lose all inboxes."""
    store = nodes[0]._hub.kept.store
    if isinstance(store, MemoryStore):
        store._boxes.clear()
    else:
        await forget_boxes(store)


async def test_a_listener_of_the_inbox_before_does_not_hold_up_the_new_one():
    store = MemoryStore()
    async with WseServer(accept_all, inbox=Inbox(store=store)) as server:
        async with connect(server, "ann", inbox="phone", reconnect=True) as client:
            phone = Kept(client)
            begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

            @client.channel.on("slow")
            async def slow(payload):
                begun.set()
                await go_on.wait()
                ended.set()

            await server.keep("ann", "slow")
            await begun.wait()
            await server.keep("ann", "note", "old")
            await phone.until(1)
            store._boxes.clear()
            await server.keep("ann", "note", "new")
            await phone.until(2)
            assert phone == [(2, "old"), (1, "new")]
            go_on.set()
            await ended.wait()
        async with connect(server, "ann", inbox="phone") as client:
            again = Kept(client)
            await server.keep("ann", "note", "newer")
            await again.until(1)
            assert again == [(2, "newer")]


async def test_another_user_of_the_same_client_begins_at_its_own_cursor(server):
    for n in range(1, 4):
        await server.keep("ann", "note", n)
    await server.keep("ben", "note", "for ben")
    async with connect(server, "ann", inbox="phone") as client:
        phone = Kept(client)
        await phone.until(3)
        await client.jump(client.url, "ben")
        await phone.until(4)
        assert (phone[-1], phone.lost) == ((1, "for ben"), [])
        await client.jump(client.url, "ann")
        await server.keep("ann", "note", 4)
        await phone.until(5)
        assert phone == [(1, 1), (2, 2), (3, 3), (1, "for ben"), (4, 4)]


async def test_a_lost_inbox_begins_anew_for_every_device_and_for_sessions_that_are_kept():
    store = MemoryStore()
    async with WseServer(accept_all, inbox=Inbox(store=store), conns_per_user=5) as server:
        reads = count_reads(store)
        for n in range(5):
            await server.keep("ann", "note", n)
        async with connect(server, "ann", inbox="phone", reconnect=True, resume=True) as client:
            phone = Kept(client)
            await phone.until(5)
            store._boxes.clear()
            async with connect(server, "ann", inbox="pad", reconnect=True) as other:
                pad = Kept(other)
                for n in range(3):
                    assert await server.keep("ann", "note", f"new {n}") == n + 1
                await pad.until(3)
                await phone.until(8)
                assert [payload for _, payload in phone[5:]] == ["new 0", "new 1", "new 2"]
        assert len(reads) < 100


async def test_a_member_that_begins_beyond_the_newest_message_begins_anew(server):
    reads = count_reads(server._hub.kept.store)
    room = server.room("lobby")
    await room.keep("say", "one")
    async with connect(server, "ann") as one, connect(server, "bob") as other:
        heard = [], []
        for client, log in zip((one, other), heard, strict=True):
            client.channel.on("say", log.append)
        for name in ("ann", "bob"):
            (conn,) = server.clients[name].conns.values()
            await room.add(conn, after=2**70)
        await room.keep("say", "two")
        await until(lambda: heard == (["one", "two"], ["one", "two"]))
    assert len(reads) < 20


async def test_rooms_of_any_name_are_left_when_the_server_has_inboxes(server):
    async with connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        for name in (("chat", 7), "x" * 5000, None):
            server.room(name).add(conn)
        server.room(None).discard(conn)
    await until(lambda: not server.clients)


async def test_a_connection_that_enters_twice_at_once_is_told_twice(server):
    room = server.room("lobby")
    for n in range(3):
        await room.keep("say", n)
    async with connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        async with asyncio.timeout(10):
            await asyncio.gather(*(room.add(conn, last=3) for _ in range(3)))


async def test_a_store_that_is_away_when_a_device_comes_is_read_later(monkeypatch):
    monkeypatch.setattr("wse.core.hub.kept.inboxes.RETRY_AFTER", 0.05)
    store = MemoryStore()
    async with WseServer(accept_all, inbox=Inbox(store=store, new_device="none")) as server:
        await server.keep("ann", "note", "old")
        cursor = store.cursor

        async def away(*args, **options):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)

        store.cursor = away
        async with connect(server, "ann", inbox="phone") as client:
            phone = Kept(client)
            store.cursor = cursor
            await until(lambda: server._hub.kept._feeds)
            await server.keep("ann", "note", "new")
            await phone.until(1)
            assert phone == [(2, "new")]
            await client.close()
        await until(lambda: store._boxes["u.sann"].cursors == {"phone": 2})


async def test_what_was_handled_before_a_reconnection_is_reported_after_it(server):
    store = server._hub.kept.store
    await server.keep("ann", "note", 1)
    async with connect(server, "ann", inbox="phone", reconnect=True) as client:
        phone = Kept(client)
        await phone.until(1)
        client._connections.session.link.abort()
        await client.when.closed.wait(10)
        await client.wait_ready(10)
        await client.close()
    await until(lambda: store._boxes["u.sann"].cursors == {"phone": 1})


async def test_a_user_who_is_dropped_while_the_inbox_is_read_gets_no_welcome(server):
    store, go_on = server._hub.kept.store, asyncio.Event()
    cursor = store.cursor

    async def slow(*args, **options):
        await go_on.wait()
        return await cursor(*args, **options)

    store.cursor = slow
    client = WseClient("ws://wse", identity="ann", inbox="phone", connector=MemoryConnector(server))
    connecting = asyncio.ensure_future(client.connect())
    await until(lambda: server._hub.inboxes._finding)
    server.drop_client("ann")
    go_on.set()
    with pytest.raises(WseError):
        await connecting
    assert "ann" not in server.clients


# Peers that do what they must not.


async def welcomed(run, ext, **options):
    server = make_server(inbox=Inbox(), **options)
    place = await run(server)
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann", "meta": {}, "ext": ext})
    return server, peer


async def heard(peer, number):
    """The peer has got the message with this number."""
    while (message := await peer.hear())[0] != "~wse:kept" or message[1][0] != number:
        pass


@pytest.mark.parametrize(
    "params",
    [None, 7, [], {}, {"device": ""}, {"device": 7}, {"device": "x" * 1000}, {"device": "a", "after": -1},
     {"device": "a", "after": "7"}, {"device": "a", "after": True}, {"device": "a", "after": 2**70}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("run", ["memory"], indirect=True)
async def test_an_offer_that_makes_no_sense_is_declined(run, params):
    server, peer = await welcomed(run, {"inbox": params})
    assert (await peer.hear())[0] == "~wse:welcome"
    await server.keep("ann", "note", 1)
    assert await peer.hear() == ["note", 1, None]


@pytest.mark.parametrize("run", ["memory"], indirect=True)
async def test_the_answer_and_the_messages_are_those_of_the_contract(run):
    server, peer = await welcomed(run, {"inbox": {"device": "phone"}})
    kind, ext, _ = await peer.hear()
    assert kind == "~wse:ext"
    assert ext["inbox"].pop("epoch")
    assert ext == {"inbox": {"from": 1, "to": 0, "lost": 0}}
    assert (await peer.hear())[0] == "~wse:welcome"
    await server.keep("ann", "note", {"a": 1})
    kind, (number, type_, payload, at), stamp = await peer.hear()
    assert (kind, number, type_, payload, stamp) == ("~wse:kept", 1, "note", {"a": 1}, None)
    assert abs(at - time.time()) < 600
    await peer.say("~wse:seen", 1)
    store = server._hub.kept.store
    await until(lambda: store._boxes["u.sann"].cursors == {"phone": 1})


@pytest.mark.parametrize("number", [-1, "1", None, [1], True, 1.5, 2**70], ids=str)
@pytest.mark.parametrize("run", ["memory"], indirect=True)
async def test_a_device_that_has_seen_what_it_cannot_have_seen_is_closed(run, number):
    server, peer = await welcomed(run, {"inbox": {"device": "phone"}})
    await server.keep("ann", "note", 1)
    await heard(peer, 1)
    await peer.say("~wse:seen", number)
    assert await peer.closed() == (1000, "wse.protocol-error")
    assert server._hub.kept.store._boxes["u.sann"].cursors == {"phone": 0}


@pytest.mark.parametrize("run", ["memory"], indirect=True)
async def test_a_device_has_not_seen_what_was_not_sent_to_it(run):
    server, peer = await welcomed(run, {"inbox": {"device": "phone"}})
    await server.keep("ann", "note", 1)
    await heard(peer, 1)
    await peer.say("~wse:seen", 2**40)
    await until(lambda: server._hub.kept.store._boxes["u.sann"].cursors == {"phone": 1})


@pytest.mark.parametrize("run", ["memory"], indirect=True)
async def test_a_device_that_repeats_itself_costs_one_write(run):
    server, peer = await welcomed(run, {"inbox": {"device": "phone"}})
    for n in range(100):
        await server.keep("ann", "note", n)
    await heard(peer, 100)
    for n in (5, 5, 3, 90, 7, 100, 1):
        await peer.say("~wse:seen", n)
    await until(lambda: server._hub.kept.store._boxes["u.sann"].cursors == {"phone": 100})


def test_limits_of_an_inbox_are_checked():
    for wrong in ({"messages": 0}, {"bytes": -1}, {"ttl": 0}, {"devices": 0}, {"message": 0}, {"new_device": "some"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Inbox(**wrong)
    with pytest.raises(ValueError, match="sqlite"):
        WseServer(accept_all, inbox=Inbox(store="redis://x"))
