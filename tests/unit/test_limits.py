"""What one peer may ask for: bounds, rates, nesting."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.core import ClientSide, FakeScheduler, ServerSide
from wse import ErrorCode, Limits, WseError, WseMsgpack
from wse.core.hub.sockets import network_of
from wse.core.limits import TokenBucket, nests_deeper


@pytest.mark.parametrize("name", ["message_size", "handshake_size", "nesting", "send_buffer"])
def test_what_bounds_memory_cannot_be_unbounded(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: None})


@pytest.mark.parametrize("name", ["frame_size", "connections", "handlers", "message_rate", "byte_burst"])
def test_other_bounds_may_be_none_but_not_zero(name):
    assert getattr(Limits(**{name: None}), name) is None
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_a_burst_lets_a_message_through():
    with pytest.raises(ValueError, match="message_burst"):
        Limits(message_rate=1, message_burst=0.5)


def test_a_burst_of_one_message_is_allowed():
    assert Limits(message_rate=1, message_burst=1).message_burst == 1


def test_handlers_may_end_with_their_connection_at_once_but_not_before():
    assert Limits(handler_linger=0).handler_linger == 0
    with pytest.raises(ValueError, match="handler_linger"):
        Limits(handler_linger=-1)


def test_a_frame_is_as_large_as_a_message_unless_said_otherwise():
    assert Limits(message_size=500).max_frame_size == 500
    assert Limits(message_size=500, frame_size=100).max_frame_size == 100
    assert Limits(message_size=500, frame_size=1000).max_frame_size == 500


def nested(depth, kind=list):
    value = 0
    for _ in range(depth):
        value = [1, value] if kind is list else {"a": value, "b": 1}
    return value


@pytest.mark.parametrize("kind", [list, dict])
@given(depth=st.integers(0, 30), limit=st.integers(1, 30))
def test_nesting_is_counted_in_levels_of_arrays_and_objects(kind, depth, limit):
    assert nests_deeper(nested(depth, kind), limit) == (depth > limit)


def test_arrays_and_objects_in_each_other_count_as_one_level_each():
    value = {}
    for _ in range(10):
        value = {"a": [value]}
    assert nests_deeper(value, 20)
    assert not nests_deeper(value, 21)


def test_a_deep_value_is_found_beside_flat_ones():
    assert nests_deeper([1, {"a": []}, nested(5), [[]]], 5)
    assert not nests_deeper([1, {"a": []}, nested(5), [[]]], 6)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 8)), max_size=40))
def test_a_bucket_never_gives_more_than_its_burst_and_what_flowed_in(steps):
    scheduler = FakeScheduler()
    bucket = TokenBucket(scheduler, rate=2, burst=5)
    start, taken = scheduler.now, 0
    for wait, tokens in steps:
        scheduler.now += wait
        taken += tokens if bucket.take(tokens) else 0
        assert taken <= 5 + 2 * (scheduler.now - start) + 1e-6


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate():
    scheduler = FakeScheduler()
    bucket = TokenBucket(scheduler, rate=2, burst=3)
    assert [bucket.take(1) for _ in range(4)] == [True, True, True, False]
    scheduler.now += 0.5
    assert [bucket.take(1) for _ in range(2)] == [True, False]
    scheduler.now += 1000
    assert [bucket.take(1) for _ in range(4)] == [True, True, True, False]


# At a session.


def sides(**limits):
    return [ServerSide(limits=Limits(**limits)), ClientSide(limits=Limits(**limits))]


@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
@pytest.mark.parametrize("protocol", [None, WseMsgpack()], ids=["json", "msgpack"])
@pytest.mark.parametrize("stamp", [None, 7])
def test_a_message_nested_too_deep_closes_with_1008(which, protocol, stamp):
    options = {"limits": Limits(nesting=20)} | ({} if protocol is None else {"protocols": (protocol,)})
    side = [ServerSide, ClientSide][which](**options)
    side.endpoint.channel.on("chat", lambda *args: side.log.append(("chat",)))
    side.endpoint.procedures.register("echo", lambda *args: args[-1])
    peer = side.join()
    peer.say("chat", nested(20))
    assert ("chat",) in side.log
    peer.say("echo" if stamp else "chat", [nested(20)], stamp)
    assert peer.closed_with == (1008, "wse.limit.nesting")
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED
    assert side.error.details["limit"] == "nesting"
    assert side.error.details["allowed"] == 20
    assert side.endpoint.counters.limits == {"nesting": 1}


def test_many_brackets_side_by_side_are_not_deep():
    side = ServerSide(limits=Limits(nesting=5))
    heard = []
    side.endpoint.channel.on("chat", lambda conn, payload: heard.append(payload))
    side.join().say("chat", [[n] for n in range(100)])
    assert len(heard[0]) == 100
    assert side.errors == []


def test_a_stranger_s_message_is_bounded_and_so_is_its_nesting():
    side = ServerSide(limits=Limits(handshake_size=1000, nesting=10))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "x" * 1000})
    assert peer.closed_with == (1009, "wse.limit.handshake-size")
    assert side.error.details["from"] == "stranger"
    deep = side.open()
    deep.say("~wse:hi", {"identity": nested(10), "meta": {}})
    assert deep.closed_with == (1008, "wse.limit.nesting")


def test_a_welcome_may_be_larger_than_a_stranger_s_message():
    side = ClientSide(limits=Limits(handshake_size=10))
    peer = side.open()
    peer.say("~wse:welcome", "x" * 1000)
    assert peer.session.valid


def wait_forever(side):
    async def wait(*args):
        await side.scheduler.create_future()

    return wait


@pytest.mark.parametrize("side", sides(incoming_calls=3), ids=["server", "client"])
def test_calls_above_the_limit_are_answered_with_its_name(side):
    side.endpoint.procedures.register("wait", wait_forever(side))
    side.endpoint.procedures.register("echo", lambda *args: args[-1])
    peer = side.join()
    for stamp in range(1, 6):
        peer.say("wait", None, stamp)
    answers = peer.heard
    assert [(kind, stamp, payload["code"]) for kind, payload, stamp in answers] == [
        ("~wse:response-err", 4, "wse.limit-exceeded"),
        ("~wse:response-err", 5, "wse.limit-exceeded"),
    ]
    assert answers[0][1]["details"]["limit"] == "incoming_calls"
    assert answers[0][1]["details"]["allowed"] == 3
    assert answers[0][1]["details"]["rp"] == "wait"
    assert side.error.code == ErrorCode.LIMIT_EXCEEDED  # reported once, counted always
    assert side.endpoint.counters.limits == {"incoming_calls": 2}
    peer.say("echo", 1, 9)
    assert peer.heard == [("~wse:response", 1, 9)]


def test_a_call_that_has_been_answered_makes_room_for_one_other():
    side = ServerSide(limits=Limits(incoming_calls=2))
    gates = []

    @side.endpoint.procedures.register("wait")
    async def wait(conn, payload):
        gates.append(side.scheduler.create_future())
        await gates[-1]

    peer = side.join()
    peer.say("wait", None, 1)
    peer.say("wait", None, 2)
    gates[0].set_result(None)
    side.scheduler.run()
    assert peer.heard == [("~wse:response", None, 1)]
    peer.say("wait", None, 3)
    assert len(gates) == 3
    peer.say("wait", None, 4)
    assert len(gates) == 3
    ((kind, payload, stamp),) = peer.heard
    assert (kind, payload["details"]["limit"], stamp) == ("~wse:response-err", "incoming_calls", 4)


@pytest.mark.parametrize("side", sides(handlers=2), ids=["server", "client"])
def test_a_message_above_the_limit_of_handlers_closes_and_a_call_is_answered(side):
    side.endpoint.channel.on("chat", wait_forever(side))
    side.endpoint.procedures.register("wait", wait_forever(side))
    peer = side.join()
    peer.say("chat")
    peer.say("wait", None, 1)
    assert peer.session.running_handlers == 2
    peer.say("wait", None, 2)
    ((kind, payload, stamp),) = peer.heard
    assert (kind, payload["details"]["limit"], stamp) == ("~wse:response-err", "handlers", 2)
    peer.say("chat")
    assert peer.closed_with == (1008, "wse.limit.handlers")


def test_messages_that_nobody_listens_to_start_no_more_handlers_than_others():
    side = ServerSide(limits=Limits(handlers=2))
    side.hub.ignored(wait_forever(side))
    peer = side.join()
    for _ in range(3):
        peer.say("unheard")
    assert len(side.scheduler.unfinished) == 2
    assert peer.closed_with == (1008, "wse.limit.handlers")


def test_a_future_that_a_procedure_returns_counts_as_a_handler():
    side = ServerSide(limits=Limits(handlers=1))
    side.endpoint.procedures.register("later", lambda conn, payload: side.scheduler.create_future())
    peer = side.join()
    peer.say("later", None, 1)
    peer.say("later", None, 2)
    ((_, payload, stamp),) = peer.heard
    assert (payload["code"], stamp) == ("wse.limit-exceeded", 2)


@pytest.mark.parametrize("side", sides(outgoing_calls=2), ids=["server", "client"])
def test_a_call_above_the_limit_of_calls_to_one_peer_raises(side):
    peer = side.join()
    calls = [peer.call("info", timeout=0) for _ in range(3)]
    with pytest.raises(WseError) as caught:
        calls[2].result()
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    assert caught.value.details == {"limit": "outgoing_calls", "allowed": 2, "rp": "info"}
    peer.say("~wse:response", "fine", peer.heard[0][2])
    side.scheduler.run()
    assert calls[0].result() == "fine"
    assert not peer.call("info", timeout=0).done()


def test_no_bound_is_no_bound():
    side = ServerSide(limits=Limits(incoming_calls=None, handlers=None, outgoing_calls=None))
    side.endpoint.procedures.register("wait", wait_forever(side))
    peer = side.join()
    for stamp in range(1, 1501):
        peer.say("wait", None, stamp)
        peer.call("info", timeout=0)
    assert peer.session.running_handlers == 1500
    assert peer.session.pending_calls == 1500


# Rates.


def test_messages_above_their_rate_close_with_1008():
    side = ServerSide(limits=Limits(message_rate=10, message_burst=5))
    side.endpoint.channel.on("chat", lambda *args: side.log.append(("chat",)))
    peer = side.join()  # hi was the first of the burst
    for _ in range(4):
        peer.say("chat")
    side.scheduler.advance(0.1)
    peer.say("chat")
    assert side.names("chat") == [("chat",)] * 5
    peer.say("chat")
    assert side.names("chat") == [("chat",)] * 5
    assert peer.closed_with == (1008, "wse.limit.message-rate")
    peer.say("chat")
    assert side.endpoint.counters.limits == {"message_rate": 1}


def test_bytes_above_their_rate_close_with_1008():
    side = ServerSide(limits=Limits(byte_rate=100, byte_burst=1000))
    peer = side.join()
    peer.say("chat", "x" * 800)
    assert peer.closed_with is None
    peer.say("chat", "x" * 800)
    assert peer.closed_with == (1008, "wse.limit.byte-rate")


def test_by_default_two_seconds_may_come_at_once_and_always_one_message():
    side = ServerSide(limits=Limits(message_rate=0.1, byte_rate=10, message_size=2000))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "x" * 1500, "meta": {}})
    assert peer.session.valid


# Connections.


def test_connections_above_the_limit_are_told_to_come_again():
    side = ServerSide(limits=Limits(connections=2), conns_per_user=9)
    one, _ = side.join(), side.open()
    third = side.open()
    assert third.closed_with == (1013, "wse.limit.connections")
    assert side.error.details["limit"] == "connections"
    third.session.closed(1013, "")
    one.session.closed(1000, "")
    assert side.open().closed_with is None


def test_connections_of_one_address_are_bounded_and_those_of_others_are_not():
    side = ServerSide(limits=Limits(connections_per_address=1))
    first = side.open()
    assert side.open().closed_with == (1013, "wse.limit.connections-per-address")
    side.request_from = "192.0.2.9"
    other = side.open()
    assert other.closed_with is None
    for session in tuple(side.hub.sockets.open):
        session.closed(1000, "")
    assert not side.hub.sockets.by_address
    side.request_from = first.conn.remote_addr
    assert side.open().closed_with is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:", "unix:"),
    ],
)
def test_an_ipv6_network_of_64_bits_counts_as_one_address(address, network):
    assert network_of(address) == network


def test_connections_of_one_ipv6_network_are_bounded_together():
    side = ServerSide(limits=Limits(connections_per_address=1))
    side.request_from = "2001:db8::1"
    first = side.open()
    side.request_from = "2001:db8::2"
    second = side.open()
    assert second.closed_with == (1013, "wse.limit.connections-per-address")
    for peer in first, second:
        peer.session.closed(1000, "")
    assert not side.hub.sockets.by_address


def test_strangers_are_bounded_and_users_do_not_count_among_them():
    side = ServerSide(limits=Limits(unauthenticated=2), conns_per_user=9)
    for _ in range(3):
        side.join()
    waiting = [side.open(), side.open()]
    assert side.hub.sockets.unauthenticated == 2
    assert side.open().closed_with == (1013, "wse.limit.unauthenticated")
    waiting[0].say("~wse:hi", {"identity": "ann", "meta": {}})
    assert side.hub.sockets.unauthenticated == 1
    waiting[1].session.closed(1006, "")
    assert side.hub.sockets.unauthenticated == 0
    assert side.open().closed_with is None


# Handlers that do not end.


@pytest.mark.parametrize("side", sides(handler_linger=5), ids=["server", "client"])
def test_a_handler_that_outlives_its_connection_is_cancelled_and_named(side):
    ended = []

    async def stubborn(*args):
        try:
            await side.scheduler.create_future()
        finally:
            ended.append(side.scheduler.now)

    side.endpoint.procedures.register("stubborn", stubborn)
    peer = side.join()
    peer.say("stubborn", None, 1)
    start = side.scheduler.now
    peer.session.closed(1006, "")
    side.scheduler.advance(4.9)
    assert ended == []
    assert side.errors == []
    side.scheduler.advance(0.2)
    assert ended == [start + 5]
    assert side.error.code == ErrorCode.HANDLER_CANCELLED
    assert side.error.details["handler"].endswith("stubborn")
    assert side.scheduler.unfinished == []


def test_a_handler_has_time_to_end_after_its_connection_has():
    side = ServerSide()
    gate = side.scheduler.create_future()
    done = []

    @side.endpoint.channel.on("chat")
    async def chat(conn, payload):
        await gate
        done.append(payload)

    peer = side.join()
    peer.say("chat", "saved")
    peer.session.closed(1006, "")
    gate.set_result(None)
    side.scheduler.advance(60)
    assert done == ["saved"]
    assert side.errors == []


def test_no_timer_keeps_a_connection_whose_handlers_have_ended():
    side = ServerSide()
    gate = side.scheduler.create_future()

    async def chat(conn, payload):
        await gate

    side.endpoint.channel.on("chat", chat)
    peer = side.join()
    peer.say("chat")
    peer.say("chat")
    peer.session.closed(1006, "")
    assert len(side.scheduler.timers) == 1
    gate.set_result(None)
    side.scheduler.run()
    assert side.scheduler.timers == []


def test_a_handler_that_ends_does_not_spare_another_that_lingers():
    side = ServerSide(limits=Limits(handler_linger=5))
    gates = [side.scheduler.create_future(), side.scheduler.create_future()]

    async def chat(conn, payload):
        await gates[payload]

    side.endpoint.channel.on("chat", chat)
    peer = side.join()
    peer.say("chat", 0)
    peer.say("chat", 1)
    peer.session.closed(1001, "")
    gates[0].set_result(None)
    side.scheduler.run()
    side.scheduler.advance(6)
    assert side.error.code == ErrorCode.HANDLER_CANCELLED
    assert side.scheduler.unfinished == []


@pytest.mark.parametrize("which", [ServerSide, ClientSide], ids=["server", "client"])
@pytest.mark.parametrize("who", ["itself", "a listener before it"])
def test_a_handler_whose_connection_was_closed_before_it_first_waited_is_cancelled_too(which, who):
    side = which(limits=Limits(handler_linger=5))
    peer = side.join()

    async def stubborn(*args):
        if who == "itself":
            peer.session.close(1000, "enough")
        await side.scheduler.create_future()

    if who != "itself":
        side.endpoint.channel.on("chat", lambda *args: peer.session.close(1000, "enough"))
    side.endpoint.channel.on("chat", stubborn)
    peer.say("chat")
    assert peer.session.ended
    side.scheduler.advance(6)
    assert side.error.code == ErrorCode.HANDLER_CANCELLED
    assert side.scheduler.unfinished == []


def test_without_a_linger_handlers_go_on_and_with_0_they_end_at_once():
    for linger, left in ((None, 1), (0, 0)):
        side = ServerSide(limits=Limits(handler_linger=linger))
        side.endpoint.channel.on("chat", wait_forever(side))
        peer = side.join()
        peer.say("chat")
        peer.session.closed(1006, "")
        side.scheduler.advance(3600)
        assert len(side.scheduler.unfinished) == left


@pytest.mark.parametrize("which", ["identify", "connected", "ignored"])
def test_whoever_handles_a_connection_is_cancelled_with_it(which):
    cancelled = []

    async def stubborn(*args):
        try:
            await side.scheduler.create_future()
        except asyncio.CancelledError:
            cancelled.append(which)
            raise

    side = ServerSide(**({"identify": stubborn} if which == "identify" else {}))
    if which != "identify":
        getattr(side.hub, which)(stubborn)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "meta": {}})
    peer.say("unheard")
    peer.session.closed(1006, "")
    side.scheduler.advance(11)
    assert cancelled == [which]
    assert side.error.details["handler"].endswith("stubborn")
