"""The presence of rooms on several nodes: each holds the states of its own connections, and hears the others'."""

from __future__ import annotations

import pytest

from support.presence import Member, Rooms, come, is_present, shown
from wse.core.cluster import boards, envelope
from wse.core.resume import Resume
from wse.errors import ErrorCode


@pytest.fixture
def nodes():
    return Rooms(3)


def test_members_of_all_nodes_see_the_states_of_all(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.show(nodes[0], ann, {"cursor": [1, 2]})
    nodes.show(nodes[1], bob, "here", ttl=5)
    expected = {("ann", ann.conn.conn_id): {"cursor": [1, 2]}, ("bob", bob.conn.conn_id): "here"}
    assert ann.read() == bob.read() == shown(nodes[0].server.room("doc")) == expected
    eve = nodes.member(nodes[2], "eve")
    nodes.advance(0.1)
    assert eve.read() == expected
    nodes.advance(5)
    assert ann.read() == eve.read() == {("ann", ann.conn.conn_id): {"cursor": [1, 2]}}
    nodes[0].server.room("doc").discard(ann.conn)
    nodes.advance(0.1)
    assert bob.read() == eve.read() == {}
    assert not any(node.errors for node in nodes)


def test_when_join_is_answered_the_states_of_other_nodes_are_there(nodes):
    ann = nodes.member(nodes[0], "ann")
    nodes.show(nodes[0], ann, "here")
    peer = come(nodes[1], "bob")
    nodes.run()
    peer.heard  # noqa: B018
    peer.say("~wse:join", "doc", 1)
    nodes.run()
    nodes.advance(0.1)
    bob = Member(peer)
    bob.read()
    assert bob.rest == [("~wse:response", True, 1)]
    assert bob.states == {("ann", ann.conn.conn_id): "here"}


def test_a_node_that_does_not_answer_delays_a_join_no_longer_than_a_query(nodes):
    nodes.sleep(nodes[0])
    peer = come(nodes[1], "bob")
    nodes.run()
    peer.heard  # noqa: B018
    peer.say("~wse:join", "doc", 1)
    nodes.run()
    assert "~wse:response" not in [kind for kind, *_ in peer.heard]
    nodes.advance(1.1)
    assert peer.heard[-1] == ("~wse:response", True, 1)


def test_changes_of_a_moment_cross_as_one_message(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.advance(1)
    seen = []
    nodes.lost = lambda message: seen.append(message) if is_present(message) and message.entries else False
    room = nodes[0].server.room("doc")
    for n in range(50):
        room.presence.set(ann.conn, n)
    nodes.advance(0.1)
    assert len({message.number for message in seen}) == 1
    assert bob.read() == {("ann", ann.conn.conn_id): 49}


def test_nothing_crosses_for_a_plain_room(nodes):
    seen = []
    nodes.lost = lambda message: seen.append(message) if is_present(message) else False
    peer = nodes.join(nodes[0], "ann")
    nodes[0].server.room("plain").add(peer.conn)
    nodes.advance(20)
    assert seen == []


def test_a_lost_change_is_repaired_by_the_next_one(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    eve = nodes.member(nodes[0], "eve")
    nodes.lost = is_present
    nodes.show(nodes[0], ann, 1)
    assert bob.read() == {}
    nodes.lost = lambda message: False
    nodes.show(nodes[0], eve, 2)
    nodes.advance(0.1)
    assert bob.read() == {("ann", ann.conn.conn_id): 1, ("eve", eve.conn.conn_id): 2}


def test_a_lost_change_without_a_next_one_is_repaired_by_the_beat(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.show(nodes[0], ann, 1)
    nodes.lost = is_present
    nodes[0].server.room("doc").presence.clear(ann.conn)
    nodes.advance(0.2)
    assert bob.read() == {("ann", ann.conn.conn_id): 1}
    nodes.lost = lambda message: False
    nodes.advance(nodes[0].cluster.settings.lease_ttl + 0.2)
    assert bob.read() == {}


def test_the_lost_answer_of_a_node_that_is_asked_is_repaired_as_well(nodes):
    ann = nodes.member(nodes[0], "ann")
    nodes.show(nodes[0], ann, 1)
    nodes.lost = lambda message: isinstance(message, envelope.Answer)
    bob = nodes.member(nodes[1], "bob")
    nodes.advance(2)
    assert bob.read() == {}
    nodes.lost = lambda message: False
    nodes.advance(nodes[0].cluster.settings.lease_ttl + 0.2)
    assert bob.read() == {("ann", ann.conn.conn_id): 1}


def test_a_lost_departure_is_found_out(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.show(nodes[0], ann, 1)
    nodes.lost = is_present
    ann.peer.vanish()
    nodes.advance(0.2)
    nodes.lost = lambda message: False
    assert bob.read() == {("ann", ann.conn.conn_id): 1}
    nodes.advance(3 * nodes[0].cluster.settings.lease_ttl)
    assert bob.read() == {}
    eve = nodes.member(nodes[0], "eve")  # the node takes part again, with numbers that it has not used before
    nodes.show(nodes[0], eve, 2)
    assert bob.read() == {("eve", eve.conn.conn_id): 2}


def test_changes_that_come_while_a_node_is_asked_are_not_lost(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    asked = []

    def lose(message):
        if isinstance(message, envelope.Query) and message.what == "presence":
            asked.append(message)
            return True
        return is_present(message) and not asked

    nodes.lost = lose
    nodes.show(nodes[0], ann, 1)
    nodes.lost = lambda message: lose(message) if isinstance(message, envelope.Query) else False
    nodes.show(nodes[0], ann, 2)  # shows that one is lost: it is asked, in vain
    assert asked
    nodes.show(nodes[0], ann, 3)
    nodes.lost = lambda message: False
    nodes.advance(2 * nodes[0].cluster.settings.lease_ttl)
    assert bob.read() == {("ann", ann.conn.conn_id): 3}


def test_the_states_of_a_node_that_dies_are_gone_within_its_lease(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.show(nodes[0], ann, 1)
    nodes.show(nodes[1], bob, 2)
    settings = nodes[0].cluster.settings
    nodes.advance(settings.lease_ttl + 1)
    dead = nodes[0]
    nodes.kill(dead)
    nodes.advance(settings.lease_ttl + 2 * settings.renew_interval)
    assert bob.read() == {("bob", bob.conn.conn_id): 2}


def test_a_node_that_was_only_asleep_is_heard_again(nodes):
    ann, bob = nodes.member(nodes[0], "ann"), nodes.member(nodes[1], "bob")
    nodes.show(nodes[0], ann, 1)
    one = nodes[0]
    nodes.advance(10)
    nodes.sleep(one)
    nodes.advance(20)
    assert bob.read() == {}
    nodes.wake(one)
    nodes.advance(2 * one.cluster.settings.lease_ttl)
    assert bob.read() == {("ann", ann.conn.conn_id): 1}


def test_without_the_broker_members_of_a_node_see_each_other_and_afterwards_all(nodes):
    ann, bob, eve = nodes.member(nodes[0], "ann"), nodes.member(nodes[0], "bob"), nodes.member(nodes[1], "eve")
    nodes.show(nodes[0], ann, 1)
    nodes.show(nodes[1], eve, 1)
    nodes.engine.pause()
    nodes.advance(1)
    nodes.show(nodes[0], ann, 2)
    nodes.show(nodes[1], eve, 2)
    here = {("ann", ann.conn.conn_id): 2, ("eve", eve.conn.conn_id): 1}
    assert ann.read() == bob.read() == here
    nodes.engine.resume()
    nodes.advance(5)
    expected = {("ann", ann.conn.conn_id): 2, ("eve", eve.conn.conn_id): 2}
    assert ann.read() == bob.read() == eve.read() == expected
    assert not [code for node in nodes for code in node.codes if code != ErrorCode.BROKER_UNAVAILABLE]


def test_a_part_that_is_too_large_for_one_message_crosses_in_several(nodes, monkeypatch):
    monkeypatch.setattr(envelope, "MAX_PART_BYTES", 1000)
    members = [nodes.member(nodes[0], f"u{n}") for n in range(30)]
    sizes = []
    nodes.lost = lambda message: sizes.append(len(envelope.encode(message))) if is_present(message) else False
    for member in members:
        nodes[0].server.room("doc").presence.set(member.conn, "x" * 100)
    bob = nodes.member(nodes[1], "bob")
    nodes.advance(0.2)
    late = nodes.member(nodes[2], "late")
    nodes.advance(0.2)
    assert len(bob.read()) == 30
    assert late.read() == bob.read()
    assert max(sizes) < 1500


def test_a_node_that_was_not_told_of_presence_learns_it(nodes):
    nodes[1].hub.rooms._hooks.clear()  # nobody has asked for presence there
    bob = nodes.member(nodes[1], "bob")
    ann = nodes.member(nodes[0], "ann")
    nodes.show(nodes[0], ann, 1)
    nodes.advance(0.1)
    assert bob.read() == {("ann", ann.conn.conn_id): 1}


def test_a_session_that_moves_takes_its_state_along():
    nodes = Rooms(3, resume=Resume())
    bob = nodes.member(nodes[2], "bob")
    peer = come(nodes[0], "ann", {"rooms": {}, "resume": {"window": 60}})
    nodes.run()
    (_, ext, _), _ = peer.heard
    nodes[0].server.room("doc").add(peer.conn)
    ann = Member(peer)
    nodes[0].server.room("doc").presence.set(peer.conn, "mine", ttl=30)
    nodes.advance(1)
    assert ann.state_in(bob.read()) == "mine"
    peer.vanish()
    claim = {
        "id": ext["resume"]["id"],
        "key": ext["resume"]["key"],
        "got": len(ann.frames or ann.read()) and len(ann.frames),
    }
    back = come(nodes[1], "ann", {"rooms": {}, "resume": {**claim, "sent": [1, 0]}})
    nodes.advance(1)
    member = Member(back)
    (_, answer, _), *_ = member.peer.heard
    assert "lost" not in answer["resume"], answer
    room = nodes[1].server.room("doc")
    assert shown(room) == bob.read() == {("ann", peer.conn.conn_id): "mine"}
    nodes.advance(25)
    assert ann.state_in(bob.read()) == "mine"
    nodes.advance(5)
    assert bob.read() == shown(room) == {}  # its time went on


def test_nothing_is_left_when_all_have_gone(nodes):
    members = [nodes.member(node, f"u{n}") for n, node in enumerate(nodes)]
    for node, member in zip(nodes, members, strict=True):
        nodes.show(node, member, 1)
    for member in members:
        member.peer.vanish()
    nodes.advance(boards.SILENT_BEATS * 5 + 1)
    for node in nodes:
        assert not node.cluster.boards._shared
        assert node.cluster.boards._timer is None
        assert not node.leftovers
        board = node.hub.rooms.board("doc")
        assert not board.states
        assert not board._parts
