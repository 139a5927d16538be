"""Members of rooms with presence, on plain objects."""

from __future__ import annotations

from support.nodes import Nodes
from wse.core.cluster import envelope


class Member:
    """What a client with the extension knows of a room, from what it has been told."""

    def __init__(self, peer):
        self.peer = peer
        self.states = {}
        self.is_in = False
        self.frames = []
        self.rest = []

    def read(self):
        """Take in what has come; returns what it shows of the room."""
        for type_, payload, stamp in self.peer.heard:
            if type_ != "~wse:presence":
                self.rest.append((type_, payload, stamp))
                continue
            self.frames.append(payload)
            _, entries, *rest = payload
            if entries is None:
                self.is_in, self.states = False, {}
                continue
            if rest:
                self.is_in, self.states = True, {}
            assert self.is_in
            for user, device, state in entries:
                self.states[user, device] = state
                if state is None:
                    del self.states[user, device]
        return self.states

    @property
    def conn(self):
        return self.peer.conn

    def state_in(self, states):
        """Its own state."""
        return states.get((self.conn.cid, self.conn.conn_id))


def come(side, cid="ann", ext=None, protocol=None):
    """A client that knows the extension."""
    peer = side.open(protocol=protocol)
    peer.say("~wse:hi", {"identity": cid, "ext": {"rooms": {}} if ext is None else ext})
    return peer


def shown(room):
    """What a server sees of a room, in the form in which a member has it."""
    members = room.presence.members
    return {(user, device): state for user, devices in members.items() for device, state in devices.items()}


class Rooms(Nodes):
    """Nodes with a room that has presence, and messages that are lost when a test wants that."""

    def __init__(self, count=2, **options):
        self.lost = lambda message: False
        super().__init__(count, conns_per_user=100, **options)

    def start(self, **options):
        node = super().start(**options)
        deliver = node.broker.deliver

        def deliver_some(topic, data):
            message = envelope.decode(data)
            if not self.lost(message):
                deliver(topic, data)

        node.broker.deliver = deliver_some
        node.server.room("doc", presence=True)
        node.hub.entrance.guard = lambda conn, name: None
        return node

    def member(self, node, cid="ann", ext=None):
        peer = come(node, cid, ext)
        self.run()
        peer.heard  # noqa: B018
        node.server.room("doc").add(peer.conn)
        self.run()
        return Member(peer)

    def show(self, node, member, state, ttl=None):
        node.server.room("doc").presence.set(member.conn, state, ttl)
        self.advance(0.1)


def is_present(message):
    return isinstance(message, envelope.Present)
