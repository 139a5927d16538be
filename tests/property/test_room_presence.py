"""The presence of a room on several nodes, under random stories of changes, departures, losses and deaths."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.presence import Rooms, is_present, shown
from wse.core.cluster import envelope
from wse.core.cluster.boards import SILENT_BEATS

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
