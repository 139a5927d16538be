"""`undelivered`, with real clients: on a server alone, and on clusters of two on every broker."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from support.brokers import ENGINES, be_patient, run_cluster
from support.cluster import cluster_of, until
from support.net import accept_all
from support.resume import RETURNING, cut
from wse import ErrorCode, Inbox, Publisher, Resume, WseError, WseServer
from wse.brokers.memory_store import MemoryStore


@pytest.fixture(params=["alone", "memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ENGINES)])
async def nodes(request, monkeypatch):
    """Servers with the same users, one or two, and what each has found undelivered."""
    be_patient(monkeypatch)
    options = {"resume": Resume(window=0.5), "inbox": Inbox(undelivered=0.3), "conns_per_user": 10}

    def listen(nodes):
        nodes.lost = [[] for _ in nodes]
        for node, lost in zip(nodes, nodes.lost, strict=True):
            node.when.undelivered(lambda cid, kind, payload, lost=lost: lost.append((cid, kind, payload)))

    if request.param == "alone":
        async with cluster_of([None], **options) as nodes:
            listen(nodes)
            yield nodes
        return
    async for cluster in run_cluster(request.param, request):
        async with cluster_of([cluster.broker(), cluster.broker()], **options) as nodes:
            nodes.cluster = cluster
            listen(nodes)
            yield nodes


def everything(nodes):
    return [message for lost in nodes.lost for message in lost]


async def test_a_message_to_a_user_who_is_nowhere_fires_on_the_node_that_sent_it(nodes):
    phone = await nodes.device(-1, "ann")
    nodes[0].send("ann", "note", "there", fallback=True)
    await phone.until("note", "there")
    nodes[0].send("bob", "note", {"text": "hello"}, fallback=True)
    await until(lambda: nodes.lost[0])
    assert nodes.lost[0] == [("bob", "note", {"text": "hello"})]
    assert len(everything(nodes)) == 1


async def test_a_session_that_comes_back_has_the_message_and_one_that_is_lost_has_not(nodes):
    phone = await nodes.device(-1, "ann", **RETURNING)
    cut(phone.client)
    nodes[0].send("ann", "note", 1, fallback=True)
    await phone.until("note", 1)
    await until(lambda: not nodes[0]._hub.fallbacks.watched)
    assert everything(nodes) == []
    await phone.client.flush()
    phone.client._connections.session.ledger.abort()  # without a return
    await phone.client.close()
    nodes[0].send("ann", "note", 2, fallback=True)
    await until(lambda: nodes.lost[0])
    assert everything(nodes) == [("ann", "note", 2)]


async def test_other_threads_can_use_it(nodes):
    await asyncio.to_thread(nodes[0].threadsafe.send, "bob", "note", 1, fallback=True)
    await until(lambda: nodes.lost[0] == [("bob", "note", 1)])


# Kept messages that nobody reads.


async def unread(nodes):
    """What else was undelivered, when something that is kept now is: all that was kept before has been looked at."""
    for number, node in enumerate(nodes):
        await node.keep(f"nobody {number}", "end")
    await until(lambda: sum(kind == "end" for _, kind, _ in everything(nodes)) == len(nodes))
    return [message for message in everything(nodes) if message[1] != "end"]


async def test_a_kept_message_that_no_device_reads_fires_once_on_the_node_that_has_kept_it(nodes):
    await nodes[0].keep("ann", "note", {"text": "hello"})
    await until(lambda: nodes.lost[0])
    assert nodes.lost[0] == [("ann", "note", {"text": "hello"})]
    assert await unread(nodes) == [("ann", "note", {"text": "hello"})]


async def test_what_one_device_has_read_is_delivered(nodes, monkeypatch):
    monkeypatch.setattr("wse.core.hub.kept.unread.REPORTED_WITHIN", 0.05)
    phone = await nodes.device(-1, "ann", inbox="phone")
    await nodes.device(0, "ann", inbox="pad")
    plain = await nodes.device(0, "bob")
    looking = nodes[0]._hub.kept.unread
    looking._after = 3600
    await nodes[0].keep("ann", "note", 1)
    await nodes[0].keep("bob", "note", 2)  # nobody knows whether a device without an inbox has read it
    await phone.until("note", 1)
    await plain.until("note", 2)
    phone.client._connections._inbox.report()
    store = nodes[0]._hub.kept.store
    async with asyncio.timeout(30):
        while await store.furthest("u.sann") < 1:
            await asyncio.sleep(0.01)
    looking._after = 0.3
    looking._unchecked = deque(message._replace(due=0) for message in looking._unchecked)
    looking._look()
    await until(lambda: everything(nodes))
    assert await unread(nodes) == [("bob", "note", 2)]


async def test_a_device_that_is_there_has_time_to_tell_what_it_has_read(nodes, monkeypatch):
    monkeypatch.setattr("wse.client.inbox.REPORT_AFTER", 0.5)
    phone = await nodes.device(-1, "ann", inbox="phone")
    await nodes[0].keep("ann", "note", 1)  # it is looked at before the phone reports
    await phone.until("note", 1)
    assert await unread(nodes) == []
    store = nodes[0]._hub.kept.store
    async with asyncio.timeout(30):
        while await store.furthest("u.sann") < 1:
            await asyncio.sleep(0.01)
    await nodes[0].keep("ann", "note", 2)
    await phone.until("note", 2)
    phone.client._connections._inbox._reported = 2  # this one is never reported
    await until(lambda: ("ann", "note", 2) in everything(nodes))


async def test_a_message_that_was_repeated_on_another_node_fires_once(nodes):
    for node in (nodes[0], nodes[-1], nodes[0]):
        assert await node.keep("ann", "note", 1, key="7") == 1
    assert await unread(nodes) == [("ann", "note", 1)]


async def test_a_server_looks_after_what_a_publisher_keeps(nodes):
    if nodes[0].cluster is None:
        pytest.skip("a server alone has no publishers")
    async with Publisher(nodes.cluster.broker(), inbox=Inbox(undelivered=0.3)) as publisher:
        await publisher.keep("ann", "note", 1)
        await until(lambda: everything(nodes))
    assert await unread(nodes) == [("ann", "note", 1)]


async def test_messages_of_rooms_are_for_nobody_in_particular(nodes):
    await nodes[0].room("lobby").keep("note", 1)
    assert await unread(nodes) == []


# A server alone.


async def test_a_store_that_is_away_is_asked_again(monkeypatch):
    monkeypatch.setattr("wse.core.hub.kept.unread.RETRY_AFTER", 0.05)
    store = MemoryStore()
    async with WseServer(accept_all, inbox=Inbox(store=store, undelivered=0.01)) as server:
        lost, asked, furthest = [], [], store.furthest

        async def away(box):
            asked.append(box)
            if len(asked) < 3:
                raise WseError(ErrorCode.BROKER_UNAVAILABLE)
            return await furthest(box)

        store.furthest = away
        server.when.undelivered(lambda *message: lost.append(message))
        await server.keep("ann", "note", 1)
        await server.keep("ann", "note", 2)
        await until(lambda: len(lost) == 2)
        assert lost == [("ann", "note", 1), ("ann", "note", 2)]


async def test_what_is_no_longer_kept_is_not_undelivered(server_of_one):
    lost = []
    server_of_one.when.undelivered(lambda *message: lost.append(message))
    for n in range(1, 4):
        await server_of_one.keep("ann", "note", n)
    await until(lambda: lost)
    assert lost == [("ann", "note", 3)]


@pytest.fixture
async def server_of_one():
    """A server that keeps one message for each user."""
    async with WseServer(accept_all, inbox=Inbox(messages=1, undelivered=0.05)) as server:
        yield server


async def test_what_is_looked_after_has_a_bound(monkeypatch):
    monkeypatch.setattr("wse.core.hub.kept.unread.MOST", 2)
    async with WseServer(accept_all, inbox=Inbox(undelivered=0.2)) as server:
        lost, errors = [], []
        server.when.undelivered(lambda *message: lost.append(message[2]))
        server.when.error(lambda error, conn: errors.append(error.code))
        for n in range(3):
            await server.keep("ann", "note", n)
        await until(lambda: len(lost) == 2)
        assert lost == [1, 2]
        assert errors == [ErrorCode.LIMIT_EXCEEDED]


def test_the_time_must_be_one():
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="undelivered"):
            Inbox(undelivered=wrong)
