"""`undelivered`, with real clients: on a server alone, and on clusters of two on every broker."""

from __future__ import annotations

import asyncio

import pytest

from support.brokers import ENGINES, be_patient, run_cluster
from support.cluster import cluster_of, until
from support.resume import RETURNING, cut
from wse import Inbox, Resume


@pytest.fixture(params=["alone", "memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ENGINES)])
async def nodes(request, monkeypatch):
    """Servers with the same users, one or two, and what each has found undelivered."""
    be_patient(monkeypatch)
    options = {"resume": Resume(window=0.5), "inbox": Inbox(), "conns_per_user": 10}

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
