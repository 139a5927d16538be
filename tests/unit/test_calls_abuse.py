"""Peers that misuse the extension `calls`, and procedures that misbehave: the answers are defined, and nothing stays.

`test_calls_extension.py` has the frames of peers that behave, and credit that makes no sense.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from support.core import ClientSide, ServerSide
from support.streams import join, join_server, nothing_is_left, stream
from wse import ErrorCode, Limits, WseError


@pytest.fixture
def side():
    return ServerSide()


def register(side, **procedures):
    for name, fn in procedures.items():
        side.endpoint.procedures.register(name, fn)


async def endless(conn, payload):
    n = 0
    while True:
        yield n
        n += 1


def never(side, ended, **options):
    """A procedure that waits until it is cancelled."""

    async def wait(conn, payload):
        try:
            await side.scheduler.create_future()
        finally:
            ended.append(payload)

    side.endpoint.procedures.register("never", wait, **options)


def kinds(peer):
    return [kind for kind, _, _ in peer.heard]


def codes(side):
    return [str(error.code) for error, _ in side.errors]


# Stamps.


@pytest.mark.parametrize("linger", [5.0, None])
@pytest.mark.parametrize("stamp", ["a", 1, 1.5, True])
def test_a_plain_call_with_the_stamp_of_a_stream_does_not_hide_it(linger, stamp):
    side = ServerSide(limits=Limits(handler_linger=linger))
    ended = []
    never(side, ended, cancel=True)
    register(side, endless=endless)
    peer = join(side)
    stream(peer, "endless", None, stamp, 1)
    peer.say("never", 1, stamp)
    side.scheduler.run()
    assert len(peer.session._serving.calls) == 2
    peer.say("~wse:more", 1, stamp)
    side.scheduler.run()
    assert kinds(peer) == ["~wse:item", "~wse:item"]
    peer.say("~wse:cancel", None, stamp)
    side.scheduler.run()
    assert peer.session._serving.streams == 0
    peer.vanish()
    side.scheduler.run()
    assert ended == [1]
    assert side.scheduler.unfinished == []
    assert nothing_is_left(peer.session)


def test_calls_without_a_stamp_that_can_be_found_end_with_the_connection():
    side = ServerSide(limits=Limits(handler_linger=None))
    ended = []
    never(side, ended, cancel=True)
    peer = join(side)
    for n in range(10):
        peer.say("never", n, [n])
    side.scheduler.run()
    assert ended == []
    peer.vanish()
    side.scheduler.run()
    assert sorted(ended) == list(range(10))
    assert nothing_is_left(peer.session)


def test_each_of_two_calls_with_one_stamp_has_its_own_deadline(side):
    ended = []
    never(side, ended, cancel=True)
    peer = join(side)
    peer.say("~wse:call", ["never", "late", {"t": 15}], "a")
    peer.say("never", "default", "a")
    side.scheduler.run()
    side.scheduler.advance(16)
    assert ended == ["late"]
    side.scheduler.advance(5)
    assert ended == ["late", "default"]
    assert side.scheduler.timers == []
    assert nothing_is_left(peer.session)


# Cancellation.


def test_a_call_is_cancelled_once_and_not_after_its_answer(side):
    ended = []
    never(side, ended, cancel=True)
    register(side, echo=lambda conn, payload: payload)

    async def one(conn, payload):
        yield 1

    register(side, one=one)
    peer = join(side)
    peer.say("never", 1, "a")
    side.scheduler.run()
    for _ in range(3):
        peer.say("~wse:cancel", None, "a")
        side.scheduler.run()
    peer.say("echo", 2, "b")
    peer.say("~wse:cancel", None, "b")
    stream(peer, "one", None, "c", 5)
    peer.say("~wse:cancel", None, "c")
    side.scheduler.run()
    assert kinds(peer) == ["~wse:response", "~wse:item", "~wse:response"]
    assert ended == [1]
    assert side.errors == []
    assert nothing_is_left(peer.session)


def test_a_generator_that_never_ends_is_reported_and_counts_until_it_does():
    side = ServerSide(limits=Limits(handler_linger=3.0, streams=1))
    released = []

    async def stubborn(conn, payload):
        while not released:
            with suppress(asyncio.CancelledError):
                await side.scheduler.create_future()
        yield 1

    register(side, stubborn=stubborn, endless=endless)
    peer = join(side)
    stream(peer, "stubborn", None, "a", 1)
    peer.say("~wse:cancel", None, "a")
    side.scheduler.advance(10)
    assert codes(side) == [ErrorCode.HANDLER_CANCELLED]
    assert peer.session.running_handlers == 0
    stream(peer, "endless", None, "b", 1)
    (refusal,) = peer.heard
    assert (refusal[0], refusal[1]["details"]["limit"]) == ("~wse:response-err", "streams")
    released.append(True)
    (task,) = side.scheduler.unfinished
    task.cancel()
    side.scheduler.run()
    assert peer.heard == []
    stream(peer, "endless", None, "b", 1)
    assert kinds(peer) == ["~wse:item"]
    peer.vanish()
    side.scheduler.run()
    assert side.scheduler.timers == []
    assert nothing_is_left(peer.session)


# Generators that raise.


@pytest.mark.parametrize("how", ["cancel", "end of items", "after an error", "disconnect"])
def test_a_generator_that_raises_in_its_finally_is_reported_once(side, how):
    async def raises(conn, payload):
        try:
            yield 1
            if payload == "after an error":
                raise KeyError("first")
        finally:
            raise ValueError("in finally")

    register(side, raises=raises)
    peer = join(side)
    stream(peer, "raises", how, "a", 1)
    assert kinds(peer) == ["~wse:item"]
    match how:
        case "cancel":
            peer.say("~wse:cancel", None, "a")
        case "disconnect":
            peer.vanish()
        case _:
            peer.say("~wse:more", 1, "a")
    side.scheduler.run()
    assert kinds(peer) == ([] if how in ("cancel", "disconnect") else ["~wse:response-err"])
    (error, _) = side.errors[0]
    assert codes(side) == [ErrorCode.RP_EXECUTION_FAILED]
    assert str(error.__cause__) == "in finally"
    assert nothing_is_left(peer.session)
    assert side.scheduler.unfinished == []


def test_a_generator_that_yields_in_its_finally_is_reported_once(side):
    async def yields(conn, payload):
        try:
            yield 1
        finally:
            yield 2

    register(side, yields=yields)
    peer = join(side)
    stream(peer, "yields", None, "a", 1)
    peer.say("~wse:cancel", None, "a")
    side.scheduler.run()
    assert kinds(peer) == ["~wse:item"]
    assert codes(side) == [ErrorCode.RP_EXECUTION_FAILED]
    assert nothing_is_left(peer.session)


@pytest.mark.parametrize(
    "item", [object(), {1: {2}, "a": object()}, 1j, "\ud800"], ids=["object", "nested", "complex", "surrogate"]
)
def test_an_item_that_cannot_be_encoded_ends_its_stream_only(side, item):
    async def bad(conn, payload):
        yield 1
        yield item

    register(side, bad=bad, endless=endless)
    peer = join(side)
    stream(peer, "endless", None, "a", 1)
    stream(peer, "bad", None, "b", 5)
    assert kinds(peer) == ["~wse:item", "~wse:item", "~wse:response-err"]
    assert codes(side) == [ErrorCode.RP_EXECUTION_FAILED]
    peer.say("~wse:more", 1, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:item", 1, "a")]


def test_an_item_that_is_larger_than_the_peer_takes_ends_its_stream(side):
    async def large(conn, payload):
        yield 1
        yield "x" * 10_000

    register(side, large=large)
    peer = join(side, {"calls": {"timeout": 20}, "limits": {"message_size": 4096}})
    stream(peer, "large", None, "a", 5)
    item, error = peer.heard
    assert item == ("~wse:item", 1, "a")
    assert (error[0], error[1]["code"]) == ("~wse:response-err", ErrorCode.LIMIT_EXCEEDED)
    assert nothing_is_left(peer.session)


# Uploads.


def takes(side, log):
    async def take(conn, payload, items):
        async for item in items:
            log.append(item)
        return "all"

    side.endpoint.procedures.register("take", take, upload=True)


def test_items_for_a_call_that_takes_none_are_ignored(side):
    ended = []
    never(side, ended, cancel=True)
    register(side, endless=endless)
    peer = join(side)
    stream(peer, "endless", None, "a", 1)
    peer.say("never", None, "b")
    side.scheduler.run()
    assert kinds(peer) == ["~wse:item"]
    for stamp in ("a", "b"):
        peer.say("~wse:put", 1, stamp)
        peer.say("~wse:end", None, stamp)
    peer.say("~wse:more", 1, "b")
    side.scheduler.run()
    assert peer.heard == []
    assert len(peer.session._serving.calls) == 2
    assert side.errors == []


def test_an_upload_ends_once_and_takes_nothing_afterwards(side):
    log = []
    takes(side, log)
    peer = join(side)
    peer.say("~wse:call", ["take", None, {"up": 1}], "a")
    side.scheduler.run()
    peer.say("~wse:end", None, "a")
    for n in range(1000):
        peer.say("~wse:put", n, "a")
    peer.say("~wse:end", None, "a")
    side.scheduler.run()
    assert peer.heard == [("~wse:want", 32, "a"), ("~wse:response", "all", "a")]
    assert log == []
    assert side.errors == []
    assert nothing_is_left(peer.session)


def test_an_upload_without_an_end_ends_with_its_connection(side):
    log = []
    takes(side, log)
    peer = join(side)
    for stamp in range(1, 21):
        peer.say("~wse:call", ["take", None, {"up": 1}], stamp)
        peer.say("~wse:put", stamp, stamp)
    side.scheduler.run()
    peer.vanish()
    side.scheduler.run()
    assert log == list(range(1, 21))
    assert side.scheduler.unfinished == []
    assert nothing_is_left(peer.session)


# The caller's side.


@pytest.fixture
def server():
    return join_server(ClientSide())


def test_items_after_the_answer_are_ignored(server):
    asked = server.session.ask("x", None, 0, window=8)

    async def in_one_read():
        for message in (("~wse:item", 1), ("~wse:response", None), ("~wse:item", 2), ("~wse:response", None)):
            server.say(*message, 1)

    server.session.endpoint.scheduler.start(in_one_read())
    assert asked.inflow.take() == 1
    assert not asked.inflow
    assert asked.inflow.error is None
    assert nothing_is_left(server.session)


@pytest.mark.parametrize("stamp", [1, 2, 99, "1", [1], {}, None, 1.5])
@pytest.mark.parametrize("kind", ["item", "want", "progress", "more", "put", "end", "cancel"])
def test_frames_that_fit_no_call_of_ours_are_ignored(server, kind, stamp):
    scheduler = server.session.endpoint.scheduler
    plain = server.call("plain")
    asked = server.session.ask("x", None, 0, window=8)
    server.say(f"~wse:{kind}", 3, stamp)
    scheduler.run()
    assert server.closed_with is None
    assert list(asked.inflow._items) == ([(3, len('["~wse:item",3,2]'))] if (kind, stamp) == ("item", 2) else [])
    server.say("~wse:response", "answer", 1)
    server.say("~wse:response", None, 2)
    scheduler.run()
    assert plain.result() == "answer"
    assert nothing_is_left(server.session)


def test_credit_for_an_upload_is_bounded_and_must_make_sense(server):
    def items():
        yield from range(10_000)

    scheduler = server.session.endpoint.scheduler
    task = scheduler.start(server.session.call("take", None, 0, upload=items()))
    assert kinds(server) == ["~wse:call"]
    for count in (0, -5, -(2**63), 1.5, True, "9", None, [], {}):
        server.say("~wse:want", count, 1)
    scheduler.run()
    assert kinds(server) == []
    server.session.writable(False)
    for _ in range(5):
        server.say("~wse:want", 2**31, 1)
    assert server.session._asking.calls[1].outflow.credit == 256
    server.session.writable(True)
    scheduler.run()
    assert kinds(server) == ["~wse:put"] * 256
    server.say("~wse:response", "enough", 1)
    scheduler.run()
    assert task.result() == "enough"
    assert scheduler.unfinished == []
    assert nothing_is_left(server.session)


def test_an_item_of_an_upload_that_cannot_be_encoded_fails_the_call_and_cancels_it(server):
    scheduler = server.session.endpoint.scheduler
    task = scheduler.start(server.session.call("take", None, 0, upload=[1, object()]))
    server.say("~wse:want", 32, 1)
    scheduler.run()
    assert kinds(server) == ["~wse:call", "~wse:put", "~wse:cancel"]
    assert isinstance(task.exception(), TypeError)
    assert scheduler.unfinished == []
    assert nothing_is_left(server.session)


def test_more_progress_than_async_listeners_may_run_ends_the_connection():
    side = ClientSide(limits=Limits(handlers=10))
    server = join_server(side)
    seen = []

    async def slow(value):
        seen.append(value)
        await side.scheduler.create_future()

    task = side.scheduler.start(server.session.call("job", None, 0, on_progress=slow))
    for n in range(1000):
        server.say("~wse:progress", n, 1)
        side.scheduler.run()
    assert seen == list(range(10))
    assert server.closed_with == (1008, "wse.limit.handlers")
    assert isinstance(task.exception(), WseError)


def test_a_listener_of_progress_that_raises_is_reported_and_the_call_goes_on():
    side = ClientSide()
    server = join_server(side)

    def raises(value):
        raise ValueError(value)

    task = side.scheduler.start(server.session.call("job", None, 0, on_progress=raises))
    server.say("~wse:progress", 1, 1)
    server.say("~wse:response", 2, 1)
    server.say("~wse:progress", 3, 1)
    side.scheduler.run()
    assert task.result() == 2
    assert codes(side) == [ErrorCode.MSG_PROCESSING_ERROR]
    assert nothing_is_left(server.session)


def test_streams_that_a_server_never_ends_are_ended_by_their_reader(server):
    scheduler = server.session.endpoint.scheduler
    for _ in range(1000):
        asked = server.session.ask("x", None, 0, window=1)
        stamp = asked.stamp
        server.say("~wse:item", 1, stamp)
        asked.give_up()
        scheduler.run()
        server.say("~wse:item", 2, stamp)
        server.say("~wse:response", None, stamp)
        assert asked.inflow.is_over
    assert kinds(server) == ["~wse:call", "~wse:cancel"] * 1000
    assert nothing_is_left(server.session)
