"""The server's authentication: every event in every state, and what handlers may do wrong.

The conversations that any implementation must hold are in spec/vectors/handshake-server.json.
"""

from __future__ import annotations

import asyncio

import pytest

from support.core import ClientSide, FakeRequest, ServerSide
from wse.core.hub.handshake import TRANSITIONS, Event, State
from wse.errors import ErrorCode, WseError


class Held(ServerSide):
    """A server whose handlers hand their `auth` to the test and decide nothing themselves."""

    def __init__(self, *, challenge=True, **options):
        self.held = []
        super().__init__(self.held.append, self.held.append if challenge else None, **options)

    def reach(self, state):
        """A connection in that state."""
        peer = self.open()
        if state is State.GONE:
            peer.session.closed(1006, "")
            return peer
        if state is not State.STRANGER:
            peer.say("~wse:hi", {"identity": "token"})
        if state in (State.CHALLENGED, State.VALID):
            self.held[-1].quest("q")
        if state is State.VALID:
            peer.say("~wse:challenge", "r")
            self.held[-1].accept("ann")
        return peer


def state_of(peer):
    if peer.session.ended:
        return State.GONE
    return State.VALID if peer.session.valid else peer.session._phase.state


def happen(side, peer, opening, event):
    match event:
        case Event.HI:
            peer.say("~wse:hi", {"identity": "again"})
        case Event.RESPONSE:
            peer.say("~wse:challenge", "again")
        case Event.QUEST:
            opening.quest("again")
        case Event.ACCEPT:
            opening.accept("bob", "again")
        case Event.END:
            peer.session.closed(1006, "")


# What is not in the table: a message that the state does not take ends it, a decision that it does not take is nothing.
OTHERWISE = {
    (State.STRANGER, Event.RESPONSE): State.GONE,
    (State.CHALLENGED, Event.HI): State.GONE,
    (State.VALID, Event.END): State.GONE,
}


@pytest.mark.parametrize("event", list(Event))
@pytest.mark.parametrize("state", list(State))
def test_every_event_in_every_state_leads_where_the_table_says(state, event):
    side = Held()
    peer = side.reach(state)
    opening = peer.session._phase.handshake if state is State.STRANGER else side.held[-1] if side.held else None
    if opening is None:  # gone before it said anything
        stranger = side.open()
        opening = stranger.session._phase.handshake
        stranger.session.closed(1006, "")
    assert state_of(peer) is state
    errors = len(side.errors)
    sent = len(peer.link.sent)
    happen(side, peer, opening, event)
    expected = TRANSITIONS.get((state, event)) or OTHERWISE.get((state, event), state)
    assert state_of(peer) is expected
    if expected is state:
        assert len(peer.link.sent) == sent
        assert len(side.errors) == errors
        assert peer.link.closes == []


@pytest.mark.parametrize("state", list(State))
def test_a_refusal_counts_until_the_decision(state):
    side = Held()
    peer = side.reach(state)
    opening = peer.session._phase.handshake if state is State.STRANGER else (side.held or [None])[-1]
    if opening is not None:
        opening.refuse()
    decided = state in (State.VALIDATING, State.CHALLENGED)
    assert peer.closed_with == ((1000, "wse.not-authorized") if decided else None)


def test_the_handlers_see_who_asks():
    side = Held()
    peer = side.open()
    peer.say("~wse:hi", {"identity": {"token": 1}, "meta": {"m": 2}})
    (auth,) = side.held
    assert (auth.identity, auth.meta, auth.challenge) == ({"token": 1}, {"m": 2}, None)
    assert auth.conn_id == peer.conn.conn_id
    assert isinstance(auth.request, FakeRequest)
    assert repr(auth) == f"<Handshake {auth.conn_id} from 192.0.2.1>"
    auth.quest("q")
    assert (auth.challenge.quest, auth.challenge.response) == ("q", None)
    peer.say("~wse:challenge", "r")
    assert side.held == [auth, auth]
    assert (auth.challenge.quest, auth.challenge.response) == ("q", "r")
    assert repr(auth.challenge) == "<Challenge>"
    assert "token" not in repr(auth)


def test_on_accept_things_happen_in_the_order_of_the_contract():
    side = ServerSide(conns_per_user=1)
    side.join("ann", "old")
    side.log.clear()
    side.join("ann", "new")
    side.join("bob", "third")
    assert side.log == [
        ("close", "old", 1000, "wse.clients-concurrency"),
        ("disconnected", "ann", 1000, "wse.clients-concurrency"),
        ("write", "new", '["~wse:welcome","welcome",null]'),
        ("connected", "ann"),
        ("write", "third", '["~wse:welcome","welcome",null]'),
        ("joined", "bob", {}),
        ("connected", "bob"),
    ]


def test_a_joined_listener_that_drops_the_connection_leaves_no_connected():
    side = ServerSide()
    side.hub.joined(lambda identity, meta: identity.drop("no"))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.closed_with == (1000, "no")
    assert side.names("connected") == []
    assert side.names("left") == [("left", "ann", 1000, "no")]
    assert (side.hub.identities, side.hub.connections) == ({}, {})


def test_the_user_s_meta_is_that_of_the_first_connection():
    side = ServerSide(conns_per_user=2)
    for device in (1, 2):
        side.open().say("~wse:hi", {"identity": "ann", "meta": {"device": device}})
    identity = side.hub.identities["ann"]
    assert identity.meta == {"device": 1}
    assert [conn.meta for conn in identity.conns.values()] == [{"device": 1}, {"device": 2}]


def raises(auth):
    raise RuntimeError("no")


async def raises_later(auth):
    raise RuntimeError("no")


async def awaits_a_cancelled_task(auth):
    raise asyncio.CancelledError


@pytest.mark.parametrize("handler", [raises, raises_later, awaits_a_cancelled_task])
@pytest.mark.parametrize("which", ["identify", "generator"])
def test_a_handler_that_raises_refuses_and_is_reported_with_its_cause(handler, which):
    side = ServerSide(handler) if which == "identify" else ServerSide(generator=handler)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    side.scheduler.run()
    assert peer.closed_with == (1000, "wse.not-authorized")
    code = ErrorCode.MSG_PROCESSING_ERROR if which == "identify" else ErrorCode.INVALID_CRA_GENERATOR
    assert side.error.code == code
    assert side.error.details == {"conn_id": peer.conn.conn_id}
    assert isinstance(side.error.__cause__, RuntimeError | asyncio.CancelledError)


def test_a_handler_that_raises_after_it_accepted_is_reported_and_the_client_stays():
    def identify(auth):
        auth.accept("ann")
        raise RuntimeError("afterwards")

    side = ServerSide(identify)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.session.valid
    assert isinstance(side.error.__cause__, RuntimeError)


@pytest.mark.parametrize("cid", [["ann"], {"a": 1}, [], {}, set()])
def test_an_id_that_cannot_be_a_key_refuses_and_is_reported(cid):
    side = ServerSide(lambda auth: auth.accept(cid))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert isinstance(side.error.__cause__, TypeError)
    assert side.hub.identities == {}


@pytest.mark.parametrize("cid", [1, ("a", 1), b"x", 1.5])
def test_an_id_may_be_any_key(cid):
    side = ServerSide(lambda auth: auth.accept(cid))
    side.open().say("~wse:hi", {"identity": "ann"})
    assert list(side.hub.identities) == [cid]


@pytest.mark.parametrize("what", ["welcome", "quest"])
def test_what_cannot_be_encoded_refuses_the_client_and_is_reported(what):
    if what == "welcome":
        side = ServerSide(lambda auth: auth.accept("ann", object()))
    else:
        side = ServerSide(generator=lambda auth: auth.quest(object()))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert isinstance(side.error.__cause__, WseError)
    assert side.error.__cause__.code == ErrorCode.MSG_PROCESSING_ERROR
    assert (side.hub.identities, peer.heard) == ({}, [])


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("value", [False, 0, "", "q", {"n": 1}])
def test_what_a_generator_returns_is_the_quest(value, is_async):
    async def later(auth):
        return value

    side = ServerSide(generator=later if is_async else lambda auth: value)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    side.scheduler.run()
    assert peer.heard == [("~wse:challenge", value, None)]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_identify_handler_that_returns_a_decision_is_told_how_to_decide(is_async):
    async def later(auth):
        return True

    side = ServerSide(later if is_async else lambda auth: True)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    side.scheduler.run()
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert "auth.accept" in str(side.error.__cause__)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_an_identify_handler_returns_after_its_decision_does_not_matter(is_async):
    async def later(auth):
        auth.accept("ann")
        return True

    def now(auth):
        auth.accept("ann")
        return True

    side = ServerSide(later if is_async else now)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    side.scheduler.run()
    assert peer.session.valid
    assert side.errors == []


@pytest.mark.parametrize("challenge", [True, False])
def test_only_a_generator_may_ask_and_only_once(challenge):
    side = Held(challenge=challenge)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    if challenge:
        side.held[-1].quest(1)
        peer.say("~wse:challenge", 1)
    with pytest.raises(WseError, match="only the challenge generator") as caught:
        side.held[-1].quest(2)
    assert caught.value.code == ErrorCode.INVALID_CRA_GENERATOR
    side.held[-1].accept("ann")
    assert peer.session.valid


@pytest.mark.parametrize("state", [State.STRANGER, State.VALIDATING, State.CHALLENGED])
def test_the_deadline_closes_whoever_is_not_valid(state):
    side = Held(auth_timeout=5)
    peer = side.reach(state)
    side.scheduler.advance(4.9)
    assert peer.closed_with is None
    side.scheduler.advance(0.1)
    assert peer.closed_with == (1000, "wse.auth-timeout")
    assert side.scheduler.timers == []


@pytest.mark.parametrize("state", [State.VALID, State.GONE])
def test_the_deadline_leaves_no_timer_with_whoever_is_valid_or_gone(state):
    side = Held(auth_timeout=5)
    side.reach(state)
    assert side.scheduler.timers == []


def test_a_deadline_of_zero_sets_no_timer():
    side = Held(auth_timeout=0)
    peer = side.reach(State.VALIDATING)
    assert side.scheduler.timers == []
    peer.session.closed(1000, "")


@pytest.mark.parametrize("stamp", [None, 0, 1, "s"])
def test_the_stamp_of_a_handshake_message_does_not_matter(stamp):
    side = ServerSide(generator=lambda auth: "q")
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"}, stamp)
    peer.say("~wse:challenge", "r", stamp)
    assert peer.session.valid


# The client's side, as far as it is not in spec/vectors/handshake-client.json.


def test_a_client_answers_a_quest_later():
    side = ClientSide()
    gate = side.scheduler.create_future()

    async def respond(quest):
        await gate
        return quest + 1

    peer = side.open(respond)
    peer.say("~wse:challenge", 1)
    side.scheduler.run()
    assert peer.heard == []
    gate.set_result(None)
    side.scheduler.run()
    assert peer.heard == [("~wse:challenge", 2, None)]


def test_a_response_that_comes_after_the_end_is_not_sent():
    side = ClientSide()
    gate = side.scheduler.create_future()

    async def respond(quest):
        await gate

    peer = side.open(respond)
    peer.say("~wse:challenge", 1)
    peer.session.close(1000, "")
    gate.set_result(None)
    side.scheduler.run()
    assert peer.heard == peer.link.late == []


@pytest.mark.parametrize("respond", [raises, raises_later, lambda quest: object()])
def test_a_client_whose_response_fails_ends_the_opening(respond):
    side = ClientSide()
    peer = side.open(respond)
    peer.say("~wse:challenge", 1)
    side.scheduler.run()
    ((_, error),) = side.names("failed")
    assert error.code in (ErrorCode.INVALID_CRA_HANDLER, ErrorCode.MSG_PROCESSING_ERROR)
    assert error.__cause__ is not None
    assert peer.closed_with == (1000, "wse.by-client")


def test_credentials_give_the_application_its_part_of_the_welcome():
    side = ClientSide()
    peer = side.open(finish=lambda welcome: welcome["app"])
    peer.say("~wse:welcome", {"app": 1, "proof": 2})
    assert side.names("welcomed") == [("welcomed", 1)]
    assert peer.session.valid


@pytest.mark.parametrize("error", [WseError(ErrorCode.NOT_AUTHORIZED), KeyError("proof")])
def test_credentials_that_do_not_trust_the_welcome_end_the_opening(error):
    def finish(welcome):
        raise error

    side = ClientSide()
    peer = side.open(finish=finish)
    peer.say("~wse:welcome", {})
    ((_, told),) = side.names("failed")
    assert told is error or told.__cause__ is error
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert side.names("welcomed") == []
