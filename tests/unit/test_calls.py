"""Calls to all devices of a user, to the first that answers, and to one of them."""

import pytest

from support.core import ServerSide
from wse import ErrorCode, WseError
from wse.server.messaging import Messaging


class Side(ServerSide):
    """A user with two devices, and calls to her."""

    def __init__(self):
        super().__init__(conns_per_user=2)
        self.old, self.new = self.join("ann", "old"), self.join("ann", "new")

    def ask(self, mode, *, cid="ann", timeout=None):
        return self.scheduler.start(self.hub.call(cid, "where", None, mode, timeout))

    def asked(self, peer):
        """The stamps of the calls that a device has got."""
        return [stamp for kind, _, stamp in peer.heard if kind == "where"]

    def answer(self, peer, result):
        (stamp,) = self.asked(peer)
        if isinstance(result, WseError):
            peer.say("~wse:response-err", {"code": result.code}, stamp)
        else:
            peer.say("~wse:response", result, stamp)
        self.scheduler.run()

    @property
    def pending(self):
        return self.old.session.pending_calls + self.new.session.pending_calls


def code_of(task):
    return task.exception().code


def test_the_first_success_is_the_result_and_nothing_waits_for_the_others():
    side = Side()
    task = side.ask("first")
    side.answer(side.new, WseError("app.busy"))
    assert not task.done()
    side.answer(side.old, "here")
    assert task.result() == "here"
    assert side.pending == 0


def test_a_success_that_comes_in_the_same_moment_as_the_first_is_ignored():
    side = Side()
    task = side.ask("first")
    for peer in (side.old, side.new):
        (stamp,) = side.asked(peer)
        peer.say("~wse:response", peer is side.old, stamp)
    side.scheduler.run()
    assert task.result() is True


def test_when_every_device_fails_the_last_error_is_raised():
    side = Side()
    task = side.ask("first")
    side.answer(side.new, WseError("app.busy"))
    side.answer(side.old, WseError("app.away"))
    assert code_of(task) == "app.away"
    assert (side.pending, side.scheduler.unheard) == (0, [])


def test_a_device_that_has_gone_does_not_hold_up_the_others():
    side = Side()
    task = side.ask("first")
    side.new.session.closed(1006, "")
    side.answer(side.old, "here")
    assert task.result() == "here"


def test_a_call_that_cannot_be_sent_to_any_device_fails():
    side = Side()
    task = side.scheduler.start(side.hub.call("ann", "where", object(), "first", None))
    assert code_of(task) == ErrorCode.RP_SEND_FAILED
    assert side.pending == 0


def test_any_asks_the_newest_device_only():
    side = Side()
    task = side.ask("any")
    assert side.asked(side.old) == []
    side.answer(side.new, "here")
    assert task.result() == "here"


def test_all_brings_results_and_errors_the_oldest_device_first():
    side = Side()
    task = side.ask("all")
    side.answer(side.new, "new")
    side.answer(side.old, WseError("app.busy"))
    error, result = task.result()
    assert (error.code, result) == ("app.busy", "new")


@pytest.mark.parametrize("mode", ["first", "all", "any"])
def test_calls_to_nobody_are_told_so(mode):
    assert code_of(Side().ask(mode, cid="bob")) == ErrorCode.CONNECTION_MISSING


@pytest.mark.parametrize("mode", ["first", "all", "any"])
def test_a_cancelled_call_leaves_nothing_behind(mode):
    side = Side()
    task = side.ask(mode)
    task.cancel()
    side.scheduler.run()
    assert task.cancelled()
    for peer in (side.old, side.new):
        for stamp in side.asked(peer):
            peer.say("~wse:response", "late", stamp)
    side.scheduler.run()
    assert (side.pending, side.scheduler.unheard) == (0, [])


def test_an_answer_that_does_not_come_in_time_is_an_error():
    side = Side()
    task = side.ask("first", timeout=3)
    side.scheduler.advance(3)
    assert code_of(task) == ErrorCode.RP_TIMEOUT


def test_an_unknown_mode_is_rejected_at_once():
    task = Side().ask("last")
    with pytest.raises(ValueError, match='"first", "all" or "any"'):
        task.result()


def test_a_user_s_devices_and_all_users_are_listed():
    side = Side()
    side.join("bob")
    side.open()
    messaging = Messaging()
    messaging._hub = side.hub
    devices = side.scheduler.start(messaging.devices("ann")).result()
    assert [device.conn_id for device in devices] == [side.old.conn.conn_id, side.new.conn.conn_id]
    assert side.scheduler.start(messaging.devices("eve")).result() == []
    assert side.scheduler.start(messaging.online()).result() == 2

    async def users():
        return [cid async for cid in messaging.users()]

    assert side.scheduler.start(users()).result() == ["ann", "bob"]
