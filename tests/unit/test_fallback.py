"""`send(..., fallback=True)` and `undelivered`: on one server, and in a cluster whose clock the test controls."""

from __future__ import annotations

import pytest

from support.core import ServerSide
from support.nodes import Nodes
from wse.core.cluster import watching
from wse.core.hub import fallback
from wse.core.resume import Resume
from wse.errors import ErrorCode, WseError
from wse.server.messaging import Messaging

WINDOW = 30.0
SETTINGS = {"resume": Resume(window=WINDOW), "conns_per_user": 5}


class Side(ServerSide):
    """A server alone, and what it has found undelivered."""

    def __init__(self):
        super().__init__(**SETTINGS)
        self.server = Messaging()
        self.server._hub = self.hub
        self.lost = listen(self)

    def send(self, payload, **options):
        send(self, payload, **options)
        self.scheduler.run()


def listen(side):
    """What is undelivered from now on."""
    lost = []
    side.hub.fallbacks.signal(lambda cid, kind, payload: lost.append((cid, kind, payload)))
    return lost


def send(side, payload, **options):
    side.server.send("ann", "note", payload, fallback=True, **options)


def come(side, cid="ann", **claim):
    """A device whose session outlives its connection."""
    peer = side.open()
    peer.say("~wse:hi", {"identity": cid, "meta": {}, "ext": {"resume": {"window": WINDOW} | claim}})
    side.scheduler.run()
    return peer


def welcome(peer):
    """What it needs to come back."""
    (_, ext, _), (kind, *_), *rest = peer.heard
    assert kind == "~wse:welcome"
    return {"id": ext["resume"]["id"], "key": ext["resume"].get("key")}, [entry for entry in rest if entry[0] == "note"]


def notes(peer):
    return [payload for kind, payload, _ in peer.heard if kind == "note"]


def test_a_message_to_a_user_without_a_device_is_undelivered_at_once():
    side = Side()
    send(side, {"text": "hello"})
    assert side.lost == [("ann", "note", {"text": "hello"})]
    side.server.send("ann", "note", 2)
    assert len(side.lost) == 1


def test_a_device_that_is_there_gets_the_message():
    side = Side()
    peer = side.join("ann")
    side.send(1)
    peer.conn.client.send("note", 2, fallback=True)
    peer.session.closed(1006, "")
    assert notes(peer) == [1, 2]
    assert side.lost == []
    side.send(3)
    assert side.lost == [("ann", "note", 3)]


def test_a_device_that_is_away_for_a_moment_gets_the_message_when_it_is_back():
    side = Side()
    peer = come(side)
    ticket, _ = welcome(peer)
    peer.vanish()
    side.send(1)
    side.scheduler.advance(WINDOW - 1)
    new = come(side, **ticket, got=0, sent=[1, 0])
    assert welcome(new)[1] == [("note", 1, None)]
    new.say("~wse:ack", 1)
    side.scheduler.advance(2 * WINDOW)
    new.say("~wse:bye")
    assert side.lost == []
    assert side.hub.fallbacks.watched == 0


def test_what_was_sent_to_a_session_that_is_lost_is_undelivered():
    side = Side()
    peer = come(side)
    side.send("not confirmed")
    peer.vanish()
    side.send("while away")
    side.scheduler.advance(WINDOW - 1)
    assert side.lost == []
    side.scheduler.advance(2)
    assert [payload for _, _, payload in side.lost] == ["not confirmed", "while away"]
    assert side.hub.fallbacks.watched == 0


def test_what_a_device_has_confirmed_before_its_session_is_lost_is_delivered():
    side = Side()
    peer = come(side)
    side.send(1)
    peer.say("~wse:ack", 1)
    peer.vanish()
    side.scheduler.advance(WINDOW + 1)
    assert side.lost == []


@pytest.mark.parametrize("others", ["plain", "away", "back"])
def test_one_device_of_several_is_enough(others):
    side = Side()
    first, second = come(side), (side.join("ann") if others == "plain" else come(side))
    first.vanish()
    if others == "away":
        second.vanish()
    side.send(1)
    if others == "back":
        second.say("~wse:ack", 1)
    side.scheduler.advance(WINDOW + 1)
    assert side.lost == ([("ann", "note", 1)] if others == "away" else [])


def test_a_new_device_does_not_get_what_was_sent_before_it_came():
    side = Side()
    come(side).vanish()
    side.send(1)
    new = side.join("ann")
    side.scheduler.advance(WINDOW + 1)
    assert notes(new) == []
    assert side.lost == [("ann", "note", 1)]


def test_the_excluded_device_shows_that_its_user_is_there():
    side = Side()
    peer = side.join("ann")
    side.send(1, exclude=peer.conn)
    side.send(2, exclude="ann")
    assert side.lost == []
    side.send(3, exclude=side.join("bob").conn)
    peer.session.closed(1001, "")
    side.send(4, exclude=peer.conn)
    assert side.lost == [("ann", "note", 4)]


def test_a_message_that_cannot_be_sent_is_not_undelivered():
    side = Side()
    with pytest.raises(WseError) as caught:
        side.server.send("ann", "~wse:hi", fallback=True)
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    come(side)
    with pytest.raises(WseError) as caught:
        side.send(object())
    assert caught.value.code == ErrorCode.MSG_PROCESSING_ERROR
    side.hub.started = False
    with pytest.raises(WseError):
        side.send(1)
    assert side.lost == []


def test_what_is_watched_has_a_bound(monkeypatch):
    monkeypatch.setattr(fallback, "MOST", 3)
    side = Side()
    peer = come(side)
    for n in range(5):
        side.send(n)
    assert [payload for _, _, payload in side.lost] == [3, 4]
    peer.say("~wse:ack", 3)
    side.scheduler.run()
    side.send(5)
    assert len(side.lost) == 2


# A cluster.


@pytest.fixture
def nodes():
    nodes = Nodes(3, **SETTINGS)
    nodes.lost = [listen(node) for node in nodes]
    return nodes


def test_nobody_means_no_device_on_any_node(nodes):
    send(nodes[0], 1)
    nodes.run()
    assert nodes.lost == [[("ann", "note", 1)], [], []]
    peer = nodes.join(nodes[1])
    send(nodes[0], 2)
    nodes.advance(10)
    assert notes(peer) == [2]
    assert nodes.lost == [[("ann", "note", 1)], [], []]
    peer.session.closed(1001, "")
    nodes.run()
    send(nodes[2], 3)
    nodes.run()
    assert nodes.lost == [[("ann", "note", 1)], [], [("ann", "note", 3)]]
    assert [node.hub.fallbacks.watched for node in nodes] == [0, 0, 0]


def test_sessions_that_are_lost_on_all_nodes_make_one_undelivered_message(nodes):
    peers = [come(node) for node in nodes]
    nodes.run()
    for peer in peers:
        peer.vanish()
        nodes.advance(1)
    send(nodes[0], 1)
    nodes.advance(WINDOW - 3)
    assert nodes.lost == [[], [], []]
    nodes.advance(10)
    assert nodes.lost == [[("ann", "note", 1)], [], []]


def test_a_session_of_another_node_that_comes_back_has_the_message(nodes):
    here, there = come(nodes[0]), come(nodes[1])
    nodes.run()
    ticket, _ = welcome(there)
    here.vanish()
    there.vanish()
    send(nodes[0], 1)
    nodes.advance(WINDOW / 2)
    back = come(nodes[1], **ticket, got=0, sent=[1, 0])
    nodes.run()
    assert welcome(back)[1] == [("note", 1, None)]
    back.say("~wse:ack", 1)
    nodes.advance(2 * WINDOW)
    assert nodes.lost == [[], [], []]


def test_a_session_that_moves_to_another_node_has_the_message(nodes):
    peer = come(nodes[0])
    nodes.run()
    ticket, _ = welcome(peer)
    peer.vanish()
    send(nodes[0], 1)
    nodes.run()
    back = come(nodes[1], **ticket, got=0, sent=[1, 0])
    nodes.run()
    assert welcome(back)[1] == [("note", 1, None)]
    back.say("~wse:ack", 1)
    nodes.advance(2 * WINDOW)
    assert nodes.lost == [[], [], []]


def test_a_node_that_dies_takes_its_devices_along(nodes):
    come(nodes[1])
    nodes.run()
    nodes.sleep(nodes[1])
    send(nodes[0], 1)
    nodes.advance(3)
    assert nodes.lost[0] == []
    nodes.kill(nodes[1])
    nodes.advance(60)
    assert nodes.lost[0] == [("ann", "note", 1)]


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(nodes):
    """A device came to it between the message and the look at the register."""
    watched, nodes[1].cluster.watching.asked = nodes[1].cluster.watching.asked, lambda topic, message: None
    nodes.join(nodes[1])
    send(nodes[0], 1)
    nodes.advance(watching.PATIENCE)
    assert nodes.lost[0] == []
    nodes.advance(WINDOW + watching.LOOK_EVERY, step=1)
    assert nodes.lost[0] == [("ann", "note", 1)]
    nodes[1].cluster.watching.asked = watched


def test_while_the_engine_is_away_nothing_is_known(nodes):
    nodes.join(nodes[1])
    nodes.engine.pause()
    nodes.run()
    send(nodes[0], 1)
    nodes.advance(5)
    assert nodes.lost[0] == []
    nodes.engine.resume()
    nodes.advance(30)
    assert nodes.lost == [[], [], []]
