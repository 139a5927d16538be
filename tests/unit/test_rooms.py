"""Rooms, and who is left out of a message, on one node."""

import pytest

from support.core import ServerSide
from wse.core.hub.rooms import Room, Rooms


class Side(ServerSide):
    """A hub with rooms."""

    def __init__(self, **options):
        super().__init__(conns_per_user=3, **options)
        self.hub.rooms = Rooms(self.hub)

    def room(self, name="tea"):
        return Room(self.hub.rooms, name)

    def watch(self, name="tea"):
        when = self.room(name).when
        when.joined(lambda conn: self.log.append(("in", conn.cid, name)))
        when.left(lambda conn: self.log.append(("out", conn.cid, name)))

    def members(self, name="tea"):
        return self.scheduler.start(self.room(name).members()).result()


def heard(*peers):
    return [[(kind, payload) for kind, payload, _ in peer.heard] for peer in peers]


def test_a_message_to_a_room_reaches_its_members_and_nobody_else():
    side = Side()
    ann, bob, eve = side.join("ann"), side.join("bob"), side.join("eve")
    side.room().add(ann.conn)
    side.room().add(bob.conn)
    side.room("other").add(eve.conn)
    side.room().send("say", 1)
    assert heard(ann, bob, eve) == [[("say", 1)], [("say", 1)], []]
    assert ann.link.shared[-1] is bob.link.shared[-1]  # encoded once


def test_an_identity_brings_all_its_devices_and_takes_them_out():
    side = Side()
    phone, laptop = side.join("ann"), side.join("ann")
    identity = phone.conn.client
    side.room().add(identity)
    side.room().send("say", 1)
    side.room().discard(identity)
    side.room().send("say", 2)
    assert heard(phone, laptop) == [[("say", 1)], [("say", 1)]]


def test_who_is_excluded_gets_nothing():
    side = Side()
    phone, laptop, bob = side.join("ann"), side.join("ann"), side.join("bob")
    room = side.room()
    for peer in (phone, laptop, bob):
        room.add(peer.conn)
    for send in (
        lambda exclude: room.send("say", 1, exclude=exclude),
        lambda exclude: side.hub.broadcast("say", 1, exclude),
    ):
        send(phone.conn)
        assert heard(phone, laptop, bob) == [[], [("say", 1)], [("say", 1)]]
        for ann in ("ann", phone.conn.client):
            send(ann)
            assert heard(phone, laptop, bob) == [[], [], [("say", 1)]]
    side.hub.send("ann", "say", 1, phone.conn)
    phone.conn.client.send("say", 2, exclude=laptop.conn)
    assert heard(phone, laptop, bob) == [[("say", 2)], [("say", 1)], []]


def test_a_connection_that_ends_leaves_its_rooms_before_anybody_is_told():
    side = Side()
    ann, bob = side.join("ann"), side.join("bob")
    for name in ("tea", "cake"):
        side.watch(name)
        side.room(name).add(ann.conn)
        side.room(name).add(bob.conn)
    side.hub.disconnected(lambda conn, code, reason: side.room().send("gone", conn.cid))
    ann.session.closed(1001, "")
    assert sorted(side.names("out")) == [("out", "ann", "cake"), ("out", "ann", "tea")]
    assert heard(bob) == [[("gone", "ann")]]
    assert side.members() == {"bob"}
    bob.session.closed(1001, "")
    assert (side.hub.rooms._members, side.hub.rooms._rooms_of) == ({}, {})


def test_entering_and_leaving_fire_once():
    side = Side()
    side.watch()
    ann = side.join("ann")
    room = side.room()
    room.add(ann.conn)
    room.add(ann.conn)
    room.discard(ann.conn)
    room.discard(ann.conn)
    room.add(ann.conn)
    side.room("other").add(ann.conn)
    room.discard(ann.conn)
    assert side.names("in", "out") == [("in", "ann", "tea"), ("out", "ann", "tea")] * 2
    assert side.members("other") == {"ann"}


def test_leaving_a_room_does_nothing_to_a_member_of_another():
    side = Side()
    ann = side.join("ann")
    side.room("tea").add(ann.conn)
    side.room("cake").discard(ann.conn)
    assert side.members("tea") == {"ann"}
    assert side.members("cake") == set()


def test_a_connection_that_has_left_one_of_its_rooms_leaves_the_others_at_its_end():
    side = Side()
    ann = side.join("ann")
    for name in ("tea", "cake"):
        side.room(name).add(ann.conn)
    side.room("tea").discard(ann.conn)
    ann.session.closed(1001, "")
    assert (side.hub.rooms._members, side.hub.rooms._rooms_of) == ({}, {})


def test_a_room_keeps_nothing_of_connections_that_have_ended_or_are_not_accepted():
    side = Side()
    ended, stranger = side.join("ann"), side.open()
    ended.session.closed(1001, "")
    side.room().add(ended.conn)
    side.room().add(stranger.conn)
    assert side.members() == frozenset()
    assert side.hub.rooms._members == {}


def test_members_are_users_however_many_devices_they_have_in_the_room():
    side = Side()
    for cid in ("ann", "ann", "bob", "eve"):
        peer = side.join(cid)
        if cid != "eve":
            side.room().add(peer.conn)
    assert side.members() == {"ann", "bob"}


@pytest.mark.parametrize("method", ["add", "discard"])
def test_what_cannot_be_a_member_is_rejected_at_once(method):
    with pytest.raises(TypeError, match=r"a WseConnection or a WseIdentity, such as .*, not 'ann'"):
        getattr(Side().room(), method)("ann")


def test_a_room_has_a_readable_name():
    assert repr(Side().room("tea")) == "<Room tea>"
