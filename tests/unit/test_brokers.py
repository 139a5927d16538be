"""Brokers by URL, the broker in memory, and the common part of those with an engine."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import suppress

import pytest

from support.brokers import Node, unavailable
from support.net import TIMEOUT
from wse.brokers import from_url, reconnecting
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.brokers.nats.broker import NatsBroker
from wse.brokers.redis.broker import RedisBroker
from wse.core.ports.broker import Transition


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory:", MemoryBroker),
        ("nats://127.0.0.1", NatsBroker),
        ("tls://ann:secret@a.example:4222,b.example:4222?prefix=app&replicas=3", NatsBroker),
        ("redis://127.0.0.1:6379/1?prefix=app-2_b", RedisBroker),
        ("rediss://:secret@cache.example", RedisBroker),
    ],
)
def test_a_url_tells_the_broker(url, kind):
    broker = from_url(url)
    assert type(broker) is kind
    assert not broker.connected


@pytest.mark.parametrize("url", ["amqp://ann:secret@127.0.0.1", "", "nats"])
def test_an_unknown_url_is_refused_with_what_is_known_and_no_password(url):
    with pytest.raises(ValueError, match="known are memory, nats, tls, redis, rediss") as caught:
        from_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nats://127.0.0.1?prefix=a.b", "redis://127.0.0.1?prefix=a:b", "redis://h?prefix=ä"])
def test_a_prefix_that_not_every_engine_takes_is_refused(url):
    with pytest.raises(ValueError, match="a prefix consists of letters"):
        from_url(url)


@pytest.mark.parametrize(
    ("url", "library"),
    [("nats://127.0.0.1", "nats.aio.client"), ("redis://127.0.0.1", "hiredis"), ("redis+sentinel://h/main", "hiredis")],
)
def test_a_broker_whose_library_is_not_there_names_the_extra(url, library, monkeypatch):
    adapter = re.match("[a-z]+", url).group()
    package = f"wse.brokers.{adapter}"
    for module in [name for name in sys.modules if f"{name}.".startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'pip install "wse\[{adapter}'):
        from_url(url)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


async def open_nodes(cluster, *names):
    nodes = [Node(name, MemoryBroker(cluster)) for name in names]
    for node in nodes:
        await node.open()
    return nodes


async def test_leases_run_by_the_clock_of_the_cluster():
    clock = Clock()
    one, two = await open_nodes(MemoryCluster(clock), "one", "two")
    for node, ttl in (one, 10), (two, 20):
        assert (await node.broker.renew(ttl)).state == "new"
        await node.broker.registered()
    joined = await one.broker.join(one.device("ann", "c1"), 1)
    one.broker.fired(await one.broker.claim(joined.transitions))
    clock.now += 9.9
    assert await two.broker.nodes() == {"one", "two"}
    clock.now += 0.1
    assert await two.broker.nodes() == {"two"}
    assert await two.broker.reap() == [Transition("ann", 2)]
    assert (await one.broker.renew(10)).state == "reaped"


async def test_a_cluster_that_forgets_has_no_devices_and_no_leases():
    cluster = MemoryCluster()
    (node,) = await open_nodes(cluster, "one")
    register = (await node.broker.renew(10)).register
    device = (await node.broker.join(node.device("ann", "c1"), 1)).device
    cluster.forget()
    assert await node.broker.devices("ann") == []
    assert await node.broker.nodes() == frozenset()
    lease = await node.broker.renew(10, register=register)
    assert (lease.state, lease.is_recovering) == ("new", True)
    joined = await node.broker.join(device, 1, generation=1, fresh=False)
    assert (joined.device, joined.transitions) == (device, ())


async def test_the_numbers_of_a_user_and_a_reaped_node_are_forgotten_after_ten_minutes():
    clock = Clock()
    cluster = MemoryCluster(clock)
    one, two = await open_nodes(cluster, "one", "two")
    for node in one, two:
        await node.broker.renew(10)
        await node.broker.registered()
    for user in "ann", "bob":
        joined = await one.broker.join(one.device(user, f"c-{user}"), 1)
        left = await one.broker.leave(joined.device)
        one.broker.fired(await one.broker.claim([*joined.transitions, *left.transitions]))
        clock.now += 400
    await two.broker.renew(1000)
    assert (await two.broker.join(two.device("ann", "c1"), 1)).generation == 1
    assert (await two.broker.join(two.device("bob", "c2"), 1)).generation == 3
    await two.broker.reap()
    clock.now += 601
    await two.broker.renew(1000)
    await two.broker.reap()
    assert (await one.broker.renew(10)).state == "new"


async def test_a_broker_without_a_cluster_is_alone():
    one, two = Node("one", MemoryBroker()), Node("two", MemoryBroker())
    await one.open()
    await two.open()
    await one.broker.renew(10)
    assert await one.broker.nodes() == {"one"}
    assert await two.broker.nodes() == frozenset()


async def test_an_outage_is_told_once_and_loses_what_is_under_way():
    cluster = MemoryCluster()
    one, two = await open_nodes(cluster, "one", "two")
    two.broker.subscribe("talk")
    cluster.resume()
    one.broker.publish("talk", b"lost")
    cluster.pause()
    cluster.pause()
    assert not one.broker.connected
    await unavailable(one.broker.flush())
    await one.until("lost")
    cluster.resume()
    one.broker.publish("talk", b"found")
    await two.until("received")
    assert one.names == ["lost", "restored"]
    assert two.names == ["lost", "restored", "received"]
    assert two.all("received") == [("talk", b"found")]


async def test_a_broker_that_is_closed_is_not_told_of_an_outage():
    cluster = MemoryCluster()
    one, two = await open_nodes(cluster, "one", "two")
    cluster.pause()
    await one.broker.close()
    cluster.resume()
    await two.until("restored")
    assert one.entries == []


async def test_who_is_unsubscribed_by_a_message_of_the_same_turn_hears_no_more():
    one, two = await open_nodes(MemoryCluster(), "one", "two")
    for node in one, two:
        node.broker.subscribe("talk")
    one.received = lambda topic, data: (one.add("received"), two.broker.unsubscribe("talk"))
    one.broker.publish("talk", b"hello")
    await one.until("received")
    assert two.entries == []


class Broken:
    """A connection that breaks as soon as it is looked at."""

    def __init__(self):
        self.broken = asyncio.get_running_loop().create_future()

    async def flush(self):
        asyncio.get_running_loop().call_soon(self.broken.set_result, ConnectionError("broken"))

    async def close(self): ...

    def take_unsent(self):
        return []


async def test_connections_that_break_at_once_are_not_made_again_at_once(monkeypatch):
    attempts, lasts = [], iter([False, False, False, True, False, False])
    done = asyncio.Event()

    class Broker(reconnecting.ReconnectingBroker):
        def __init__(self):
            super().__init__()
            self._backoff = self

        def delay(self, attempt):
            attempts.append(attempt)
            return 0

        async def _connect(self):
            lasting = next(lasts, None)
            if lasting is None:
                done.set()
                await asyncio.Event().wait()
            monkeypatch.setattr(reconnecting, "BRIEF", 0 if lasting else TIMEOUT)
            return Broken()

    broker = Broker()
    await broker.open("node", Node("node", broker))
    async with asyncio.timeout(TIMEOUT):
        await done.wait()
    await broker.close()
    assert attempts == [1, 2, 2, 0, 1, 2]


class Swallowing:
    """A connection whose library swallows the first cancellation, as nats-py sometimes does."""

    def __init__(self):
        self.broken = asyncio.get_running_loop().create_future()
        self.flushes = 0
        self.asked = asyncio.Event()

    async def flush(self):
        self.flushes += 1
        if self.flushes == 2:  # the broker's own check
            self.asked.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def close(self):
        self.broken.cancel()


async def test_a_broker_closes_although_its_library_swallows_a_cancellation(monkeypatch):
    monkeypatch.setattr(reconnecting, "CHECK_INTERVAL", 0.001)
    monkeypatch.setattr(reconnecting, "CANCEL_TIMEOUT", 0.01)
    connection = Swallowing()

    class Broker(reconnecting.ReconnectingBroker):
        async def _connect(self):
            return connection

    broker = Broker()
    await broker.open("node", Node("node", broker))
    await connection.asked.wait()
    async with asyncio.timeout(TIMEOUT):
        await broker.close()
    assert not broker.connected


@pytest.mark.parametrize("is_broken", [False, True])
async def test_an_answer_that_came_while_the_process_slept_is_heard(is_broken, monkeypatch):
    monkeypatch.setattr(reconnecting, "READ_TIME", TIMEOUT)
    connection = Swallowing()
    loop = asyncio.get_running_loop()

    async def question():
        answer = loop.create_future()
        loop.call_soon(time.sleep, 2 * reconnecting.LATE)
        loop.call_later(3 * reconnecting.LATE, answer.set_result, "here")
        if is_broken:
            loop.call_soon(connection.broken.set_result, EOFError())
        return await answer

    asked = reconnecting.answer(connection, question(), reconnecting.LATE / 2)
    if is_broken:
        with pytest.raises(EOFError):
            await asked
    else:
        assert await asked == "here"


async def test_a_question_without_an_answer_ends_in_time():
    with pytest.raises(TimeoutError):
        await reconnecting.answer(Swallowing(), asyncio.Event().wait(), 0.01)
