"""Many clients that come back at once: to their node, to another one, and from one that has died."""

from __future__ import annotations

import pytest

from support.moves import Cluster, answered, plain, say_hi
from wse.core.cluster.claims import MOST_COMING
from wse.core.cluster.transfer import SILENT

COUNT = 3 * MOST_COMING


@pytest.fixture
def nodes():
    return Cluster()


@pytest.fixture
def peers(nodes):
    """Clients of the first node, whose connections all break at once; a message waits for each."""
    peers = {f"user-{n}": nodes.first(nodes[0], f"user-{n}") for n in range(COUNT)}
    for peer in peers.values():
        peer.vanish()
    nodes[0].hub.broadcast("news", 1)
    nodes.run()
    return peers


def back(node, peers):
    """All of them come at once, and nothing has happened yet."""
    return {cid: say_hi(node, peer, cid) for cid, peer in peers.items()}


def check(new):
    """Each has its session, and what it has missed."""
    for peer in new.values():
        answer, messages = answered(peer)
        assert "lost" not in answer
        assert plain(messages) == [("news", 1)]


def test_clients_that_come_back_to_their_node_wait_for_nothing(nodes, peers):
    new = back(nodes[0], peers)
    for peer in new.values():
        answer, messages = answered(peer)
        assert "lost" not in answer
        assert plain(messages) == [("news", 1)]
    assert not nodes[0].hub.resumption.detached
    nodes.run()


def test_clients_that_come_to_another_node_are_served_some_at_a_time(nodes, peers):
    one, two = nodes
    most = 0
    flush = two.broker.flush

    async def slowly():
        nonlocal most
        most = max(most, len(two.cluster.delivery.placeholders))
        turn = two.scheduler.create_future()
        two.scheduler.call_later(0.01, turn.set_result, None)
        await turn
        await flush()

    two.broker.flush = slowly
    new = back(two, peers)
    nodes.advance(0.5, step=0.01)
    check(new)
    assert 0 < most <= MOST_COMING
    assert not one.hub.connections
    assert len(two.hub.connections) == COUNT
    assert not two.cluster.delivery.placeholders
    assert two.cluster.claims._turns._free == MOST_COMING
    assert (one.cluster.departures._sent, one.hub.resumption.retention.used) == ({}, 0)
    for peer in new.values():
        peer.say("~wse:ack", 1)
    assert two.hub.resumption.retention.used == 0
    assert nodes.presence() == [("joined", cid) for cid in peers]


def test_what_comes_for_all_of_them_meanwhile_reaches_each_once(nodes, peers):
    one, two = nodes
    flush, sent = two.broker.flush, iter(range(2, 1000))

    async def slowly():
        turn = two.scheduler.create_future()
        two.scheduler.call_later(0.01, turn.set_result, None)
        await turn
        await flush()

    two.broker.flush = slowly
    new = back(two, peers)
    for node in (one, two) * 20:
        node.hub.broadcast("news", next(sent))
        nodes.advance(0.01, step=0.01)
    nodes.advance(0.5, step=0.01)
    for peer in new.values():
        answer, messages = answered(peer)
        assert "lost" not in answer
        assert plain(messages) == [("news", n) for n in range(1, 42)]


def test_clients_of_a_node_that_has_died_are_all_told_within_the_time_that_it_would_have_to_answer(nodes, peers):
    one, two = nodes
    nodes.kill(one)
    new = back(two, peers)
    nodes.advance(SILENT + 0.5)
    for peer in new.values():
        assert answered(peer)[0]["lost"] == {"why": "unreachable", "got": None}
    assert two.cluster.rpc._pending.waiting == {}


def test_clients_that_wait_for_their_turn_while_their_node_dies_are_told_when_its_death_is_known(nodes, peers):
    one, two = nodes
    flush = two.broker.flush

    async def slowly():
        if one.awake:
            nodes.kill(one)
        await flush()

    two.broker.flush = slowly
    new = back(two, peers)
    nodes.advance(30)
    assert {answered(peer)[0]["lost"]["why"] for peer in new.values()} <= {"unreachable", "unknown"}
    assert two.cluster.claims._turns._free == MOST_COMING
