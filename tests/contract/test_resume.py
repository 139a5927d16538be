"""Sessions that outlive their connection, with real clients, on every transport (WIRE.md section 7, `resume`)."""

from __future__ import annotations

import json

import pytest

from support.net import Log, ServerLog, make_server, soon
from support.resume import RETURNING, Traffic, cut, cut_unnoticed, session_of, until
from wse import ErrorCode, Resume, WseError
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.testing import connect


async def test_everything_arrives_once_and_in_order_over_cuts(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = place.client(identity="ann", **RETURNING)
    traffic = Traffic(server, client)
    await soon(client.connect())
    conn = await log.conn("ann")
    await traffic.run(conn, 300, cut, every=30)
    assert traffic.events.all("resumed")
    assert len(traffic.events.all("ready")) == 1
    assert [name for name in log.names if name in ("joined", "left", "connected", "disconnected")] == [
        "joined",
        "connected",
    ]
    assert client.recovered


async def test_a_client_takes_its_session_back_from_a_socket_that_the_server_believes_in(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = place.client(identity="ann", **RETURNING)
    traffic = Traffic(server, client)
    await soon(client.connect())
    conn = await log.conn("ann")
    old = []

    def disturb(client):
        if len(old) < 3 and client.status == "READY":
            old.append(cut_unnoticed(client))

    await traffic.run(conn, 100, disturb, every=20)
    assert old
    assert "left" not in log.names
    await until(lambda: not server._hub.sockets.leftovers)
    assert conn.attached


async def test_messages_and_calls_wait_for_the_return(run):
    server = make_server()
    log = ServerLog(server)
    server.register("add", lambda conn, payload: sum(payload))
    up = []
    server.channel.on("up", lambda conn, n: up.append(n))
    place = await run(server)
    client = await place.connect(**RETURNING)
    client.register("name", lambda payload: f"client {payload}")
    conn = await log.conn("ann")
    cut(client)
    client.send("up", 1)
    call = client.call("add", [1, 2])
    client.send("up", 2)
    assert await soon(call) == 3
    await soon(client.flush())
    assert up == [1, 2]
    cut(client)
    await until(lambda: not conn.attached or client.status == "READY")
    assert await soon(conn.call("name", 1)) == "client 1"


async def test_a_user_who_stays_away_leaves_when_the_window_ends(run):
    server = make_server(resume=Resume(window=0.2))
    log = ServerLog(server)
    up = []
    server.channel.on("up", lambda conn, n: up.append(n))
    place = await run(server)
    gate = []
    client = place.client(identity=lambda: gate[0]() if gate else "ann", **RETURNING)
    lost = []
    client.when.lost(lost.append)
    await soon(client.connect())
    conn = await log.conn("ann")
    client.send("up", 1)
    await soon(client.flush())

    async def closed_gate():
        client.send("up", 2)
        await log.until("left", "ann")
        gate.clear()
        return "ann"

    gate.append(closed_gate)
    call = soon(client.call("never", 1, timeout=0))
    cut(client)
    with pytest.raises(WseError) as caught:
        await call
    await until(lambda: lost)
    assert lost[0].why == "expired"
    assert caught.value.code in (ErrorCode.RP_DISCONNECT, ErrorCode.RP_NOT_REGISTERED)
    assert ("up", 2) in [*lost[0].unsent, *lost[0].uncertain]
    assert ("up", 1) not in [*lost[0].unsent, *lost[0].uncertain]
    assert len(log.all("left")) == 1
    assert not client.recovered
    await until(lambda: client.status == "READY")
    lost[0].resend(uncertain=True)
    await soon(client.flush())
    assert up == [1, 2]
    assert conn.undelivered() == []


async def test_a_device_that_is_dropped_while_away_learns_it_and_stays_away(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    gate = []

    async def identity():
        if gate:
            await log.until("left")
        return "ann"

    client = place.client(identity=identity, **RETURNING)
    closes = []
    client.when.closed(lambda code, reason: closes.append((code, reason)))
    await soon(client.connect())
    conn = await log.conn("ann")
    gate.append(1)
    cut(client)
    await until(lambda: not conn.attached)
    server.drop_client("ann", "banned", 4001)
    await soon(client.wait_closed())
    assert closes[-1] == (4001, "banned")


async def test_a_close_of_the_application_ends_the_session_at_once(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect(**RETURNING)
    lost = []
    client.when.lost(lost.append)
    await soon(client.close())
    assert lost == []
    if place.hears_close(1000, "wse.by-client")[0] == 1000:  # elsewhere it looks like a lost connection
        await log.until("left", "ann")


async def test_a_server_that_keeps_no_sessions_is_used_without(run):
    server = make_server(resume=False)
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect(**RETURNING)
    ready = []
    client.when.ready(ready.append)
    with pytest.raises(WseError) as caught:
        await client.flush()
    assert caught.value.code == ErrorCode.UNSUPPORTED
    session_of(client).link.abort()
    await log.until("left", "ann")
    await until(lambda: len(ready) == 2)
    assert not client.recovered


async def test_what_a_raw_client_hears_when_it_comes_back(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann", "ext": {"resume": {}}})
    kind, ext, _ = await peer.hear()
    ticket = ext["resume"]
    assert kind == "~wse:ext"
    assert (await peer.hear())[0] == "~wse:welcome"
    conn = await log.conn("ann")
    conn.send("chat", 1)
    assert await peer.hear() == ["chat", 1, None]
    conn.send("chat", 2)
    await peer.say("up", 1)
    await peer.say("~wse:ask")
    heard = [await peer.hear() for _ in range(2)]
    assert heard == [["chat", 2, None], ["~wse:ack", 1, None]]
    peer.vanish()
    new = await place.peer()
    claim = {"id": ticket["id"], "key": ticket["key"], "got": 1, "sent": [2, 1]}
    await new.send(json.dumps(["~wse:hi", {"identity": "ann", "ext": {"resume": claim}}, None]))
    assert await new.hear() == ["~wse:ext", {"resume": {"id": ticket["id"], "got": 1}}, None]
    assert (await new.hear())[0] == "~wse:welcome"
    assert await new.hear() == ["chat", 2, None]


async def test_a_node_of_a_cluster_keeps_the_sessions_of_its_own_clients():
    cluster = MemoryCluster()
    one, two = (make_server(broker=MemoryBroker(cluster)) for _ in range(2))
    log, other = ServerLog(one), ServerLog(two)
    async with one, two, connect(one, "ann", **RETURNING) as client:
        heard = Log()
        client.channel.on("news", heard.adder("news"))
        await log.until("connected", "ann")
        two.send("ann", "news", 1)
        await heard.until("news", 1)
        with client.link.hold():
            client.link.cut()
            await log.until("detached", "ann")
            two.send("ann", "news", 2)
            two.broadcast("news", 3)
            conn = await log.conn("ann")
            await until(lambda: len(conn.undelivered()) >= 2)
            assert [device.cid for device in await two.devices("ann")] == ["ann"]
        await heard.until("news", 3)
        assert [n for (n,) in heard.all("news")] == [1, 2, 3]
        assert client.recovered
        client.link.cut()
        await until(lambda: len(log.all("resumed")) == 2)
    await until(lambda: log.all("left") or other.all("left"))
    assert len(log.all("joined")) + len(other.all("joined")) == 1
    assert len(log.all("left")) + len(other.all("left")) == 1
