"""`wse.testing`, as users' own tests use it."""

import asyncio

import pytest

from support.net import TIMEOUT, Log, ServerLog, make_server, soon
from wse import (
    ClientStatus,
    ErrorCode,
    Heartbeat,
    Limits,
    ReadyState,
    WseError,
    WseJSON,
    WseMsgpack,
    WseServer,
    current_call,
)
from wse.testing import Clock, connect


async def test_it_yields_a_connected_client_and_closes_it():
    server = make_server(lambda auth: auth.accept(auth.identity, auth.meta))
    async with connect(server, "ann", {"device": "phone"}) as client:
        assert client.status is ClientStatus.READY
        assert server.clients["ann"].meta == {"device": "phone"}
    assert client.status is ClientStatus.OFFLINE
    assert server.clients == {}


async def test_the_server_needs_neither_port_nor_start():
    server = WseServer(lambda auth: auth.accept("ann"))
    server.register("add", lambda conn, payload: sum(payload))
    async with connect(server) as client:
        assert await client.call("add", [1, 2]) == 3


async def test_messages_are_really_encoded():
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    async with connect(server, "ann") as client:
        assert await client.call("echo", (1, {2: "two"})) == [1, {"2": "two"}]
        with pytest.raises(WseError) as caught:
            await client.call("echo", object())
        assert caught.value.code == ErrorCode.RP_SEND_FAILED


async def test_handlers_of_one_end_do_not_run_in_the_call_of_the_other():
    server = make_server()
    heard = asyncio.get_running_loop().create_future()

    @server.register("start")
    async def start(conn, payload):
        conn.send("go")
        await heard

    async with connect(server, "ann") as client:

        @client.channel.on("go")
        def go(payload):
            heard.set_result(current_call().deadline)

        await soon(client.call("start", timeout=TIMEOUT))
        assert heard.result() is None


async def test_a_refusal_is_raised():
    server = make_server(lambda auth: auth.refuse())
    with pytest.raises(WseError) as caught:
        async with connect(server, "ann"):
            pytest.fail("a refused client was let in")
    assert caught.value.code == ErrorCode.NOT_AUTHORIZED


async def test_several_clients_share_the_server():
    server = make_server()
    server.channel.on("say", lambda conn, text: server.broadcast("said", [conn.cid, text]))
    log = Log()
    async with connect(server, "ann") as ann, connect(server, "ben") as ben:
        ann.channel.on("said", log.adder("ann"))
        ben.channel.on("said", log.adder("ben"))
        ann.send("say", "hello")
        await log.until("ann", ["ann", "hello"])
        await log.until("ben", ["ann", "hello"])


async def test_client_options_reach_the_client():
    server = make_server(protocol=[WseJSON(), WseMsgpack()])
    async with connect(server, "ann", protocol=WseMsgpack(), headers={"X-Token": "1"}) as client:
        assert client.protocol.name == "wse-msgpack"
        (conn,) = server.clients["ann"].conns.values()
        assert conn.protocol.name == "wse-msgpack"
        assert conn.request.headers["X-Token"] == "1"
        assert conn.request.path == "/"
        assert conn.remote_addr == ""


async def test_a_jump_stays_with_the_server_and_brings_its_path_and_query():
    server = make_server()
    async with connect(server, "ann") as client:
        await soon(client.jump("ws://testserver/room?n=1"))
        (conn,) = server.clients["ann"].conns.values()
        assert (conn.request.path, conn.request.query) == ("/room", {"n": "1"})


async def test_limits_of_both_sides_apply():
    server = make_server(limits=Limits(message_size=200))
    log = Log()
    server.when.error(log.adder("error"))
    async with connect(server, "ann") as client:
        client.when.closed(log.adder("closed"))
        client.send("big", "x" * 200)
        closed = await log.until("closed")
        assert closed[1] == 1009
        await log.until("error")


async def test_drain_returns_and_a_dropped_client_hears_so():
    server = make_server()
    log = Log()
    async with connect(server, "ann") as client:
        client.when.closed(log.adder("closed"))
        (conn,) = server.clients["ann"].conns.values()
        conn.send("n", "x" * 100)
        assert conn._session.link.buffered >= 100
        await soon(conn.drain())
        assert conn._session.link.buffered == 0
        conn.drop("enough", 4001)
        assert await log.until("closed") == ("closed", 4001, "enough")
    async with asyncio.timeout(TIMEOUT):
        while conn.ready_state is not ReadyState.CLOSED:
            await asyncio.sleep(0)


async def test_an_application_finds_the_framework_s_request_that_the_test_has_made_up():
    server = make_server(lambda auth: auth.accept(auth.request.native["user"]))
    async with connect(server, native={"user": "ann"}):
        assert list(server.clients) == ["ann"]
        (conn,) = server.clients["ann"].conns.values()
        assert conn.request.native == {"user": "ann"}
    async with connect(server, native={"user": "ben"}) as client:
        await soon(client.jump("ws://testserver/elsewhere"))
        assert list(server.clients) == ["ben"]


async def test_without_one_there_is_none():
    server = make_server()
    async with connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        assert conn.request.native is None


# A network that fails, and time that passes.


RETURNING = {"reconnect": True, "resume": True}


async def test_a_cut_is_noticed_by_both_sides_and_loses_what_was_on_its_way():
    server = make_server()
    log = ServerLog(server)
    server.channel.on("chat", log.adder("chat"))
    clock = Clock()
    async with connect(server, "ann", clock=clock, **RETURNING) as client:
        client.send("chat", 1)
        client.link.cut()
        await soon(client.when.closed.wait())
        await log.until("detached", "ann")
        client.send("chat", 2)
        await clock.advance(5)
        await soon(client.flush())
        assert client.recovered
        assert [entry[1] for entry in log.all("chat")] == [1, 2]
        client.link.cut()
        client.link.cut()


async def test_a_server_may_fail_to_notice_a_cut():
    server = make_server()
    log = ServerLog(server)
    clock = Clock()
    async with connect(server, "ann", clock=clock, **RETURNING) as client:
        conn = await log.conn("ann")
        client.link.cut(server_notices=False)
        await soon(client.when.closed.wait())
        assert conn.attached
        await clock.advance(5)
        assert client.recovered
        assert log.all("detached") == []


async def test_a_window_ends_while_the_network_is_held():
    server = make_server()
    log = ServerLog(server)
    lost = []
    clock = Clock()
    async with connect(server, "ann", clock=clock, **RETURNING) as client:
        client.when.lost(lost.append)
        with client.link.hold():
            client.link.cut()
            await clock.advance(59)
            assert log.all("left") == []
            client.send("chat", 1)
            await clock.advance(2)
            assert len(log.all("left")) == 1
        await soon(client.wait_ready())
        assert [(loss.why, loss.unsent) for loss in lost] == [("expired", [("chat", 1)])]


async def test_a_network_that_is_held_delays_everything():
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    clock = Clock()
    async with connect(server, "ann", clock=clock) as client:
        with client.link.hold():
            early = asyncio.ensure_future(client.call("echo", 1, timeout=5))
            late = asyncio.ensure_future(client.call("echo", 2, timeout=50))
            await clock.advance(10)
        assert await soon(late) == 2
        with pytest.raises(WseError, match="timeout"):
            await early


async def test_two_sides_that_have_confirmed_everything_are_silent():
    server = make_server()
    log = ServerLog(server)
    server.channel.on("chat", log.adder("chat"))
    clock = Clock()
    async with connect(server, "ann", clock=clock, heartbeat=Heartbeat(interval=0), **RETURNING) as client:
        conn = await log.conn("ann")
        client.send("chat", 1)
        conn.send("news", 1)
        await clock.advance(10)
        before = server.stats().bytes_in
        await clock.advance(1000)
        assert server.stats().bytes_in == before
        assert conn.undelivered() == []


async def test_the_clock_moves_the_end_of_a_session():
    clock = Clock()
    server = make_server(lambda auth: auth.accept("ann", expires=clock.time() + 100))
    async with connect(server, "ann", clock=clock) as client:
        await clock.advance(99)
        assert client.status is ClientStatus.READY
        await clock.advance(2)
        assert client.status is ClientStatus.OFFLINE


async def test_a_clock_runs_what_is_due_in_its_order():
    clock = Clock()
    start, ran = clock.time(), []
    clock.call_later(2, ran.append, "two")
    clock.call_later(1, lambda: (ran.append("one"), clock.call_later(0.5, ran.append, "one and a half")))
    clock.call_later(1.2, ran.append, "never").cancel()
    await clock.advance(3)
    assert ran == ["one", "one and a half", "two"]
    assert clock.time() == start + 3


async def test_streams_go_on_over_cuts_every_item_once_in_both_directions():
    server = make_server()
    log = ServerLog(server)

    async def numbers(*args):
        for n in range(300):
            yield n

    server.register("numbers", numbers)
    clock = Clock()
    async with connect(server, "ann", clock=clock, **RETURNING) as client:
        client.register("numbers", numbers)
        conn = await log.conn("ann")

        async def read(side):
            seen = []
            async with side.stream("numbers", window=8) as items:
                async for item in items:
                    seen.append(item)
                    if side is client and item % 20 == 7:
                        client.link.cut()
            return seen

        reading = asyncio.gather(read(client), read(conn))
        async with asyncio.timeout(30):
            while not reading.done():
                await clock.advance(1)
        for seen in await reading:
            assert seen == list(range(300))
        assert len(log.all("detached")) == 15
        assert client.recovered
        session = conn._session
        assert not session.tasks
        assert not session._serving.calls
