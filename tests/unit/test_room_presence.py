"""The presence of rooms on one node: states, who is told of them, and clients that enter by themselves."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from support.core import ServerSide
from support.presence import Member, come, shown
from wse.core.hub.presence.board import INTERVAL
from wse.core.hub.presence.watchers import FRAME
from wse.core.hub.rooms import Room
from wse.core.limits import Limits
from wse.core.resume import Resume
from wse.errors import ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack


class Side(ServerSide):
    """A server with a room that has presence."""

    def __init__(self, guard=lambda conn, name: None, **options):
        options.setdefault("conns_per_user", 1000)
        super().__init__(**options)
        self.hub.entrance.guard = guard
        self.hub.rooms.make_board("doc")

    @property
    def room(self):
        return Room(self.hub.rooms, "doc")

    @property
    def shown(self):
        return shown(self.room)

    def come(self, cid="ann", ext=None, protocol=None):
        peer = come(self, cid, ext, protocol)
        self.scheduler.run()
        (_, answer, _), _ = peer.heard
        assert answer["rooms"]["device"] == peer.conn.conn_id
        return peer

    def member(self, cid="ann", **options):
        """A client that is in the room, by the server's decision."""
        peer = self.come(cid, **options)
        self.room.add(peer.conn)
        return Member(peer)

    def ask(self, peer, type_="~wse:join", payload="doc", stamp=1):
        """The answer to a call, and what came before it."""
        peer.say(type_, payload, stamp)
        self.scheduler.run()
        return peer.heard

    def pass_(self):
        """Let changes be told."""
        self.scheduler.advance(INTERVAL)

    def violations(self):
        return [error for error, _ in self.errors if error.code == ErrorCode.PROTOCOL_VIOLATION]


# States.


def test_who_enters_gets_a_snapshot_and_then_what_changes():
    side = Side()
    ann = side.member("ann")
    side.room.presence.set(ann.conn, {"cursor": [3, 9]})
    bob = side.member("bob")
    assert bob.read() == {("ann", ann.conn.conn_id): {"cursor": [3, 9]}}
    side.pass_()
    side.room.presence.set(bob.conn, "here")
    side.room.presence.set(ann.conn, "there")
    side.pass_()
    expected = {("ann", ann.conn.conn_id): "there", ("bob", bob.conn.conn_id): "here"}
    assert ann.read() == bob.read() == side.shown == expected
    assert not ann.rest
    assert not bob.rest


def test_a_user_has_one_entry_with_all_devices():
    side = Side()
    phone, laptop = side.member("ann"), side.member("ann")
    side.room.presence.set(phone.conn, 1)
    side.room.presence.set(laptop.conn, 2)
    assert side.room.presence.members == {"ann": {phone.conn.conn_id: 1, laptop.conn.conn_id: 2}}


def test_a_change_goes_as_one_frame_that_is_encoded_once_and_holds_what_changed_meanwhile():
    side = Side()
    members = [side.member(f"u{n}") for n in range(5)]
    side.pass_()
    for member in members:
        member.read()
        member.frames.clear()
    for n in range(50):
        side.room.presence.set(members[n % 5].conn, n)
    side.pass_()
    assert [len(member.read()) for member in members] == [5] * 5
    assert all(len(member.frames) == 1 and len(member.frames[0][1]) == 5 for member in members)
    assert len({id(member.peer.link.shared[-1]) for member in members}) == 1


def test_the_first_change_after_a_pause_is_told_in_the_next_turn():
    side = Side()
    ann = side.member("ann")
    side.scheduler.advance(1)
    side.room.presence.set(ann.conn, 1)
    assert not ann.read()
    side.scheduler.run()
    assert ann.state_in(ann.read()) == 1
    side.room.presence.set(ann.conn, 2)
    side.scheduler.advance(INTERVAL / 2)
    assert ann.state_in(ann.read()) == 1
    side.scheduler.advance(INTERVAL / 2)
    assert ann.state_in(ann.read()) == 2


def test_the_same_state_again_is_told_to_nobody():
    side = Side()
    ann = side.member("ann")
    side.room.presence.set(ann.conn, {"typing": True}, ttl=3)
    side.pass_()
    ann.read()
    before = len(ann.frames)
    for _ in range(5):
        side.scheduler.advance(2)
        side.room.presence.set(ann.conn, {"typing": True}, ttl=3)
    assert len(ann.frames) == before
    assert ann.state_in(ann.read()) == {"typing": True}
    side.scheduler.advance(3 + INTERVAL)
    assert ann.read() == {}


def test_states_expire_unless_they_are_set_again():
    side = Side()
    ann, bob, eve = (side.member(cid) for cid in ("ann", "bob", "eve"))
    side.room.presence.set(ann.conn, 1, ttl=5)
    side.room.presence.set(bob.conn, 1, ttl=2)
    side.room.presence.set(eve.conn, 1)
    side.scheduler.advance(1.9)
    side.room.presence.set(bob.conn, 2, ttl=4)
    side.scheduler.advance(3)
    assert set(side.shown) == {(m.conn.cid, m.conn.conn_id) for m in (ann, bob, eve)}
    side.scheduler.advance(0.2)
    assert [m.state_in(side.shown) for m in (ann, bob, eve)] == [None, 2, 1]
    side.scheduler.advance(1)
    assert [m.state_in(side.shown) for m in (ann, bob, eve)] == [None, None, 1]
    side.room.presence.set(eve.conn, 3, ttl=1)
    side.room.presence.set(eve.conn, 4)
    side.scheduler.advance(100)
    assert eve.read() == side.shown == {("eve", eve.conn.conn_id): 4}


def test_a_state_goes_when_it_is_cleared_and_when_its_connection_leaves_or_ends():
    side = Side()
    ann, bob, eve, dan = (side.member(cid) for cid in ("ann", "bob", "eve", "dan"))
    for member in (ann, bob, eve, dan):
        side.room.presence.set(member.conn, 1)
    side.room.presence.clear(ann.conn)
    side.room.presence.clear(ann.conn)
    side.room.discard(bob.conn)
    eve.peer.vanish()
    side.pass_()
    assert dan.read() == side.shown == {("dan", dan.conn.conn_id): 1}
    assert bob.read() == {}
    assert bob.frames[-1] == ["doc", None]
    dan.peer.vanish()
    side.room.discard(ann.conn)
    side.pass_()
    assert side.shown == {}
    board = side.hub.rooms.board("doc")
    assert not board.members
    assert not board.watchers._conns
    assert not board._until


def test_a_detached_session_keeps_its_state_within_its_ttl_and_learns_the_newest_when_it_is_back():
    side = Side(resume=Resume())
    bob = side.member("bob")
    ann = side.member("ann", ext={"rooms": {}, "resume": {"window": 60}})
    side.room.presence.set(ann.conn, "for long")
    ann.read()
    ann.peer.vanish()
    for n in range(200):
        side.room.presence.set(bob.conn, n)
        side.scheduler.advance(0.1)
    assert ann.state_in(bob.read()) == "for long"
    assert len(ann.conn._session.own_outbox) == 0  # nothing waits for it
    side.room.presence.set(ann.conn, "short", ttl=1)
    side.scheduler.advance(2)
    assert ann.state_in(bob.read()) is None
    side.scheduler.advance(60)  # its window is over
    assert ann.conn._session.ended
    assert side.room.presence.members == {"bob": {bob.conn.conn_id: 199}}


def test_who_has_no_extension_is_told_nothing_and_may_have_a_state():
    side = Side()
    plain = side.join("old")
    side.room.add(plain.conn)
    ann = side.member("ann")
    side.room.presence.set(plain.conn, "here")
    side.pass_()
    side.room.discard(plain.conn)
    side.pass_()
    assert [kind for kind, *_ in plain.heard] == []
    assert [entry[2] for _, entries, *_ in (ann.read(), *ann.frames)[1:] for entry in entries or ()] == ["here", None]


def test_a_state_is_plain_so_it_is_the_same_on_all_nodes_and_later_changes_do_not_count():
    side = Side()
    ann = side.member("ann")
    state = {"at": (1, 2)}
    side.room.presence.set(ann.conn, state)
    state["more"] = object()
    side.pass_()
    assert ann.state_in(ann.read()) == ann.state_in(side.shown) == {"at": [1, 2]}


@pytest.mark.parametrize(
    ("state", "ttl", "error"),
    [(None, None, TypeError), (object(), None, TypeError), (2**70, None, TypeError), (1, 0, ValueError),
     (1, -1, ValueError), (1, float("inf"), ValueError), (1, float("nan"), ValueError), (1, "1", ValueError),
     (1, True, ValueError)],
)  # fmt: skip
def test_what_is_no_state_or_no_time_is_refused(state, ttl, error):
    side = Side()
    ann = side.member("ann")
    with pytest.raises(error):
        side.room.presence.set(ann.conn, state, ttl)
    assert side.shown == {}


def test_a_state_that_is_too_large_is_refused():
    side = Side(limits=Limits(state_size=100))
    ann = side.member("ann")
    with pytest.raises(WseError) as caught:
        side.room.presence.set(ann.conn, "x" * 100)
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    assert caught.value.details == {"limit": "state_size", "allowed": 100, "size": 102}


def test_only_a_member_has_a_state_and_one_that_has_ended_none():
    side = Side()
    ann = side.come("ann")
    for do in (lambda: side.room.presence.set(ann.conn, 1), lambda: side.room.presence.clear(ann.conn)):
        with pytest.raises(ValueError, match="not in the room"):
            do()
    ann.vanish()
    side.room.presence.set(ann.conn, 1)
    side.room.presence.clear(ann.conn)
    assert side.shown == {}


def test_a_room_has_presence_only_if_that_is_asked_for_and_members_that_are_there_take_part():
    side = Side()
    early = side.come("ann")
    tea = Room(side.hub.rooms, "tea")
    tea.add(early.conn)
    with pytest.raises(WseError) as caught:
        _ = tea.presence
    assert caught.value.code == ErrorCode.UNSUPPORTED
    assert early.heard == []
    side.hub.rooms.make_board("tea")
    assert early.heard == [("~wse:presence", ["tea", [], True], None)]
    tea.presence.set(early.conn, 1)
    assert Room(side.hub.rooms, "tea").presence.members == {"ann": {early.conn.conn_id: 1}}


# Members that are slow, or take little.


def test_a_slow_member_gets_the_newest_only_and_nothing_waits_for_it():
    side = Side()
    ann, slow = side.member("ann"), side.member("slow")
    slow.read()
    slow.peer.session.writable(False)
    for n in range(500):
        side.room.presence.set(ann.conn, n)
        side.pass_()
    gone = side.member("gone")
    side.room.presence.set(gone.conn, "x")
    side.pass_()
    gone.peer.vanish()
    side.pass_()
    assert slow.peer.session.outbox_size == 0
    slow.frames.clear()
    slow.peer.session.writable(True)
    side.scheduler.run()
    assert slow.read() == {("ann", ann.conn.conn_id): 499}
    assert len(slow.frames) == 1
    side.room.presence.set(ann.conn, "and on")
    side.pass_()
    assert slow.read() == {("ann", ann.conn.conn_id): "and on"}


def test_who_enters_while_it_is_slow_gets_the_snapshot_later():
    side = Side()
    ann = side.member("ann")
    side.room.presence.set(ann.conn, 1)
    slow = Member(side.come("slow"))
    slow.peer.session.writable(False)
    side.room.add(slow.conn)
    side.room.presence.set(ann.conn, 2)
    side.pass_()
    assert slow.read() == {}
    slow.peer.session.writable(True)
    side.scheduler.run()
    assert slow.read() == {("ann", ann.conn.conn_id): 2}
    assert slow.is_in


def test_a_slow_member_that_leaves_and_enters_again_is_told_once():
    side = Side()
    ann = side.member("ann")
    slow = side.member("slow")
    slow.peer.session.writable(False)
    side.room.presence.set(ann.conn, 1)
    side.pass_()
    side.room.discard(slow.conn)
    side.room.add(slow.conn)
    slow.peer.session.writable(True)
    side.scheduler.run()
    assert slow.read() == {("ann", ann.conn.conn_id): 1}
    side.room.presence.set(ann.conn, 2)
    side.pass_()
    assert slow.read() == {("ann", ann.conn.conn_id): 2}
    assert not side.hub.rooms.board("doc").watchers._behind


def test_what_a_slow_member_lacks_is_bounded():
    side = Side()
    slow = side.member("slow")
    slow.peer.session.writable(False)
    for n in range(1200):
        one = side.member(f"u{n}", ext={"rooms": {}})
        side.room.presence.set(one.conn, n)
        side.pass_()
        one.peer.vanish()
        side.pass_()
    assert side.hub.rooms.board("doc").watchers._behind[slow.conn.conn_id] is None
    slow.peer.session.writable(True)
    side.scheduler.run()
    assert slow.read() == {}


def test_large_rooms_are_told_in_several_messages():
    side = Side()
    members = [side.member(f"u{n}") for n in range(30)]
    for member in members:
        side.room.presence.set(member.conn, "x" * 3000)
    side.pass_()
    late = side.member("late")
    expected = side.shown
    assert len(expected) == 30
    for member in (*members, late):
        assert member.read() == expected
        assert all(len(json.dumps(frame)) < 1.2 * FRAME for frame in member.frames)
    assert len(late.frames) == 3
    assert [len(frame) for frame in late.frames] == [3, 2, 2]


def test_a_member_that_takes_only_small_messages_gets_small_ones():
    side = Side()
    small = side.member("small", ext={"rooms": {}, "limits": {"message_size": 400}})
    members = [side.member(f"u{n}") for n in range(20)]
    for member in members:
        side.room.presence.set(member.conn, "x" * 50)
    side.room.presence.set(members[0].conn, "x" * 500)
    side.pass_()
    side.scheduler.run()
    expected = {key: state for key, state in side.shown.items() if len(state) < 400}
    assert len(expected) == 19
    assert small.read() == expected
    assert all(len(json.dumps(frame)) <= 400 for frame in small.frames)


def test_members_that_speak_different_protocols_see_the_same():
    json_, msgpack = WseJSON(), WseMsgpack()
    side = Side(protocols=(json_, msgpack))
    ann, bob = side.member("ann", protocol=json_), side.member("bob", protocol=msgpack)
    side.room.presence.set(ann.conn, [1, 2])
    side.room.presence.set(bob.conn, {"at": 3})
    side.pass_()
    assert ann.read() == bob.read() == side.shown


def test_a_state_that_one_protocol_cannot_carry_is_reported_and_the_others_are_told():
    json_, msgpack = WseJSON(), WseMsgpack()
    side = Side(protocols=(json_, msgpack))
    ann, bob = side.member("ann", protocol=json_), side.member("bob", protocol=msgpack)
    bob.peer.say("~wse:set", ["doc", {("a", "b"): 1}, None])  # JSON has no such keys
    side.room.presence.set(ann.conn, 7)
    side.pass_()
    side.scheduler.run()
    assert ann.read() == {("ann", ann.conn.conn_id): 7}
    assert side.errors
    assert {error.code for error, _ in side.errors} == {ErrorCode.MSG_PROCESSING_ERROR}


# Clients that enter by themselves.


def test_a_client_enters_a_room_and_leaves_it():
    asked = []
    side = Side(lambda conn, name: asked.append((conn.cid, name)))
    ann = side.come("ann")
    assert side.ask(ann) == [("~wse:presence", ["doc", [], True], None), ("~wse:response", True, 1)]
    assert asked == [("ann", "doc")]
    ann.say("~wse:set", ["doc", {"cursor": 1}, 5])
    side.pass_()
    assert side.room.presence.members == {"ann": {ann.conn.conn_id: {"cursor": 1}}}
    assert ann.heard == [("~wse:presence", ["doc", [["ann", ann.conn.conn_id, {"cursor": 1}]]], None)]
    ann.say("~wse:set", ["doc", None, None])
    assert side.shown == {}
    assert side.ask(ann, "~wse:leave") == [("~wse:presence", ["doc", None], None), ("~wse:response", None, 1)]
    assert not side.hub.rooms.of(ann.conn)
    assert side.ask(ann, "~wse:leave") == [("~wse:response", None, 1)]
    assert not side.errors


def test_a_client_may_enter_a_plain_room_and_shows_nothing_there():
    side = Side()
    ann = side.come("ann")
    assert side.ask(ann, payload="plain") == [("~wse:response", False, 1)]
    ann.say("~wse:set", ["plain", 1, None])
    Room(side.hub.rooms, "plain").send("say", "hello")
    assert ann.heard == [("say", "hello", None)]
    assert not side.errors


def refusal(heard):
    ((type_, payload, _),) = heard
    assert type_ == "~wse:response-err"
    return payload["code"], payload["details"].get("why")


def test_the_guard_decides_and_its_error_is_the_answer():
    def guard(conn, name):
        if name == "secret":
            raise WseError("app.secret", {"why": "secret"})
        return name != "closed"

    side = Side(guard)
    ann = side.come("ann")
    assert refusal(side.ask(ann, payload="secret")) == ("app.secret", "secret")
    assert refusal(side.ask(ann, payload="closed")) == ("wse.not-authorized", None)
    assert side.ask(ann, payload="open") == [("~wse:response", False, 1)]
    assert set(side.hub.rooms.of(ann.conn)) == {"open"}


def test_an_async_guard_decides_later():
    side = Side()
    verdicts = []

    async def guard(conn, name):
        verdicts.append(side.scheduler.create_future())
        return await verdicts[-1]

    side.hub.entrance.guard = guard
    ann = side.come("ann")
    assert side.ask(ann, stamp=1) == side.ask(ann, payload="closed", stamp=2) == side.ask(ann, stamp=3) == []
    verdicts[0].set_result(None)
    verdicts[1].set_result(False)
    side.scheduler.run()
    assert [(kind, stamp) for kind, _, stamp in ann.heard] == [
        ("~wse:presence", None), ("~wse:response", 1), ("~wse:response-err", 2),
    ]  # fmt: skip
    ann.vanish()
    verdicts[2].set_result(None)
    side.scheduler.advance(20)
    assert not side.hub.rooms.local("doc")


def test_a_client_that_leaves_before_the_guard_has_decided_is_not_let_in():
    side = Side()
    verdicts = []

    async def guard(conn, name):
        verdicts.append(side.scheduler.create_future())
        return await verdicts[-1]

    side.hub.entrance.guard = guard
    ann = side.come("ann")
    ann.say("~wse:join", "doc", 1)
    assert side.ask(ann, "~wse:leave", stamp=2) == [("~wse:response", None, 2)]
    assert side.ask(ann, stamp=3) == []
    verdicts[0].set_result(None)
    side.scheduler.run()
    assert refusal(ann.heard) == ("wse.not-authorized", None)
    assert not side.hub.rooms.local("doc")
    verdicts[1].set_result(None)
    side.scheduler.run()
    assert [stamp for *_, stamp in ann.heard] == [None, 3]
    assert not side.hub.entrance._entering


@pytest.mark.parametrize("name", ["doc", "plain"])
def test_a_client_that_is_removed_while_it_enters_is_not_told_that_it_is_in(name):
    side = Side()
    room = Room(side.hub.rooms, name)
    room.when.joined(room.discard)
    ann = side.come("ann")
    ann.say("~wse:join", name, 1)
    side.scheduler.run()
    assert refusal(ann.heard[-1:]) == ("wse.not-authorized", None)
    assert not side.hub.rooms.of(ann.conn)


def test_an_exception_of_the_guard_is_reported_and_answered_like_that_of_a_procedure():
    def guard(conn, name):
        raise RuntimeError("database")

    side = Side(guard)
    ann = side.come("ann")
    assert refusal(side.ask(ann)) == ("wse.server.rp.failed", None)
    assert str(side.error.__cause__) == "database"
    assert not ann.session.ended


def test_without_a_guard_nobody_enters():
    side = Side(None)
    ann = side.come("ann")
    assert refusal(side.ask(ann)) == ("wse.not-authorized", None)
    assert not side.errors
    assert not ann.session.ended


def test_who_enters_again_gets_a_snapshot_again():
    side = Side()
    ann = side.come("ann")
    side.ask(ann)
    ann.say("~wse:set", ["doc", 1, None])
    side.pass_()
    assert ann.heard
    assert side.ask(ann) == [
        ("~wse:presence", ["doc", [["ann", ann.conn.conn_id, 1]], True], None),
        ("~wse:response", True, 1),
    ]


def test_a_client_may_be_in_so_many_rooms():
    side = Side(limits=Limits(rooms=2))
    ann = side.come("ann")
    for name in ("a", "b", "a"):
        assert side.ask(ann, payload=name)[-1][0] == "~wse:response"
    assert refusal(side.ask(ann, payload="c")) == ("wse.limit-exceeded", None)
    assert refusal(side.ask(ann, payload="c")) == ("wse.limit-exceeded", None)
    assert side.error.details["limit"] == "rooms"  # reported once
    assert side.endpoint.counters.limits["rooms"] == 2
    Room(side.hub.rooms, "c").add(ann.conn)  # the server may add it to any number
    assert len(side.hub.rooms.of(ann.conn)) == 3


def test_guards_that_decide_at_the_same_time_let_nobody_into_more_rooms():
    side = Side(limits=Limits(rooms=2))
    verdict = side.scheduler.create_future()

    async def guard(conn, name):
        await asyncio.shield(verdict)

    side.hub.entrance.guard = guard
    ann = side.come("ann")
    for stamp, name in enumerate("abcd", 1):
        side.ask(ann, payload=name, stamp=stamp)
    verdict.set_result(None)
    side.scheduler.run()
    assert sorted(kind for kind, *_ in ann.heard) == ["~wse:response"] * 2 + ["~wse:response-err"] * 2
    assert len(side.hub.rooms.of(ann.conn)) == 2


@pytest.mark.parametrize(
    "name", [None, "", "x" * 201, True, 1.5, [], {}, ["doc"], 2**64, -(2**63) - 1, "\x00" * 201, {"name": "doc"}]
)
def test_what_is_no_name_of_a_room_is_answered_with_an_error(name):
    side = Side()
    ann = side.come("ann", protocol=None)
    if name in (2**64, -(2**63) - 1) and not isinstance(name, str):
        ann.receiver.receive(f'["~wse:join",{name},1]')
        heard = ann.heard
    else:
        heard = side.ask(ann, payload=name)
    assert refusal(heard) == ("wse.invalid-payload", None)
    assert not side.errors
    assert not side.hub.rooms.of(ann.conn)


@pytest.mark.parametrize(
    ("type_", "payload", "stamp"),
    [("~wse:join", "doc", None), ("~wse:join", "doc", 0), ("~wse:leave", "doc", None), ("~wse:leave", [], 1),
     ("~wse:leave", {"a": 1}, 1), *(("~wse:set", payload, None) for payload in (
         None, 7, "doc", [], ["doc"], ["doc", 1], ["doc", 1, None, 4], {"a": 1, "b": 2, "c": 3}, [None, 1, None],
         [[], 1, None], [{}, 1, None], ["doc", 1, 0], ["doc", 1, -1], ["doc", 1, "2"], ["doc", 1, True], ["doc", 1, []],
         [True, 1, None])),
     ("~wse:set", ["doc", 1, None], 5)],
)  # fmt: skip
def test_garbage_breaks_the_protocol_and_is_no_traceback(type_, payload, stamp):
    side = Side()
    ann = side.member("ann")
    ann.peer.say(type_, payload, stamp)
    side.scheduler.run()
    assert ann.peer.closed_with == (1000, "wse.protocol-error")
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert side.error.__cause__ is None
    assert side.shown == {}


def test_a_ttl_beyond_all_floats_breaks_the_protocol_and_is_no_traceback():
    side = Side()
    ann = side.member("ann")
    ann.peer.receiver.receive(f'["~wse:set",["doc",1,1{"0" * 400}],null]')
    assert ann.peer.closed_with == (1000, "wse.protocol-error")
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert side.shown == {}


def test_a_state_from_a_client_that_is_too_large_is_dropped_and_reported_once():
    side = Side(limits=Limits(state_size=50))
    ann = side.member("ann")
    for _ in range(3):
        ann.peer.say("~wse:set", ["doc", "x" * 60, None])
    assert side.shown == {}
    assert side.error.details["limit"] == "state_size"
    assert side.endpoint.counters.limits["state_size"] == 3
    assert not ann.conn._session.ended


def test_a_client_that_sets_a_state_where_it_is_not_is_told_so():
    side = Side()
    ann = side.come("ann")
    ann.say("~wse:set", ["doc", 1, None])
    assert ann.heard == [("~wse:presence", ["doc", None], None)]
    assert side.shown == {}


def test_without_the_extension_these_are_unknown_names():
    side = Side()
    peer = side.join("old")
    for name in ("~wse:join", "~wse:leave"):
        peer.say(name, "doc", 1)
        assert refusal(peer.heard) == ("wse.server.rp.not-registered", None)
    peer.say("~wse:set", ["doc", 1, None])
    assert peer.heard == []
    assert side.shown == {}


def test_all_members_agree_after_any_schedule():
    for seed in range(30):
        rng = random.Random(seed)
        side = Side(resume=Resume())
        members = []
        for step in range(150):
            what = rng.random()
            if what < 0.15 or not members:
                members.append(side.member(f"u{rng.randrange(5)}"))
            elif what < 0.6:
                size = rng.choice((1, 1, 1, 3000))
                side.room.presence.set(rng.choice(members).conn, [step % 100] * size, rng.choice((None, 0.1, 1, 5)))
            elif what < 0.7:
                side.room.presence.clear(rng.choice(members).conn)
            elif what < 0.75:
                members.pop(rng.randrange(len(members))).peer.vanish()
            elif what < 0.8:
                side.room.discard(members.pop(rng.randrange(len(members))).conn)
            elif what < 0.95:
                session = rng.choice(members).peer.session
                session.writable(not session._writable)
            side.scheduler.advance(rng.choice((0, 0, 0.01, INTERVAL, 0.3)))
        for member in members:
            member.peer.session.writable(True)
        side.scheduler.advance(2 * INTERVAL)
        for member in members:
            assert member.read() == side.shown, seed
        assert not side.hub.rooms.board("doc").watchers._behind
