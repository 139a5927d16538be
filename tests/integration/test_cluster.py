"""Three servers on every broker: all of them have the same semantics."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from threading import Barrier

import pytest

from support.brokers import run_cluster
from support.cluster import WAIT, cluster_of, until
from support.net import RawSocket
from wse import BlockingPublisher, ErrorCode, Inbox, Limits, Publisher, WseError
from wse.core.cluster.envelope import NODE

USERS = ["ann", "b.o b", 7]
THREADS = 4
"""The number of threads that send without asyncio; `asyncio.to_thread` has at least five."""


def inside(awaitable):
    return asyncio.wait_for(awaitable, WAIT)


async def test_messages_reach_users_rooms_and_everyone_wherever_they_are(start):
    nodes = await start(conns_per_user=3)
    devices = [await nodes.device(number, cid) for number in range(3) for cid in USERS]
    for number, server in enumerate(nodes):
        room = server.room("the tea room")
        for conn in server.clients["ann"].conns.values():
            room.add(conn)
        server.broadcast("all", number)
        for cid in USERS:
            server.send(cid, "user", (cid, number))
    for device in devices:
        await until(lambda device=device: len(device.payloads("user")) == 3)
    for number, device in enumerate(devices):
        assert sorted(device.payloads("all")) == [0, 1, 2]
        assert sorted(device.payloads("user")) == [[USERS[number % 3], sender] for sender in range(3)]
    assert await inside(nodes[1].room("the tea room").members()) == {"ann"}
    await until(lambda: len(devices[0].payloads("all")) == 3)
    nodes[0].room("the tea room").send("room", 1, exclude=next(iter(nodes[0].clients["ann"].conns.values())))
    for number, device in enumerate(devices):
        if number % 3 == 0 and number:
            await device.until("room", 1)
    nodes[0].broadcast("end")
    for number, device in enumerate(devices):
        await device.until("end", None)
        assert len(device.payloads("room")) == (number in (3, 6))


async def test_a_user_who_goes_and_comes_to_another_node_has_been_there_all_the_time(start):
    nodes = await start(2, leave_grace=60, conns_per_user=2)
    for number in (0, 1, 0, 1):
        device = await nodes.device(number)
        async with asyncio.timeout(WAIT):
            while len(await nodes[1 - number].devices("ann")) != 1:  # until those that have gone are away
                await asyncio.sleep(0.01)
        await inside(device.client.close())
        await until(lambda number=number: not nodes[number].clients)
        assert await inside(nodes[number].online()) == 1
    assert (nodes.fired("joined"), nodes.fired("left")) == (1, 0)
    for server in nodes:
        await inside(server.close())
    assert (nodes.fired("joined"), nodes.fired("left")) == (1, 1)


async def test_a_room_tells_who_enters_and_leaves_it_on_the_node_that_holds_the_connection(start):
    nodes = await start(conns_per_user=2)
    phone, laptop, bob = await nodes.device(0), await nodes.device(1), await nodes.device(2, "bob")
    conns = [
        next(iter(server.clients[cid].conns.values())) for server, cid in zip(nodes, ("ann", "ann", "bob"), strict=True)
    ]
    rooms = [server.room("tea") for server in nodes]
    told = []
    for number, room in enumerate(rooms):
        room.when.joined(lambda conn, number=number: told.append(("joined", number, conn)))
        room.when.left(lambda conn, number=number: told.append(("left", number, conn)))

    async def tells(*events):
        await until(lambda: len(told) >= len(events))
        assert sorted(told, key=str) == sorted([(name, number, conns[number]) for name, number in events], key=str)
        told.clear()
        for server in nodes:
            await inside(server.cluster.broker.flush())

    async def holds(*numbers):
        """Check that exactly these clients receive what any node sends to the room."""
        devices = [phone, laptop, bob]
        for sender, room in enumerate(rooms):
            room.send("room", sender)
            nodes[sender].broadcast("end", sender)
        for device in devices:
            await until(lambda device=device: len(device.payloads("end")) == 3)
        assert [sorted(device.payloads("room")) for device in devices] == [
            [0, 1, 2] if number in numbers else [] for number in range(3)
        ]
        for device in devices:
            device.entries.clear()

    rooms[0].add(conns[0].client)
    rooms[2].add(conns[2])
    await tells(("joined", 0), ("joined", 1), ("joined", 2))
    await holds(0, 1, 2)
    rooms[1].discard(conns[1])
    await tells(("left", 1))
    await holds(0, 2)
    rooms[1].add(conns[1])
    await tells(("joined", 1))
    rooms[1].discard(conns[1].client)
    await tells(("left", 0), ("left", 1))
    await holds(2)
    await bob.client.close()
    await tells(("left", 2))
    assert await inside(rooms[0].members()) == set()
    assert nodes.codes() == set()


async def test_all_that_is_sent_arrives_once_and_in_the_order_of_each_sender(start):
    nodes = await start(conns_per_user=3)
    devices = [await nodes.device(number) for number in range(3)]
    for number in range(1000):
        for sender, server in enumerate(nodes):
            server.send("ann", "say", [sender, number])
        if number % 50 == 0:
            await asyncio.sleep(0)
    for device in devices:
        await until(lambda device=device: len(device.payloads("say")) >= 3000)
        for sender in range(3):
            assert [n for who, n in device.payloads("say") if who == sender] == list(range(1000))


async def test_what_is_sent_after_the_welcome_arrives(start):
    nodes = await start(2)
    for number in range(20):
        device = await nodes.device(0, f"user {number}")
        nodes[1].send(f"user {number}", "first", number)
        await device.until("first", number)


async def test_a_user_is_one_in_the_whole_cluster(start):
    nodes = await start(conns_per_user=2)
    old, middle, new = [await nodes.device(number) for number in range(3)]
    assert await old.until("closed") == ("closed", 1000, "wse.clients-concurrency")
    await nodes.device(0, 7)
    assert await inside(nodes[0].online()) == 2
    assert {cid async for cid in nodes[1].users()} == {"ann", 7}
    assert [device.node for device in await inside(nodes[0].devices("ann"))] == [
        server.cluster.node for server in nodes[1:]
    ]
    nodes[0].drop_client("ann", "enough")
    for device in middle, new:
        assert await device.until("closed") == ("closed", 1000, "enough")
    await until(lambda: nodes.fired("left", "ann"))
    assert (nodes.fired("joined", "ann"), nodes.fired("left", "ann")) == (1, 1)
    assert nodes.codes() == set()


async def test_calls_reach_devices_wherever_they_are(start):
    nodes = await start(conns_per_user=2)
    for number in (1, 2):
        device = await nodes.device(number)
        device.client.register("where", lambda payload, number=number: [number, payload])
        if number == 1:
            device.client.register("only", lambda payload: "here")
    assert await inside(nodes[0].call("ann", "where", "x", mode="all")) == [[1, "x"], [2, "x"]]
    assert await inside(nodes[0].call("ann", "where", mode="any")) == [2, None]
    assert await inside(nodes[0].call("ann", "only")) == "here"
    assert await inside(nodes[1].clients["ann"].call("where")) == [[1, None], [2, None]]
    with pytest.raises(WseError) as caught:
        await inside(nodes[0].call("ann", "absent"))
    assert caught.value.code == ErrorCode.RP_NOT_REGISTERED
    with pytest.raises(WseError) as caught:
        await inside(nodes[0].call("bob", "where"))
    assert caught.value.code == ErrorCode.CONNECTION_MISSING


async def never(payload):
    await asyncio.Future()


async def test_calls_that_nobody_waits_for_are_forgotten_where_their_devices_are(start):
    nodes = await start(2, conns_per_user=2, limits=Limits(outgoing_calls=5))
    slow, fast = await nodes.device(1), await nodes.device(1)
    slow.client.register("where", never)
    fast.client.register("where", lambda payload: "here")
    for _ in range(20):
        assert await inside(nodes[0].call("ann", "where", timeout=0)) == "here"
    await until(lambda: nodes[1].stats().pending_calls == 0)
    task = asyncio.ensure_future(nodes[0].call("ann", "where", mode="all", timeout=0))
    await until(lambda: nodes[1].stats().pending_calls == 1)
    task.cancel()
    await until(lambda: nodes[1].stats().pending_calls == 0)
    assert nodes.codes() == set()


async def test_an_error_whose_details_cannot_cross_comes_without_them(start, engine):
    nodes = await start(2, limits=Limits(message_size=16 * 1024 * 1024))
    device = await nodes.device(1, limits=Limits(message_size=16 * 1024 * 1024))

    def fail(size):
        raise WseError("app.bad", {"n": 1 << 70, "x": "x" * size}, "no")

    device.client.register("fail", fail)
    for size in (1, engine.message_size or 1):
        with pytest.raises(WseError) as caught:
            await inside(nodes[0].call("ann", "fail", size, timeout=0))
        assert (caught.value.code, caught.value.message, caught.value.details) == ("app.bad", "no", {})
    assert nodes.codes() == set()


async def test_names_that_are_too_many_for_one_message_cross_in_several(start):
    nodes = await start(3)
    one, two, three = nodes
    users = [frozenset(f"{number:0100}" for number in range(20_000)), frozenset(["ann"])]  # 2 MB
    for server, here in zip((two, three), users, strict=True):
        server._hub.rooms.local_users = lambda room, here=here: here
    assert await inside(one.room("tea").members()) == users[0] | users[1]
    assert nodes.codes() == set()


async def test_of_devices_that_come_at_the_same_moment_exactly_one_remains(start):
    nodes = await start(2)
    for turn in range(15):
        cid = f"user {turn}"
        devices = await asyncio.gather(
            *[nodes.device(number % 2, cid) for number in range(6)], return_exceptions=True
        )  # a device that is displaced before its welcome cannot connect
        await until(lambda cid=cid: sum(len(s.clients[cid].conns) for s in nodes if cid in s.clients) == 1)
        (device,) = await inside(nodes[0].devices(cid))
        held = [conn_id for s in nodes if cid in s.clients for conn_id in s.clients[cid].conns]
        assert held == [device.conn_id]
        assert any(not isinstance(device, BaseException) for device in devices)
        await until(lambda cid=cid: nodes.fired("joined", cid))
        assert (nodes.fired("joined", cid), nodes.fired("left", cid)) == (1, 0)
    assert nodes.codes() == set()


async def test_users_who_come_and_go_join_and_leave_as_often(start):
    nodes = await start(conns_per_user=2)

    async def visit(number):
        for turn in range(4):
            device = await nodes.device((number + turn) % 3, "ann")
            await device.client.close()

    await inside(asyncio.gather(*[visit(number) for number in range(2)]))
    await until(lambda: all(not server.clients for server in nodes))
    await until(lambda: not any(server._hub.network.presence._registrations for server in nodes))
    async with asyncio.timeout(WAIT):
        while await nodes[0].online():
            await asyncio.sleep(0.01)
    assert nodes.fired("joined", "ann") == nodes.fired("left", "ann") >= 1


async def test_without_the_engine_nodes_go_on_and_all_is_reconciled_when_it_is_back(start, engine):
    nodes = await start(2, conns_per_user=2)
    ann, bob = await nodes.device(0, "ann"), await nodes.device(1, "bob")
    gone = await nodes.device(0, "gone")
    engine.stop()
    for log in nodes.logs:
        assert (await log.until("error"))[1].code == ErrorCode.BROKER_UNAVAILABLE
    await until(lambda: not any(server.cluster.healthy for server in nodes))
    await gone.client.close()
    new = await nodes.device(0, "new")
    nodes[0].send("bob", "kept", 1)
    nodes[0].send("ann", "local", 2)
    await ann.until("local", 2)
    assert bob.entries == []
    engine.start()
    await until(lambda: bob.entries == [("kept", 1)])
    await until(lambda: nodes.fired("joined", "new") and nodes.fired("left", "gone"))
    await until(lambda: all(server.cluster.healthy for server in nodes))
    nodes[1].broadcast("again")
    for device in (ann, bob, new):
        await device.until("again", None)
    await nodes.beat()
    for server in nodes:
        server.broadcast("end")
    for device in (ann, bob, new):
        await until(lambda device=device: len(device.payloads("end")) == 2)
    ends = [("again", None), ("end", None), ("end", None)]
    assert [device.entries for device in (ann, bob, new)] == [
        [("local", 2), *ends],
        [("kept", 1), *ends],
        ends,
    ]
    assert {cid async for cid in nodes[0].users()} == {"ann", "bob", "new"}
    assert [nodes.fired("joined", cid) for cid in ("ann", "bob", "new", "gone")] == [1, 1, 1, 1]
    assert [nodes.fired("left", cid) for cid in ("ann", "bob", "new", "gone")] == [0, 0, 0, 1]


async def readiness(server):
    async with await RawSocket.open(server.url) as socket:
        status, _, _ = await socket.request("/readyz")
        return status


async def test_a_node_that_the_engine_no_longer_sends_to_is_not_ready(start):
    nodes = await start(2)
    deaf, other = nodes
    assert [await readiness(server) for server in nodes] == [200, 200]
    topic = NODE + deaf.cluster.node
    deaf.cluster.broker.unsubscribe(topic)  # so that it holds its lease, and everything seems to work
    assert (await nodes.logs[0].until("error"))[1].code == ErrorCode.BROKER_DEAF
    assert [await readiness(server) for server in nodes] == [503, 200]
    deaf.cluster.broker.subscribe(topic)
    await until(lambda: deaf.ready)
    assert await readiness(deaf) == 200
    assert other.ready


async def test_a_publisher_sends_without_being_a_server(start, engine):
    nodes = await start(2)
    ann, bob = await nodes.device(0, "ann"), await nodes.device(1, "bob")
    nodes[1].room("tea").add(nodes[1].clients["bob"])
    await nodes[1].cluster.broker.flush()
    async with Publisher(engine.broker()) as publisher:
        publisher.send("ann", "user", 1)
        publisher.broadcast("all", 2, exclude="ann")
        publisher.room("tea").send("room", 3)
        publisher.room("tea").send("not for bob", 4, exclude="bob")
        await publisher.flush()
        publisher.drop_client("ann", "bye")
    assert await ann.until("closed") == ("closed", 1000, "bye")
    await bob.until("room", 3)
    assert [entry for entry in ann.entries if entry[0] != "closed"] == [("user", 1)]
    assert bob.entries == [("all", 2), ("room", 3)]
    await until(lambda: nodes.fired("left", "ann"))
    assert {server.cluster.node for server in nodes} == await inside(nodes[0].cluster.broker.nodes())
    assert await inside(nodes[0].online()) == 1


async def test_a_publisher_calls_and_counts_users(engine, start):
    nodes = await start(2, conns_per_user=2)
    ann, ann_too = await nodes.device(0, "ann"), await nodes.device(1, "ann")
    await nodes.device(1, "bob")
    for device, name in ((ann, "first"), (ann_too, "second")):
        device.client.register("name", lambda payload, name=name: [name, payload])
        device.client.register("never", lambda payload: asyncio.Event().wait())

    async with Publisher(engine.broker()) as publisher:
        await until_agreed(publisher.online, 2)
        assert [device.cid for device in await publisher.devices("ann")] == ["ann", "ann"]
        assert await inside(publisher.call("ann", "name", 1, mode="all")) == [["first", 1], ["second", 1]]
        assert await inside(publisher.call("ann", "name", 2, mode="any")) == ["second", 2]
        assert (await inside(publisher.call("ann", "name", 3)))[1] == 3
        for cid, name, timeout, code in (
            ("ann", "nothing", None, ErrorCode.RP_NOT_REGISTERED),
            ("ann", "never", 0.05, ErrorCode.RP_TIMEOUT),
            ("cyd", "name", None, ErrorCode.CONNECTION_MISSING),
            ("ann", "~wse:hi", None, ErrorCode.PROTOCOL_VIOLATION),
        ):
            with pytest.raises(WseError) as caught:
                await inside(publisher.call(cid, name, timeout=timeout))
            assert caught.value.code == code
        with pytest.raises(ValueError, match="mode must be"):
            await publisher.call("ann", "name", mode="some")
        waiting = asyncio.ensure_future(publisher.call("ann", "never"))
        await until(lambda: publisher._rpc.waiting)
    with pytest.raises(WseError) as caught:
        await inside(waiting)
    assert caught.value.code == ErrorCode.RP_DISCONNECT


async def test_a_call_of_a_publisher_is_not_given_up_because_it_has_no_lease(engine, start):
    nodes = await start(1)
    ann = await nodes.device(0, "ann")
    asked, answer = asyncio.Event(), asyncio.Event()

    async def ask(payload):
        asked.set()
        await answer.wait()
        return "at last"

    ann.client.register("ask", ask)
    async with Publisher(engine.broker()) as publisher:
        waiting = asyncio.ensure_future(publisher.call("ann", "ask"))
        await inside(asked.wait())
        node = nodes[0]._hub.network
        for _ in range(3):
            node.rpc.alive(await node.broker.nodes())
        answer.set()
        assert await inside(waiting) == "at last"


async def until_agreed(ask, answer):
    """Wait until an async question has this answer."""
    async with asyncio.timeout(WAIT):
        while await ask() != answer:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_code_without_asyncio_sends_from_any_thread(kind, request):
    async for engine in run_cluster(kind, request):
        async with cluster_of([engine.broker()]) as nodes:
            ann = await nodes.device(0, "ann")
            nodes[0].room("tea").add(nodes[0].clients["ann"])
            publisher = BlockingPublisher(engine.engine.url(engine.prefix))
            together = Barrier(THREADS)

            def work(thread, publisher=publisher, together=together):
                together.wait(WAIT)
                for number in range(50):
                    publisher.send("ann", "user", [thread, number])
                publisher.broadcast("all", thread)
                publisher.room("tea").send("room", thread)

            ann.client.register("name", lambda payload: f"Ann {payload}")

            def ask(publisher=publisher):
                calls = [publisher.call("ann", "name", 1), publisher.call("ann", "name", 2, mode="all")]
                with pytest.raises(WseError) as caught:
                    publisher.call("bob", "name")
                return calls, caught.value.code, publisher.online(), [d.cid for d in publisher.devices("ann")]

            answers = (["Ann 1", ["Ann 2"]], ErrorCode.CONNECTION_MISSING, 1, ["ann"])
            assert await inside(asyncio.to_thread(ask)) == answers

            def end(publisher=publisher):
                with publisher:
                    publisher.close()
                    publisher.drop_client("ann", "bye")

            await inside(asyncio.gather(*[asyncio.to_thread(work, thread) for thread in range(THREADS)]))
            await inside(asyncio.to_thread(end))
            assert await ann.until("closed") == ("closed", 1000, "bye")
            for thread in range(THREADS):
                assert [number for who, number in ann.payloads("user") if who == thread] == list(range(50))
            assert sorted(ann.payloads("all")) == sorted(ann.payloads("room")) == list(range(THREADS))
            assert len(ann.entries) == THREADS * 52 + 1
            engine.stop()
            with pytest.raises(WseError) as caught:
                await inside(asyncio.to_thread(publisher.send, "ann", "user"))
            assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
            engine.start()


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_code_without_asyncio_keeps_messages_for_users_and_rooms(kind, request):
    async for engine in run_cluster(kind, request):
        with BlockingPublisher(engine.engine.url(engine.prefix), inbox=Inbox(message=100)) as publisher:

            def keep(publisher=publisher):
                room = publisher.room("tea")
                numbers = [publisher.keep("ann", "note", number, ttl=60) for number in range(3)]
                repeated = [publisher.keep("ann", "note", 3, key="k"), publisher.keep("ann", "note", 3, key="k")]
                with pytest.raises(WseError) as caught:
                    publisher.keep("ann", "note", "x" * 1000)
                return numbers, repeated, room.keep("say", "hello"), caught.value.code

            answers = ([1, 2, 3], [4, 4], 1, ErrorCode.LIMIT_EXCEEDED)
            assert await inside(asyncio.to_thread(keep)) == answers
        async with cluster_of([engine.broker()], inbox=Inbox()) as nodes:
            assert [message.payload for message in await nodes[0].room("tea").history(last=5)] == ["hello"]
            ann = await nodes.device(0, "ann", inbox="phone")
            await until(lambda ann=ann: ann.payloads("note") == [0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_a_publisher_keeps_with_the_limits_of_the_servers(kind, request):
    async for engine in run_cluster(kind, request):
        async with (
            Publisher(engine.broker()) as publisher,
            AsyncExitStack() as stack,
        ):
            assert await publisher.keep("bob", "note", "before any server") == 1
            inbox = Inbox(messages=2000, message=100, undelivered=0.3)
            nodes = await stack.enter_async_context(cluster_of([engine.broker()], inbox=inbox))
            room = nodes[0].room("tea")
            for start in range(0, 1100, 100):
                await inside(asyncio.gather(*[room.keep("say", number) for number in range(start, start + 100)]))
            lost = []
            nodes[0].when.undelivered(lambda *message, lost=lost: lost.append(message))
            assert await publisher.room("tea").keep("say", "more") == 1101
            assert len(await room.history(last=2000)) == 1101
            with pytest.raises(WseError, match=r"and Inbox\.message allows 100"):
                await publisher.keep("ann", "note", "x" * 100)
            await publisher.keep("ann", "note", 1)
            await until(lambda lost=lost: lost == [("ann", "note", 1)])


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_all_arrives_that_a_process_sends_and_one_that_was_forked_from_it_meanwhile(kind, request):
    program = """
import gc, os, signal, sys, threading
from wse import BlockingPublisher

publisher = BlockingPublisher(sys.argv[1])
half_sent = threading.Event()

def send(who):
    for number in range(100):
        publisher.send("ann", who, number)
        if number == 50:
            half_sent.set()

thread = threading.Thread(target=send, args=("parent",))
thread.start()
half_sent.wait()
if not os.fork():
    signal.alarm(20)  # if it hangs
    send("child")
    gc.collect()
    sys.exit()
assert os.wait()[1] == 0
thread.join()
publisher.send("ann", "parent", 100)
publisher.close()
"""
    async for engine in run_cluster(kind, request):
        async with cluster_of([engine.broker()]) as nodes:
            ann = await nodes.device(0, "ann")
            url = engine.engine.url(engine.prefix)
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, url)
            try:
                assert await inside(process.wait()) == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await until(lambda ann=ann: len(ann.entries) >= 201)
            assert ann.payloads("parent") == list(range(101))
            assert ann.payloads("child") == list(range(100))
