"""Silent peers are pinged, and given up after a while."""

from __future__ import annotations

import pytest

from support.core import ServerSide
from wse import Heartbeat

BEAT = Heartbeat(interval=20, timeout=20)


@pytest.fixture
def side():
    return ServerSide(heartbeat=BEAT, auth_timeout=0)


@pytest.mark.parametrize("times", [{"interval": -1}, {"timeout": 0}, {"timeout": -1}])
def test_times_out_of_range_are_refused(times):
    with pytest.raises(ValueError, match="seconds"):
        Heartbeat(**times)


def test_a_silent_peer_is_pinged_after_the_interval_and_given_up_after_the_timeout(side):
    peer = side.join()
    side.scheduler.advance(5)  # the first check, which notices the hi
    side.scheduler.advance(17)
    assert peer.link.pings_sent == 0
    side.scheduler.advance(5)
    assert peer.link.pings_sent == 1
    side.scheduler.advance(14)
    assert not peer.link.aborted
    side.scheduler.advance(6)
    assert peer.link.aborted
    assert peer.link.pings_sent == 1


def test_a_timeout_much_shorter_than_the_interval_is_kept_too():
    side = ServerSide(heartbeat=Heartbeat(interval=600, timeout=4), auth_timeout=0)
    peer = side.join()
    side.scheduler.advance(602)
    assert peer.link.pings_sent == 1
    side.scheduler.advance(5)
    assert peer.link.aborted


def test_a_peer_that_is_heard_is_not_pinged(side):
    peer = side.join()
    for _ in range(100):
        side.scheduler.advance(10)
        peer.link.heard = True
    assert peer.link.pings_sent == 0


def test_a_peer_that_sends_messages_but_no_pongs_is_kept(side):
    peer = side.join()
    for _ in range(12):
        side.scheduler.advance(15)
        peer.link.heard = True
        side.scheduler.advance(10)
    assert not peer.link.aborted


def test_a_pong_tells_the_round_trip_time_and_begins_anew(side):
    peer = side.join()
    assert peer.conn.rtt is None
    for _ in range(10):
        while not peer.link.pings_sent:
            side.scheduler.advance(1)
        peer.link.pings_sent = 0
        pinged_at = peer.session.pinged_at
        side.scheduler.now = pinged_at + 0.25
        peer.link.heard = True
        peer.session.pong()
        assert peer.conn.rtt == pytest.approx(0.25)
    assert not peer.link.aborted


def test_a_pong_that_nobody_asked_for_tells_nothing(side):
    peer = side.join()
    peer.session.pong()
    assert peer.conn.rtt is None


def test_a_message_that_comes_slowly_keeps_its_connection(side):
    peer = side.join()
    peer.link.silent_for = 3.0  # no frame is whole, but bytes come
    side.scheduler.advance(600)
    assert peer.link.pings_sent == 1
    assert not peer.link.aborted
    peer.link.silent_for = 20.0
    side.scheduler.advance(5)
    assert peer.link.aborted


def test_strangers_are_looked_after_too(side):
    peer = side.open()
    side.scheduler.advance(60)
    assert peer.link.aborted


def test_the_timer_ends_with_the_last_connection_and_comes_back_with_the_next(side):
    peer = side.join()
    assert len(side.scheduler.timers) == 1
    peer.session.closed(1000, "")
    side.scheduler.advance(6)
    assert side.scheduler.timers == []
    again = side.join()
    assert len(side.scheduler.timers) == 1
    side.scheduler.advance(30)
    assert again.link.pings_sent == 1


def test_the_timer_ends_with_a_server_that_closes_and_comes_back_with_its_next_connection(side):
    peer = side.join()
    closing = side.scheduler.start(side.hub.close(1001, "bye"))
    peer.session.closed(1001, "bye")
    side.scheduler.run()
    assert closing.done()
    assert side.scheduler.timers == []
    again = side.join()
    side.scheduler.advance(30)
    assert again.link.pings_sent == 1


def test_one_timer_serves_all_connections(side):
    peers = [side.join(f"user {n}") for n in range(50)]
    assert len(side.scheduler.timers) == 1
    side.scheduler.advance(27)
    assert [peer.link.pings_sent for peer in peers] == [1] * 50


def test_links_that_cannot_ping_are_left_alone(side):
    peer = side.join()
    peer.link.pings = False
    side.scheduler.advance(100)
    assert (peer.link.pings_sent, peer.link.aborted) == (0, False)
    assert side.scheduler.timers == []


def test_an_interval_of_0_never_pings():
    side = ServerSide(heartbeat=Heartbeat(interval=0), auth_timeout=0)
    peer = side.join()
    assert side.scheduler.timers == []
    closing = side.scheduler.start(side.hub.close(1001, "bye"))
    peer.session.closed(1001, "bye")
    side.scheduler.run()
    assert closing.result() is None
