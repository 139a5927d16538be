"""Calls that wait for their answer: timeouts, cancellation, the end; nothing may stay behind."""

from __future__ import annotations

import gc
import weakref

import pytest

from support.core import ClientSide, FakeScheduler, ServerSide
from wse.core.session.rpc import ExposeErrors, PendingCalls, error_from_wire, error_to_wire
from wse.errors import ErrorCode, WseError


@pytest.fixture
def scheduler():
    return FakeScheduler()


@pytest.fixture
def calls(scheduler):
    return PendingCalls(scheduler, 10)


def code(future):
    return future.exception().code


def test_stamps_are_truthy_and_count_from_one(calls):
    assert [calls.add("a", None)[0] for _ in range(3)] == [1, 2, 3]
    calls.close(1000, "")


def test_an_answer_settles_its_call_and_no_other(calls):
    (one, first), (_, second) = calls.add("a", None), calls.add("b", None)
    calls.resolve(one, "result")
    assert first.result() == "result"
    assert not second.done()
    assert len(calls.waiting) == 1


def test_an_error_settles_its_call(calls):
    stamp, future = calls.add("a", None)
    error = WseError("app.no")
    calls.reject(stamp, error)
    assert future.exception() is error
    assert len(calls.waiting) == 0


@pytest.mark.parametrize("stamp", [99, "1", None, [1], {"a": 1}])
def test_an_unknown_stamp_settles_nothing(calls, stamp):
    _, future = calls.add("a", None)
    calls.resolve(stamp, "x")
    calls.reject(stamp, WseError("x"))
    assert not future.done()
    assert len(calls.waiting) == 1


def test_an_answer_for_a_caller_that_was_cancelled_is_dropped(calls):
    (one, first), (two, second) = calls.add("a", None), calls.add("b", None)
    first.cancel()
    second.cancel()
    calls.resolve(one, "x")
    calls.reject(two, WseError("x"))
    assert len(calls.waiting) == 0


def test_calls_with_the_connection_s_timeout_share_one_timer(calls, scheduler):
    _, first = calls.add("a", None)
    scheduler.advance(3)
    _, second = calls.add("b", 10)  # the same timeout, given
    assert scheduler.timers == [1010]
    scheduler.advance(7)
    assert code(first) == ErrorCode.RP_TIMEOUT
    assert first.exception().details == {"rp": "a", "timeout": 10, "at": "caller"}
    assert not second.done()
    assert scheduler.timers == [1013]
    scheduler.advance(3)
    assert code(second) == ErrorCode.RP_TIMEOUT
    assert scheduler.timers == []
    assert len(calls.waiting) == 0


def test_calls_of_one_instant_expire_together(calls, scheduler):
    futures = [calls.add("a", None)[1] for _ in range(3)]
    scheduler.advance(10)
    assert [code(future) for future in futures] == [ErrorCode.RP_TIMEOUT] * 3
    assert scheduler.timers == []


def test_an_answered_call_does_not_expire_and_the_timer_serves_the_next(calls, scheduler):
    stamp, first = calls.add("a", None)
    scheduler.advance(1)
    _, second = calls.add("b", None)
    calls.resolve(stamp, 1)
    scheduler.advance(9)
    assert first.result() == 1
    assert not second.done()
    scheduler.advance(1)
    assert code(second) == ErrorCode.RP_TIMEOUT


def test_when_all_are_answered_the_timer_ends_and_a_new_call_sets_it_anew(calls, scheduler):
    stamp, _ = calls.add("a", None)
    calls.resolve(stamp, 1)
    scheduler.advance(10)
    assert scheduler.timers == []
    _, future = calls.add("b", None)
    assert scheduler.timers == [1020]
    scheduler.advance(10)
    assert code(future) == ErrorCode.RP_TIMEOUT


def test_a_timeout_of_its_own_has_its_own_timer(calls, scheduler):
    _, short = calls.add("a", 2)
    _, long = calls.add("b", 60)
    _, own = calls.add("c", None)
    scheduler.advance(2)
    assert code(short) == ErrorCode.RP_TIMEOUT
    assert short.exception().details == {"rp": "a", "timeout": 2, "at": "caller"}
    scheduler.advance(8)
    assert code(own) == ErrorCode.RP_TIMEOUT
    assert not long.done()
    scheduler.advance(50)
    assert code(long) == ErrorCode.RP_TIMEOUT
    assert scheduler.timers == []


def test_an_answer_cancels_the_call_s_own_timer(calls, scheduler):
    stamp, _ = calls.add("a", 2)
    calls.resolve(stamp, 1)
    assert scheduler.timers == []


def test_a_timeout_of_zero_sets_no_timer(calls, scheduler):
    stamp, future = calls.add("a", 0)
    assert scheduler.timers == []
    scheduler.advance(1e9)
    assert not future.done()
    calls.resolve(stamp, 1)
    assert len(calls.waiting) == 0


@pytest.mark.parametrize("timeout", [None, 0])
def test_where_the_connection_s_timeout_is_zero_calls_wait_for_ever(scheduler, timeout):
    calls = PendingCalls(scheduler, 0)
    _, future = calls.add("a", timeout)
    _, other = calls.add("a", 5)
    scheduler.advance(1e6)
    assert not future.done()
    assert code(other) == ErrorCode.RP_TIMEOUT
    assert scheduler.timers == []


def test_the_end_settles_every_call_and_cancels_every_timer(calls, scheduler):
    futures = [calls.add(name, timeout)[1] for name, timeout in (("a", None), ("b", 3), ("c", 0))]
    calls.close(1001, "bye")
    assert [future.exception().details for future in futures] == [
        {"rp": name, "disconnected": [1001, "bye"]} for name in "abc"
    ]
    assert {code(future) for future in futures} == {ErrorCode.RP_DISCONNECT}
    assert len(calls.waiting) == 0
    assert scheduler.timers == []
    calls.close(1001, "again")


# Through a session.


@pytest.fixture(params=[ServerSide, ClientSide])
def side(request):
    return request.param(timeout=10)


@pytest.mark.parametrize("timeout", [None, 0, 3])
def test_a_call_that_is_cancelled_leaves_nothing(side, timeout):
    peer = side.join()
    task = peer.call("info", timeout=timeout)
    assert peer.session.pending_calls == 1
    task.cancel()
    side.scheduler.run()
    assert task.cancelled()
    assert peer.session.pending_calls == 0
    side.scheduler.advance(10)
    assert side.scheduler.timers == []
    peer.say("~wse:response", "late", 1)
    assert side.errors == []


def test_a_call_times_out_and_its_late_answer_is_dropped(side):
    peer = side.join()
    task = peer.call("info", timeout=3)
    side.scheduler.advance(3)
    assert task.exception().code == ErrorCode.RP_TIMEOUT
    peer.say("~wse:response", "late", 1)
    assert peer.session.pending_calls == 0
    assert side.errors == []
    assert side.scheduler.unheard == []


@pytest.mark.parametrize("end", ["close", "closed"])
def test_either_end_settles_calls_with_its_code_and_reason(side, end):
    peer = side.join()
    task = peer.call("info")
    getattr(peer.session, end)(4001, "away")
    side.scheduler.run()
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert task.exception().details == {"rp": "info", "disconnected": [4001, "away"]}
    assert side.scheduler.timers == []


def test_what_a_call_returned_is_not_kept(side):
    class Result(dict): ...

    peer = side.join()
    task = peer.call("info")
    result = Result()
    peer.session._calls.resolve(1, result)
    side.scheduler.run()
    assert task.result() is result
    ref = weakref.ref(result)
    del result, task
    side.scheduler.tasks.clear()
    gc.collect()
    assert ref() is None


def test_an_error_of_the_peer_arrives_with_code_details_and_message(side):
    peer = side.join()
    task = peer.call("pay")
    peer.say("~wse:response-err", {"code": "app.poor", "message": "no money", "details": {"missing": 1}}, 1)
    side.scheduler.run()
    error = task.exception()
    assert (error.code, error.details, error.message) == ("app.poor", {"missing": 1}, "no money")


# Errors on the wire; the table is in spec/vectors/errors.json.


def test_an_error_that_goes_out_and_comes_in_is_the_same():
    error = WseError("app.poor", {"missing": 3}, "not enough")
    copy = error_from_wire(error_to_wire(error, "pay", None, expose=ExposeErrors.MESSAGE, debug=False))
    assert (copy.code, copy.message) == (error.code, error.message)
    assert copy.details == {"missing": 3, "rp": "pay", "rpc": "pay"}


def test_a_known_code_arrives_as_the_enum_s_member():
    assert error_from_wire({"code": "wse.client.rp.timeout"}).code is ErrorCode.RP_TIMEOUT


def test_a_code_without_words_sends_no_message():
    assert "message" not in error_to_wire(WseError("app.x"), "a", None, expose=ExposeErrors.MESSAGE, debug=False)
    assert error_to_wire(WseError(ErrorCode.NOT_AUTHORIZED), "a", None, expose=ExposeErrors.MESSAGE, debug=False)[
        "message"
    ]
