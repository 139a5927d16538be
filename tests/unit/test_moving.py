"""Sessions that move from node to node, because their clients come back to another one (WIRE.md section 7, `resume`)."""

from __future__ import annotations

import pytest

from support.nodes import Nodes
from wse.core.cluster.claims import SILENT
from wse.core.resume import Resume
from wse.errors import ErrorCode


class Cluster(Nodes):
    """Nodes whose clients can come back to any of them."""

    def __init__(self, count=2, **options):
        options.setdefault("resume", Resume())
        options.setdefault("conns_per_user", 5)
        super().__init__(count, **options)

    def come(self, node, cid="ann", **offer):
        """A client says hi."""
        peer = node.open()
        peer.say("~wse:hi", {"identity": cid, "meta": {}, "ext": {"resume": offer}})
        self.run()
        return peer

    def first(self, node, cid="ann", **offer):
        """A client that has come for the first time."""
        peer = self.come(node, cid, **offer)
        (_, ext, _), _ = peer.heard
        peer.ticket = {"id": ext["resume"]["id"], "key": ext["resume"]["key"]}
        return peer

    def back(self, node, peer, got=0, sent=(1, 0), cid="ann", **other):
        """The client of a session comes back; its ticket has the id of the answer."""
        new = self.come(node, cid, **(peer.ticket | {"got": got, "sent": list(sent)} | other))
        new.ticket = dict(peer.ticket)
        return new

    def session(self, node, peer):
        """The session of a client at a node."""
        return node.hub.connections[peer.ticket["id"].partition(".")[0]]._session


def answered(peer):
    """What a server has answered for `resume`, and what came after the welcome."""
    (_, ext, _), (kind, *_), *rest = peer.heard
    assert kind == "~wse:welcome"
    answer = ext["resume"]
    peer.ticket["id"] = answer["id"]
    peer.ticket["key"] = answer.get("key", peer.ticket["key"])
    return answer, rest


def plain(messages):
    return [(kind, payload) for kind, payload, _ in messages]


def test_a_client_that_comes_back_to_another_node_finds_its_session_there():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    conn = peer.conn
    peer.say("chat", 1)
    peer.say("chat", 2)
    for n in range(3):
        conn.send("news", n)
    peer.vanish()
    conn.send("news", 3)
    new = nodes.back(two, peer, got=1, sent=[2, 2])
    answer, messages = answered(new)
    assert answer == {"id": f"{conn.conn_id}.{two.cluster.node}", "got": 2}
    assert plain(messages) == [("news", 1), ("news", 2), ("news", 3)]
    session = nodes.session(two, new)
    assert session.conn.conn_id == conn.conn_id
    session.send("news", 4)
    assert plain(new.heard) == [("news", 4)]
    assert conn.conn_id not in one.hub.connections
    assert one.names("disconnected") == [("disconnected", "ann", 4000, "wse.moved")]
    assert [entry[0] for entry in two.log if entry[0] != "write"] == ["connected", "resumed"]
    assert nodes.presence() == [("joined", "ann")]
    assert session.conn.moved
    assert not conn.moved


def test_the_device_is_the_new_node_s_in_the_register():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    other = nodes.first(two)
    peer.vanish()
    new = nodes.back(two, peer)
    answered(new)
    devices = two.do(two.cluster.devices("ann"))
    assert [(device.conn_id, device.node) for device in devices] == [
        (peer.conn.conn_id, two.cluster.node),
        (other.conn.conn_id, two.cluster.node),
    ]
    nodes.advance(60)
    assert nodes.presence() == [("joined", "ann")]
    new.vanish(1000)
    other.vanish(1000)
    nodes.advance(5)
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_session_goes_back_and_forth():
    nodes = Cluster(3)
    peer = nodes.first(nodes[0])
    peer.conn.send("news", 0)
    for n in range(1, 10):
        node = nodes[n % 3]
        if n % 2:
            peer.vanish()
        peer = nodes.back(node, peer, got=n - 1)
        answer, messages = answered(peer)
        assert plain(messages) == [("news", n - 1)]
        assert answer["got"] == 0
        nodes.session(node, peer).send("news", n)
    nodes.advance(30)
    assert nodes.presence() == [("joined", "ann")]
    assert sum(len(node.hub.connections) for node in nodes) == 1


def test_messages_from_everywhere_arrive_once_and_in_order():
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    one.hub.rooms.add("lobby", peer.conn)
    sent = []

    def send(number):
        for which, node in enumerate(nodes):
            node.hub.send("ann", "user", (which, number))
            node.hub.rooms.send("lobby", "room", (which, number), None)
            node.hub.broadcast("all", (which, number))
        sent.append(number)

    heard = []
    got = 0
    for turn in range(12):
        send(3 * turn)
        nodes.run()
        if turn % 2:
            peer.vanish()
        else:
            send(3 * turn + 1)
            nodes.run()
        heard += (new := plain(peer.heard))
        got += len(new)
        # While the client comes, messages are sent at every step of the move.
        node = nodes[(turn + 1) % 3]
        back = node.open()
        back.say(
            "~wse:hi", {"identity": "ann", "meta": {}, "ext": {"resume": {**peer.ticket, "got": got, "sent": [1, 0]}}}
        )
        while any(each.scheduler._soon for each in nodes):
            for each in nodes:
                for _ in range(len(each.scheduler._soon)):
                    timer = each.scheduler._soon.popleft()
                    if not timer.cancelled:
                        timer.callback(*timer.args)
            if len(sent) < 40 * (turn + 1):
                send(1000 * (turn + 1) + len(sent))
        back.ticket = dict(peer.ticket)
        answer, messages = answered(back)
        assert "lost" not in answer
        heard += plain(messages)
        got += len(messages)
        peer = back
    for kind in ("user", "room", "all"):
        for which in range(3):
            assert [n for k, (w, n) in heard if (k, w) == (kind, which)] == sent
