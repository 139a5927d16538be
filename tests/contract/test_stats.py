"""What a server counts is what happened, on every transport."""

import asyncio

import pytest

from support.net import TIMEOUT, ServerLog, make_server, soon
from wse import WseError


async def until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


async def test_stats_count_what_happened_and_tell_what_is(run):
    server = make_server(conns_per_user=2)
    server.register("echo", lambda conn, payload: payload)
    gate = asyncio.Event()

    @server.register("wait")
    async def wait(conn, payload):
        await gate.wait()

    @server.register("fail")
    def fail(conn, payload):
        raise ValueError(payload)

    server.channel.on("chat", lambda conn, payload: server.broadcast("chat", payload))
    log = ServerLog(server)
    place = await run(server)
    fresh = server.stats()
    assert (fresh.connections, fresh.opened, fresh.messages_in, fresh.bytes_out) == (0, 0, 0, 0)
    assert (fresh.queued_bytes, fresh.queued_bytes_max) == (0, 0)

    peer = await place.peer()
    await until(lambda: server.stats().unauthenticated == 1)
    client = await place.connect("ann")
    client.register("info", lambda payload: payload)
    other = await place.connect("ann")
    await peer.login("ben")
    heard = []
    for listener in (client, other):
        listener.channel.on("chat", heard.append)
    await peer.say("chat", "x" * 100)
    assert (await peer.hear())[0] == "chat"
    await until(lambda: len(heard) == 2)
    for n in range(3):
        assert await soon(client.call("echo", n)) == n
    with pytest.raises(WseError, match="failed"):
        await soon(client.call("fail", "x"))
    (conn, _) = server.clients["ann"].conns.values()
    assert await soon(conn.call("info", 1)) == 1
    waiting = asyncio.ensure_future(client.call("wait"))
    asked = asyncio.ensure_future((await log.conn("ben")).call("never"))
    await until(lambda: server.stats().running_handlers == 1)

    stats = server.stats()
    assert (stats.connections, stats.unauthenticated, stats.identities, stats.opened) == (3, 0, 2, 3)
    assert (stats.messages_in, stats.messages_out) == (1, 3)
    assert (stats.calls_in, stats.calls_out) == (5, 2)
    assert (stats.pending_calls, stats.running_handlers) == (1, 1)
    assert stats.errors == {"wse.server.rp.failed": 1}
    assert stats.bytes_in > 100
    assert stats.bytes_out > 300
    assert stats.closes == {}
    assert stats.dropped == stats.limits == {}

    gate.set()
    await soon(waiting)
    await client.close()
    await peer.close(4321, "no reason of wse's own")
    await log.until("disconnected", "ben")
    await until(lambda: server.stats().connections == 1)
    with pytest.raises(WseError, match="disconnect"):
        await soon(asked)
    stats = server.stats()
    assert (stats.connections, stats.identities, stats.pending_calls, stats.running_handlers) == (1, 1, 0, 0)
    assert sum(stats.closes.values()) == sum(stats.close_codes.values()) == 2
    assert set(stats.closes) <= {"", "other", "wse.by-client"}


async def test_uptime_is_that_of_the_present_run():
    server = make_server()
    assert server.stats().uptime == 0
    async with server:
        assert server.stats().uptime >= 0
        await until(lambda: server.stats().uptime > 0)
    assert server.stats().uptime == 0
