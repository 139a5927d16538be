"""The `auth` extension at the server: reasons of refusals, and sessions that expire (WIRE.md section 7)."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from support.core import ServerSide
from wse.core.hub.auth import ASK_BEFORE, CHECK_EVERY, unix_time
from wse.errors import CloseReason, ErrorCode, WseError

EXPIRED = (1012, "wse.session-expired")
REFUSED = (1000, "wse.not-authorized")
OFFER = {"auth": {}}


def come(side, ext=OFFER):
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": ext})
    side.scheduler.run()
    return peer


def until(seconds, **options):
    """A server whose sessions end that many seconds after they began."""
    side = ServerSide(lambda auth: auth.accept("ann", expires=side.scheduler.now + seconds), **options)
    return side


def types_of(peer):
    return [message[0] for message in peer.heard]


# Refusals.


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("expired",), {"reason": "expired", "retry": False}),
        (("try again", True), {"reason": "try again", "retry": True}),
        ((None, True), {"reason": None, "retry": True}),
    ],
)
def test_a_client_that_offers_auth_is_told_why_it_is_refused(args, told):
    side = ServerSide(lambda auth: auth.refuse(*args))
    peer = come(side)
    assert peer.heard == [("~wse:refused", told, None)]
    assert peer.closed_with == REFUSED


@pytest.mark.parametrize("ext", [None, {}, {"limits": {"message_size": 100_000}}, "auth", ["auth"]])
def test_any_other_client_is_only_closed(ext):
    side = ServerSide(lambda auth: auth.refuse("secret", True))
    peer = come(side, ext)
    assert peer.link.sent == []
    assert peer.closed_with == REFUSED


def test_a_refusal_without_a_reason_is_only_the_close():
    def fail(auth):
        raise ValueError("no")

    for identify in (fail, lambda auth: auth.refuse(), lambda auth: auth.accept(None), lambda auth: auth.accept(0)):
        peer = come(ServerSide(identify))
        assert peer.heard == []
        assert peer.closed_with == REFUSED


def test_a_challenge_generator_may_tell_why_it_refuses():
    side = ServerSide(generator=lambda auth: auth.refuse("no quest for you"))
    assert come(side).heard == [("~wse:refused", {"reason": "no quest for you", "retry": False}, None)]


def test_a_reason_that_cannot_be_encoded_still_refuses():
    side = ServerSide(lambda auth: auth.refuse(object()))
    peer = come(side)
    assert peer.heard == []
    assert peer.closed_with == REFUSED
    assert side.error.code == ErrorCode.MSG_PROCESSING_ERROR


def test_only_the_first_decision_counts():
    def identify(auth):
        auth.refuse("first")
        auth.refuse("second")
        auth.accept("ann")

    peer = come(ServerSide(identify))
    assert peer.heard == [("~wse:refused", {"reason": "first", "retry": False}, None)]


# The end of a session.


@pytest.mark.parametrize("ext", [OFFER, None])
def test_a_session_ends_when_it_expires(ext):
    side = until(100)
    peer = come(side, ext)
    assert peer.conn.expires == side.scheduler.now + 100
    side.scheduler.advance(99.9)
    assert peer.closed_with is None
    assert types_of(peer)[-1] == "~wse:welcome"
    side.scheduler.advance(0.2)
    assert peer.closed_with == EXPIRED
    assert side.names("disconnected", "left") == [("disconnected", "ann", *EXPIRED), ("left", "ann", *EXPIRED)]
    assert side.scheduler.timers == []


def test_a_session_without_a_time_never_expires():
    side = ServerSide()
    peer = side.join()
    assert peer.conn.expires is None
    assert side.scheduler.timers == []


def test_a_session_that_ends_before_leaves_no_timer_behind():
    side = until(100)
    peer = come(side)
    assert len(side.scheduler.timers) == 1
    peer.session.closed(1006, "")
    assert side.scheduler.timers == []
    peer.conn.extend(side.scheduler.now + 10)
    assert side.scheduler.timers == []


@pytest.mark.parametrize("seconds", [0, -1, -1000])
def test_a_time_that_has_passed_refuses(seconds):
    side = until(seconds)
    peer = come(side)
    assert peer.heard == [("~wse:refused", {"reason": CloseReason.SESSION_EXPIRED, "retry": False}, None)]
    assert peer.closed_with == REFUSED
    assert side.hub.identities == {}


def test_the_clock_is_looked_at_again():
    """The time of day may be set, or go on while the machine sleeps and timers do not."""
    side = until(10 * CHECK_EVERY)
    now = side.scheduler.now
    side.hub.auth.clock = lambda: side.scheduler.now + jump
    jump = 0.0
    peer = come(side)
    side.scheduler.advance(CHECK_EVERY * 1.5)
    jump = 10 * CHECK_EVERY
    side.scheduler.advance(CHECK_EVERY)
    assert peer.closed_with == EXPIRED
    assert side.scheduler.now < now + 3 * CHECK_EVERY


def test_a_session_can_be_extended_and_cut_short():
    side = until(100)
    peer = come(side)
    peer.conn.extend(side.scheduler.now + 200)
    side.scheduler.advance(150)
    assert peer.closed_with is None
    peer.conn.extend(None)
    assert peer.conn.expires is None
    side.scheduler.advance(1000)
    assert peer.closed_with is None
    peer.conn.extend(side.scheduler.now + 1)
    side.scheduler.advance(1)
    assert peer.closed_with == EXPIRED


def test_a_session_that_began_without_a_time_may_get_one():
    side = ServerSide()
    peer = side.join()
    peer.conn.extend(None)
    for passed in (0, -1, -1000):
        peer = side.join("ben")
        peer.conn.extend(side.scheduler.now + passed)
        side.scheduler.advance(0)
        assert peer.closed_with == EXPIRED


UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)


def test_times_are_unix_seconds_or_datetimes_with_a_time_zone():
    east = dt.timezone(dt.timedelta(hours=2))
    assert unix_time(EPOCH + dt.timedelta(seconds=90)) == 90
    assert unix_time(dt.datetime(1970, 1, 1, 2, tzinfo=east)) == 0
    assert (unix_time(7), unix_time(7.5)) == (7, 7.5)


@pytest.mark.parametrize("time", ["2030-01-01", True, None, Decimal(7), dt.date(2030, 1, 1), dt.timedelta(1)])
def test_anything_else_is_not_a_time(time):
    with pytest.raises(TypeError, match="a time is a datetime or a number"):
        unix_time(time)


@pytest.mark.parametrize("time", [-1, float("nan"), float("inf"), 10**400, 1_700_000_000_000])
def test_milliseconds_and_other_numbers_are_not_a_time_in_seconds(time):
    with pytest.raises(ValueError, match="in seconds"):
        unix_time(time)


def test_a_datetime_without_a_time_zone_is_rejected_where_it_is_given():
    naive = dt.datetime(2030, 1, 1)  # noqa: DTZ001
    side = ServerSide(lambda auth: auth.accept("ann", expires=naive))
    peer = come(side)
    assert peer.closed_with == REFUSED
    assert "time zone" in str(side.error.__cause__)
    peer = ServerSide().join()
    with pytest.raises(ValueError, match="time zone"):
        peer.conn.extend(naive)


# Fresh identities.


def asking(seconds=600.0, handler=None, **options):
    side = until(seconds, **options)
    side.seen = []

    def reauthenticate(conn, identity):
        side.seen.append((conn.cid, identity))
        return side.scheduler.now + 600

    side.hub.auth.reauthenticate = handler or reauthenticate
    return side


def asked(side, **options):
    """A client that has just been asked for a fresh identity."""
    peer = come(side, **options)
    peer.heard  # noqa: B018 - reads
    side.scheduler.advance(600 - ASK_BEFORE)
    assert peer.heard == [("~wse:auth", None, None)]
    return peer


def test_a_client_is_asked_for_a_fresh_identity_and_goes_on():
    side = asking()
    peer = asked(side)
    for _ in range(3):
        peer.say("~wse:auth", {"token": "new"})
        assert peer.conn.expires == side.scheduler.now + 600
        assert peer.conn.identity == {"token": "new"}
        side.scheduler.advance(600 - ASK_BEFORE - 0.1)
        assert peer.heard == []
        side.scheduler.advance(0.1)
        assert peer.heard == [("~wse:auth", None, None)]
    assert side.seen == [("ann", {"token": "new"})] * 3
    assert side.names("ignored") == []
    assert peer.closed_with is None
    side.scheduler.advance(ASK_BEFORE)
    assert peer.closed_with == EXPIRED


def test_a_short_session_is_asked_at_half_its_time():
    side = asking(10)
    peer = come(side)
    side.scheduler.advance(4.9)
    assert types_of(peer)[-1] == "~wse:welcome"
    side.scheduler.advance(0.1)
    assert peer.heard == [("~wse:auth", None, None)]


@pytest.mark.parametrize("ext", [None, {"limits": {"message_size": 100_000}}])
def test_a_client_that_did_not_offer_auth_is_not_asked(ext):
    side = asking()
    peer = come(side, ext)
    side.scheduler.advance(599)
    assert types_of(peer)[-1] == "~wse:welcome"
    peer.say("~wse:auth", "unasked")
    assert side.seen == []
    side.scheduler.advance(1)
    assert peer.closed_with == EXPIRED


def test_without_a_handler_nobody_is_asked():
    side = until(600)
    peer = come(side)
    side.scheduler.advance(599)
    assert types_of(peer)[-1] == "~wse:welcome"


def test_an_identity_that_nobody_asked_for_is_dropped():
    side = asking()
    peer = come(side)
    peer.say("~wse:auth", "early")
    assert side.seen == []
    peer.heard  # noqa: B018 - reads
    side.scheduler.advance(600 - ASK_BEFORE)
    peer.say("~wse:auth", "asked")
    peer.say("~wse:auth", "twice")
    assert side.seen == [("ann", "asked")]
    assert side.errors == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_may_let_the_session_end(is_async):
    async def later(conn, identity):
        return None

    side = asking(handler=later if is_async else lambda conn, identity: None)
    peer = asked(side)
    peer.say("~wse:auth", "old")
    side.scheduler.run()
    assert peer.conn.identity == "ann"
    side.scheduler.advance(ASK_BEFORE - 1)
    assert peer.closed_with is None
    side.scheduler.advance(1)
    assert peer.closed_with == EXPIRED
    assert side.errors == []


def test_an_async_handler_extends_when_it_has_decided():
    gate = None

    async def slow(conn, identity):
        nonlocal gate
        gate = side.scheduler.create_future()
        return await gate

    side = asking(handler=slow)
    peer = asked(side)
    peer.say("~wse:auth", "new")
    side.scheduler.advance(ASK_BEFORE / 2)
    gate.set_result(dt.datetime.fromtimestamp(side.scheduler.now + 900, UTC))
    side.scheduler.run()
    assert peer.conn.expires == side.scheduler.now + 900
    assert peer.conn.identity == "new"


def test_a_handler_that_is_too_slow_extends_nothing():
    async def slow(conn, identity):
        await side.scheduler.create_future()

    side = asking(handler=slow)
    peer = asked(side)
    peer.say("~wse:auth", "new")
    side.scheduler.advance(ASK_BEFORE)
    assert peer.closed_with == EXPIRED


@pytest.mark.parametrize("details", [{}, {"reason": "another user", "retry": True}])
def test_a_handler_may_refuse_at_once(details):
    def refuse(conn, identity):
        raise WseError(ErrorCode.NOT_AUTHORIZED, details)

    side = asking(handler=refuse)
    peer = asked(side)
    peer.say("~wse:auth", "ben's")
    assert peer.heard == ([("~wse:refused", details, None)] if details else [])
    assert peer.closed_with == REFUSED
    assert side.errors == []
    assert side.scheduler.timers == []


@pytest.mark.parametrize("wrong", ["tomorrow", True, float("nan"), 1_700_000_000_000])
def test_a_handler_that_fails_is_reported_and_the_session_ends_in_time(wrong):
    def fail(conn, identity):
        raise ValueError("no database")

    for handler in (fail, lambda conn, identity: wrong):
        side = asking(handler=handler)
        peer = asked(side)
        peer.say("~wse:auth", "new")
        assert side.error.code == ErrorCode.MSG_PROCESSING_ERROR
        assert isinstance(side.error.__cause__, ValueError | TypeError)
        assert side.error.details == peer.session.context()
        assert peer.closed_with is None
        side.scheduler.advance(ASK_BEFORE)
        assert peer.closed_with == EXPIRED


def test_a_client_that_takes_nothing_is_asked_when_it_does():
    side = asking()
    peer = come(side)
    peer.heard  # noqa: B018 - reads
    peer.session.writable(False)
    side.scheduler.advance(600 - ASK_BEFORE)
    assert peer.heard == []
    peer.session.writable(True)
    assert peer.heard == [("~wse:auth", None, None)]


# What the application sees of a connection.


def test_a_connection_keeps_its_challenge_and_its_server():
    side = ServerSide(generator=lambda auth: "quest")
    side.hub.server = object()
    peer = side.open()
    assert peer.conn.challenge is None
    peer.say("~wse:hi", {"identity": "ann"})
    peer.say("~wse:challenge", "response")
    assert (peer.conn.challenge.quest, peer.conn.challenge.response) == ("quest", "response")
    assert peer.conn.server is side.hub.server
    assert ServerSide().join().conn.challenge is None
