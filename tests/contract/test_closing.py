"""Close codes and reasons, exactly, on both sides (WIRE.md sections 1 and 5)."""

import asyncio

import pytest

from support.net import ClientLog, Log, ServerLog, hi, make_server, soon
from wse import CloseReason, ReadyState

LONG = "é" * 61 + "!"  # 123 bytes, as many as a close frame takes


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, "wse.by-server"), (1000, ""), (1001, "away"), (1008, "rules"), (4001, "naïve ☕ 🐍"), (4999, LONG)],
)
async def test_the_server_s_code_and_reason_arrive_exactly(run, code, reason):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    heard = ClientLog(client)
    conn = await log.conn("ann")
    conn.drop(reason, code)
    assert await heard.until("closed") == ("closed", code, reason)
    assert log.all("disconnected") == [("ann", code, reason)]
    assert log.all("left") == [("ann", code, reason)]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "away"), (4001, "naïve ☕ 🐍"), (3000, LONG)])
async def test_the_peer_s_code_and_reason_arrive_exactly(run, code, reason):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    await peer.close(code, reason)
    heard = place.hears_close(code, reason)
    assert await log.until("disconnected") == ("disconnected", "ann", *heard)
    assert await log.until("left") == ("left", "ann", *heard)
    assert conn.ready_state is ReadyState.CLOSED
    assert server.clients == {}


async def test_a_raw_peer_sees_the_server_s_code_and_reason(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    (await log.conn("ann")).drop("naïve ☕", 4001)
    assert await peer.closed() == (4001, "naïve ☕")


async def test_a_peer_that_vanishes_is_closed_with_1006(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await log.until("connected")
    peer.vanish()
    assert await log.until("disconnected") == ("disconnected", "ann", 1006, "")
    assert log.all("left") == [("ann", 1006, "")]


async def test_a_client_closes_with_1000_by_client(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    heard = ClientLog(client)
    await soon(client.close())
    assert heard.all("closed") == [(1000, "wse.by-client")]
    assert await log.until("disconnected") == ("disconnected", "ann", *place.hears_close(1000, "wse.by-client"))


async def test_a_client_s_own_reason_arrives(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    await soon(client.close("über ☕"))
    assert await log.until("disconnected") == ("disconnected", "ann", *place.hears_close(1000, "über ☕"))


async def test_a_server_that_closes_tells_clients_1012_by_server(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client, peer, stranger = await place.connect(), await place.peer(), await place.peer()
    await peer.login("ben")
    heard = ClientLog(client)
    await soon(server.close())
    assert await heard.until("closed") == ("closed", 1012, "wse.by-server")
    assert await peer.closed() == (1012, "wse.by-server")
    assert await stranger.closed() == (1012, "wse.by-server")
    assert sorted(log.all("left")) == [("ann", 1012, "wse.by-server"), ("ben", 1012, "wse.by-server")]
    assert server.clients == {}


async def test_dropping_a_user_disconnects_all_devices_and_left_fires_once(run):
    server = make_server(conns_per_user=3)
    log = ServerLog(server)
    place = await run(server)
    peers = [await place.peer() for _ in range(3)]
    for n, peer in enumerate(peers):
        await peer.login(meta={"n": n})
    other = await place.peer()
    await other.login("ben")
    server.drop_client("ann", "moved ☕")
    server.drop_client("nobody")
    for peer in peers:
        assert await peer.closed() == (1000, "moved ☕")
    assert log.all("disconnected") == [("ann", 1000, "moved ☕")] * 3
    assert log.all("left") == [("ann", 1000, "moved ☕")]
    assert list(server.clients) == ["ben"]


async def test_dropping_a_user_says_by_server_unless_told(run):
    server = make_server()
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    server.drop_client("ann")
    assert await peer.closed() == (1000, CloseReason.BY_SERVER)


async def test_dropping_an_identity_says_by_server(run):
    server = make_server()
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    server.clients["ann"].drop()
    assert await peer.closed() == (1000, "wse.by-server")


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, ""), (1015, ""), (999, ""), (2000, ""), (5000, "")])
async def test_a_code_that_may_not_travel_is_rejected_at_once(run, code, reason):
    server = make_server()
    log = ServerLog(server)
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    client = await place.connect()
    conn = await log.conn("ann")
    with pytest.raises(ValueError, match="close code"):
        conn.drop(reason, code)
    assert await client.call("echo", 1) == 1


async def test_a_reason_too_long_for_a_frame_is_rejected_at_once(run):
    server = make_server()
    log = ServerLog(server)
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    client = await place.connect()
    conn = await log.conn("ann")
    for drop in (conn.drop, conn.client.drop, lambda reason: server.drop_client("ann", reason)):
        with pytest.raises(ValueError, match="123 bytes"):
            drop(LONG + "x")
    assert await client.call("echo", 1) == 1


async def test_only_the_first_close_counts(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    conn.drop("first", 4001)
    conn.drop("second", 4002)
    assert await peer.closed() == (4001, "first")
    assert log.all("disconnected") == [("ann", 4001, "first")]


async def test_what_was_sent_before_a_drop_arrives_before_the_close(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    for n in range(100):
        conn.send("n", n)
    conn.send("big", "x" * 300_000)
    conn.drop("bye")
    assert [(await peer.hear())[1] for _ in range(100)] == list(range(100))
    assert (await peer.hear())[0] == "big"
    assert await peer.closed() == (1000, "bye")


async def test_what_the_client_sent_before_its_close_arrives(run):
    server = make_server()
    log = ServerLog(server)
    server.channel.on("n", lambda conn, payload: log.add("n", payload))
    place = await run(server)
    client = await place.connect()
    for n in range(100):
        client.send("n", n)
    await soon(client.close())
    await log.until("disconnected")
    assert log.all("n") == [(n,) for n in range(100)]


async def test_what_arrives_after_a_drop_is_not_heard(run):
    server = make_server()
    log = ServerLog(server)
    server.channel.on("n", lambda conn, payload: log.add("n", payload))
    server.channel.on("end", lambda conn, payload: conn.drop())
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await peer.say("n", 1)
    await peer.say("end")
    await peer.say("n", 2)
    await peer.say("end")
    assert await peer.closed() == (1000, "wse.by-server")
    assert log.all("n") == [(1,)]
    assert log.all("disconnected") == [("ann", 1000, "wse.by-server")]


async def test_a_stranger_that_leaves_is_nobody_s_event(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.close()
    await (await place.peer()).login("ben")
    assert log.names == ["joined", "connected"]


async def test_a_client_whose_identify_still_runs_may_leave(run):
    handshakes = asyncio.Queue()
    server = make_server(handshakes.put_nowait)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    await soon(handshakes.get())
    await peer.close(4001, "bye")
    assert log.entries == []


async def test_disconnected_sees_the_user_while_others_remain_and_left_comes_last(run):
    server = make_server(conns_per_user=2)
    log = Log()
    server.when.disconnected(lambda conn, code, reason: log.add("disconnected", len(conn.client.conns)))
    server.when.left(lambda identity, code, reason: log.add("left", identity.cid, dict(identity.conns)))
    place = await run(server)
    first, second = await place.peer(), await place.peer()
    await first.login()
    await second.login()
    await first.close()
    await log.until("disconnected")
    await second.close()
    await log.until("left")
    assert log.entries == [("disconnected", 1), ("disconnected", 0), ("left", "ann", {})]


async def test_a_handler_may_drop_its_own_connection(run):
    server = make_server()
    log = ServerLog(server)

    @server.register("leave")
    def leave(conn, payload):
        conn.drop("you asked", 4001)

    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await peer.say("leave", None, 1)
    assert await peer.closed() == (4001, "you asked")
    assert log.all("error") == []
