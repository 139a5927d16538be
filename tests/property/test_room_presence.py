"""The presence of a room on several nodes, under random stories of changes, departures, losses and deaths."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.core import ServerSide
from support.presence import Member, Rooms, come, is_present, shown
from wse import ErrorCode, WseError, WseJSON, WseMsgpack
from wse.core.cluster import envelope
from wse.core.cluster.boards import SILENT_BEATS
from wse.core.hub.rooms import Room

profile = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

STEPS = (
    "enter",
    "show",
    "show",
    "show",
    "expire",
    "clear",
    "leave",
    "end",
    "pace",
    "lose",
    "kill",
    "start",
    "wait",
    "wait",
)

steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=5, max_size=60)


class Story:
    """Nodes with members, and what happens to them."""

    def __init__(self):
        self.nodes = Rooms(3)
        self.members = []  # with their nodes
        self.count = 0
        self.losses = 0  # messages about presence that are about to be lost
        self.nodes.lost = self._is_lost

    def _is_lost(self, message):
        is_about_presence = is_present(message) or isinstance(message, envelope.Answer)
        if not is_about_presence and not (isinstance(message, envelope.Query) and message.what == "presence"):
            return False
        self.losses -= self.losses > 0
        return self.losses > 0

    def take(self, what, number):
        nodes = self.nodes
        node = nodes[number % len(nodes)]
        one = self.members[number % len(self.members)] if self.members else None
        self.count += 1
        if what == "enter":
            self.members.append((node, nodes.member(node, f"u{number % 4}")))
        elif what == "lose":
            self.losses = 1 + number % 12
        elif what == "wait":
            nodes.advance((0.01, 0.06, 0.3, 2, 7)[number % 5])
        elif what == "start" and len(nodes) < 4:
            nodes.start()
        elif what == "kill" and len(nodes) > 1:
            nodes.run()  # what it has sent is on its way
            nodes.kill(node)
            self.members = [(place, member) for place, member in self.members if place is not node]
        elif one is not None:
            self._of_member(what, number, *one)

    def _of_member(self, what, number, node, member):
        room = node.server.room("doc")
        if what == "show":
            room.presence.set(member.conn, ["x" * (number % 50), self.count])
        elif what == "expire":
            room.presence.set(member.conn, self.count, ttl=(0.02, 0.5, 4, 60)[number % 4])
        elif what == "clear":
            room.presence.clear(member.conn)
        elif what == "pace":
            member.peer.session.writable(not member.peer.session._writable)
        elif what in ("leave", "end"):
            self.members.remove((node, member))
            if what == "leave":
                room.discard(member.conn)
            else:
                member.peer.vanish()

    def check(self):
        """Once nothing is lost any more, and every node has beaten, all members see what their nodes hold."""
        self.losses = 0
        for _, member in self.members:
            member.peer.session.writable(True)
        self.nodes.advance((SILENT_BEATS + 1) * self.nodes[0].cluster.settings.lease_ttl)
        expected = {}
        for node in self.nodes:
            for user, device, data in node.hub.rooms.board("doc").own:
                expected[user, device] = envelope.decode_value(data)
        for node, member in self.members:
            assert member.read() == shown(node.server.room("doc")) == expected
        for node in self.nodes:
            assert not node.hub.rooms.board("doc").watchers._behind
            assert {str(error) for error, _ in node.errors} == set()


def tell(story):
    """A story, which ends well."""
    told = Story()
    for what, number in story:
        told.take(what, number)
    told.check()


@settings(profile, max_examples=40, derandomize=True)
@given(steps)
def test_all_members_agree_after_any_losses_and_deaths(story):
    tell(story)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(profile, max_examples=3000)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=50, max_size=200))
def test_all_members_agree_after_any_losses_and_deaths_in_a_long_story(story):
    tell(story)


values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, -1, 1.5, 10**30, "", "doc", "x" * 300, "\x00", "plain"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "doc"]), inner, max_size=2),
    max_leaves=6,
)
messages = st.tuples(
    st.sampled_from(["~wse:join", "~wse:leave", "~wse:set", "~wse:presence"]),
    values | st.tuples(st.sampled_from(["doc", "plain", "x"]), values, values).map(list),
    st.sampled_from([None, 0, 1, "s", [1], True]),
)


@settings(profile, max_examples=50, derandomize=True)
@given(st.lists(messages, max_size=12), st.sampled_from([WseJSON(), WseMsgpack()]))
def test_whatever_a_client_says_of_rooms_harms_nobody_but_itself(said, protocol):
    side = ServerSide(protocols=(WseJSON(), WseMsgpack()), conns_per_user=100)
    side.hub.entrance.guard = lambda conn, name: name != "x"
    room = Room(side.hub.rooms, "doc")
    side.hub.rooms.make_board("doc")
    bystander = Member(come(side, "bystander"))
    room.add(bystander.conn)
    peer = come(side, "ann", protocol=protocol)
    for type_, payload, stamp in said:
        if peer.session.ended:
            peer = come(side, "ann", protocol=protocol)
        try:
            data = protocol.pack(type_, payload, stamp)
        except OverflowError:  # MessagePack has no such integers
            continue
        peer.receiver.receive(data)
        side.scheduler.advance(0.1)
    refused = {ErrorCode.PROTOCOL_VIOLATION, ErrorCode.LIMIT_EXCEEDED, ErrorCode.RP_EXECUTION_FAILED}
    assert {error.code for error, _ in side.errors} <= refused
    assert all(error.__cause__ is None or isinstance(error.__cause__, WseError) for error, _ in side.errors)
    assert bystander.read() == shown(room)
    assert not bystander.conn._session.ended
