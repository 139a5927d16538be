"""Users whose client is away for a moment, as the other nodes of a cluster see them: the register knows who is away."""

from __future__ import annotations

import pytest

from support.moves import STEPS, Cluster, answered, at, plain, say_hi, stepwise
from wse.core.ports.broker import Away
from wse.core.resume import Resume
from wse.errors import ErrorCode


def devices(node, cid="ann"):
    """What an application is told of a user's devices: their ids, and whether they are away."""
    return [(device.conn_id, device.away) for device in node.do(node.server.devices(cid))]


class Marks:
    """The steps by which a node has told the register who is away."""

    def __init__(self, node):
        self.seen = []
        self.set_away = node.broker.set_away
        node.broker.set_away = self

    async def __call__(self, device):
        self.seen.append((device.conn_id, device.away))
        await self.set_away(device)


def test_every_node_knows_that_a_device_is_away_and_its_user_is_there_all_the_time():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    other = nodes.first(two)
    peer.vanish()
    nodes.run()
    for node in nodes:
        assert devices(node) == [(peer.conn.conn_id, True), (other.conn.conn_id, False)]
    other.vanish(1000)
    nodes.advance(30)
    assert two.do(two.server.online()) == 1
    answered(nodes.back(one, peer))
    for node in nodes:
        assert devices(node) == [(peer.conn.conn_id, False)]
    assert nodes.presence() == [("joined", "ann")]


def test_a_device_that_comes_back_elsewhere_is_there():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    new = nodes.back(two, peer)
    answered(new)
    assert devices(one) == devices(two) == [(peer.conn.conn_id, False)]
    new.vanish()
    nodes.run()
    assert devices(one) == [(peer.conn.conn_id, True)]
    nodes.advance(61)
    assert devices(one) == []
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    assert [node.leftovers for node in nodes] == [[], []]


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_goes_again_during_the_move_is_away_in_the_end(step):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    new = say_hi(two, peer)
    stepwise(nodes, at(step, new.vanish))
    nodes.run()
    assert devices(one) == [(peer.conn.conn_id, True)]


def test_of_many_returns_while_the_register_is_slow_it_learns_the_last():
    nodes = Cluster()
    one, two = nodes
    marks = Marks(one)
    set_away, slow = marks.set_away, one.scheduler.create_future()

    async def slowly(device):
        await slow
        await set_away(device)

    marks.set_away = slowly
    peer = nodes.first(one)
    conn_id = peer.conn.conn_id
    for _ in range(10):
        peer.vanish()
        nodes.run()
        peer = nodes.back(one, peer)
        answered(peer)
    slow.set_result(None)
    nodes.run()
    assert marks.seen == [(conn_id, Away.DETACHED), (conn_id, Away.HERE)]
    assert devices(two) == [(conn_id, False)]


def test_a_connection_that_the_server_believes_in_costs_the_register_nothing():
    nodes = Cluster()
    one, _ = nodes
    marks = Marks(one)
    peer = nodes.first(one)
    answered(nodes.back(one, peer))
    assert marks.seen == []


def test_a_thousand_clients_that_are_cut_off_at_once_are_told_to_the_register_some_at_a_time():
    nodes = Cluster(1, resume=Resume())
    (one,) = nodes
    peers = [nodes.first(one, f"user-{n}") for n in range(200)]
    set_away, under_way, most = one.broker.set_away, 0, 0

    async def slowly(device):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        turn = one.scheduler.create_future()
        one.scheduler.call_later(0.01, turn.set_result, None)
        await turn
        under_way -= 1
        await set_away(device)

    one.broker.set_away = slowly
    for peer in peers:
        peer.vanish()
    nodes.advance(5)
    assert all(devices(one, f"user-{n}")[0][1] for n in range(200))
    assert 0 < most <= 32


def test_a_new_device_at_another_node_displaces_the_one_that_is_away_and_not_the_one_that_is_there():
    nodes = Cluster(conns_per_user=2)
    one, two = nodes
    living, ghost = nodes.first(one), nodes.first(one)
    ghost.vanish()
    nodes.run()
    third = nodes.first(two)
    assert one.names("disconnected") == [("disconnected", "ann", 1000, "wse.clients-concurrency")]
    assert not living.session.ended
    assert devices(two) == [(living.conn.conn_id, False), (third.conn.conn_id, False)]
    assert nodes.back(one, ghost).closed_with == (1000, "wse.clients-concurrency")
    assert nodes.presence() == [("joined", "ann")]


@pytest.mark.parametrize("mode", ["any", "first", "all"])
def test_another_node_can_ask_a_device_that_is_away_and_gets_the_answer_when_it_is_back(mode):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    call = two.scheduler.start(two.hub.call("ann", "ask", 1, mode, None, 5))
    nodes.advance(3)
    assert not call.done()
    new = nodes.back(one, peer)
    _, ((name, payload, stamp),) = answered(new)
    assert (name, payload) == ("ask", 1)
    new.say("~wse:response", "yes", stamp)
    nodes.run()
    assert call.result() == (["yes"] if mode == "all" else "yes")


def test_a_call_to_the_newest_device_prefers_one_that_is_there_at_another_node():
    nodes = Cluster()
    one, two = nodes
    old, new = nodes.first(one), nodes.first(one)
    new.vanish()
    nodes.run()
    two.scheduler.start(two.hub.call("ann", "ask", 1, "any", None))
    nodes.run()
    assert plain(old.heard) == [("ask", 1)]


def test_a_call_waits_for_a_user_who_comes_to_any_node():
    nodes = Cluster()
    one, two = nodes
    call = two.scheduler.start(two.hub.call("ann", "ask", 1, "first", None, 5))
    nodes.advance(2)
    peer = nodes.first(one)
    nodes.advance(2)
    ((_, _, stamp),) = peer.heard
    peer.say("~wse:response", "yes", stamp)
    nodes.run()
    assert call.result() == "yes"
    missing = two.scheduler.start(two.hub.call("bob", "ask", 1, "first", None, 5))
    nodes.advance(6)
    assert missing.exception().code == ErrorCode.CONNECTION_MISSING


def test_a_user_whose_session_has_ended_and_who_has_a_grace_is_neither_shown_nor_asked():
    nodes = Cluster(leave_grace=100)
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.advance(61)
    assert devices(two) == []
    assert two.do(two.server.online()) == 1
    call = two.scheduler.start(two.hub.call("ann", "ask", 1, "first", None))
    nodes.run()
    assert call.exception().code == ErrorCode.CONNECTION_MISSING
    nodes.advance(41)
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]


def test_the_register_learns_who_is_away_when_the_broker_is_back():
    nodes = Cluster()
    one, two = nodes
    peer, other = nodes.first(one), nodes.first(one, "bob")
    other.vanish()
    nodes.run()
    nodes.engine.pause()
    nodes.run()
    peer.vanish()
    back = nodes.back(one, other, cid="bob")
    answered(back)
    nodes.engine.resume()
    nodes.advance(10)
    assert devices(two) == [(peer.conn.conn_id, True)]
    assert devices(two, "bob") == [(other.conn.conn_id, False)]


def test_a_register_that_was_lost_learns_anew_who_is_away():
    nodes = Cluster()
    one, two = nodes
    peer, other = nodes.first(one), nodes.first(one, "bob")
    peer.vanish()
    nodes.run()
    nodes.engine.forget()
    nodes.advance(30)
    assert devices(two) == [(peer.conn.conn_id, True)]
    assert devices(two, "bob") == [(other.conn.conn_id, False)]
    assert nodes.presence() == [("joined", "ann"), ("joined", "bob")]
