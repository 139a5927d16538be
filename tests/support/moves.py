"""Clusters whose clients come back, to any node."""

from __future__ import annotations

from support.nodes import Nodes
from wse.core.resume import Resume


class Cluster(Nodes):
    """Nodes whose clients can come back to any of them."""

    def __init__(self, count=2, **options):
        options.setdefault("resume", Resume())
        options.setdefault("conns_per_user", 5)
        super().__init__(count, **options)
        self.ext = {}  # what clients offer beside

    def come(self, node, cid="ann", **offer):
        """A client says hi."""
        peer = node.open()
        peer.say("~wse:hi", {"identity": cid, "meta": {}, "ext": {"resume": offer} | self.ext})
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


def stepwise(nodes, do):
    """Run all nodes one callback at a time, and call `do` before each."""
    while any(node.scheduler._soon for node in nodes if node.awake):
        for node in nodes:
            if node.awake and node.scheduler._soon:
                do()
            if node.awake and node.scheduler._soon:
                timer = node.scheduler._soon.popleft()
                if not timer.cancelled:
                    timer.callback(*timer.args)


def say_hi(node, peer, cid="ann", **claim):
    """The client of a session comes back, and nothing has happened yet."""
    new = node.open()
    new.ticket = dict(peer.ticket)
    new.say(
        "~wse:hi", {"identity": cid, "meta": {}, "ext": {"resume": {**peer.ticket, "got": 0, "sent": [1, 0], **claim}}}
    )
    return new


def steps_of_a_move():
    """How many steps it takes."""
    nodes = Cluster()
    peer = nodes.first(nodes[0])
    say_hi(nodes[1], peer)
    count = [0]
    stepwise(nodes, lambda: count.__setitem__(0, count[0] + 1))
    return count[0]


STEPS = range(steps_of_a_move())


def at(step, do):
    """Does something before one of the steps."""
    counted = [0]

    def count():
        if counted[0] == step:
            do()
        counted[0] += 1

    return count
