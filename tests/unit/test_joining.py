"""A process joins its cluster when it starts, not with its first connection; a broker may be away at that time."""

import asyncio
import math
from contextlib import AsyncExitStack

import pytest

from support.net import accept_all, soon
from wse import ClusterSettings, ErrorCode, WseError, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.core.cluster import membership
from wse.server.lifecycle import started
from wse.testing import connect


@pytest.fixture
async def cluster():
    return MemoryCluster()


def make_node(cluster, **settings):
    """A server inside a web application: it has no port."""
    return WseServer(accept_all, broker=MemoryBroker(cluster), cluster=ClusterSettings(**settings))


async def begun(start, caplog):
    """The task of a start that waits for the broker."""
    starting = asyncio.ensure_future(start)
    while "trying again" not in caplog.text:
        await asyncio.sleep(0)
    return starting


async def test_a_process_without_a_connection_sends_and_calls_from_its_start_on(cluster):
    """What HTTP routes of four workers send reaches the one that has the connection."""
    workers = [make_node(cluster) for _ in range(4)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            assert not worker.ready
            await stack.enter_async_context(worker)
            assert worker.ready
        client = await stack.enter_async_context(connect(workers[0], "ann"))
        workers[0].room("tea").add(workers[0].clients["ann"])
        client.register("age", lambda _: 36)
        heard = asyncio.Queue()
        client.channel.on("news", heard.put_nowait)
        for number, worker in enumerate(workers):
            worker.send("ann", "news", number)
            worker.broadcast("news", number)
            worker.room("tea").send("news", number)
            assert [await soon(heard.get()) for _ in range(3)] == [number] * 3
            assert await soon(worker.call("ann", "age")) == 36
            assert await soon(worker.online()) == 1


async def test_a_broker_that_is_away_at_the_start_is_an_error(cluster):
    cluster.pause()
    server = make_node(cluster)
    with pytest.raises(WseError) as caught:
        await server.start()
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    assert not server.ready
    cluster.resume()
    async with server:
        assert server.ready


async def test_a_start_waits_for_a_broker_that_is_away(cluster, monkeypatch, caplog):
    monkeypatch.setattr(membership, "RETRY", membership.Backoff(base=0.01, cap=0.01))
    cluster.pause()
    server = make_node(cluster, wait_for_broker=math.inf)
    starting = await begun(server.start(), caplog)
    assert not server.ready
    with pytest.raises(WseError) as caught:
        server.send("ann", "news")
    assert caught.value.code == ErrorCode.NOT_STARTED
    cluster.resume()
    await soon(starting)
    assert server.ready
    await server.close()


async def test_a_start_waits_only_so_long(cluster, monkeypatch):
    monkeypatch.setattr(membership, "RETRY", membership.Backoff(base=0.01, cap=0.01))
    cluster.pause()
    with pytest.raises(WseError) as caught:
        await soon(make_node(cluster, wait_for_broker=0.05).start())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE


async def test_a_start_that_waits_ends_when_the_server_is_closed(cluster, caplog):
    cluster.pause()
    server = make_node(cluster, wait_for_broker=math.inf)
    starting = await begun(server.start(), caplog)
    await server.close()
    with pytest.raises(WseError) as caught:
        await soon(starting)
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE


async def test_a_start_that_waits_ends_with_a_signal(cluster, caplog):
    cluster.pause()
    server = make_node(cluster, wait_for_broker=math.inf)
    stop = asyncio.Event()
    starting = await begun(started(server, stop), caplog)
    stop.set()
    assert await soon(starting) is False
    await server.close()


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_the_time_to_wait_is_not_negative(seconds):
    with pytest.raises(ValueError, match="wait_for_broker"):
        ClusterSettings(wait_for_broker=seconds)
