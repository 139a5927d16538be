"""Signals, channels and procedures: who is called, in what order, and what is refused at once."""

from __future__ import annotations

import asyncio
import functools
from functools import partial
from typing import Annotated

import pytest

from support.core import FakeScheduler, ServerSide
from wse.core.session.ordered import Order
from wse.core.session.rpc import Procedures
from wse.core.session.signals import Channel, Signal, check_handler
from wse.errors import ErrorCode, WseError


class Heard(list):
    """A signal's listeners' arguments, and what went wrong."""

    def __init__(self):
        super().__init__()
        self.failures = []

    def failed(self, exc, name, args):
        self.failures.append((exc, name, args))


@pytest.fixture
def scheduler():
    return FakeScheduler()


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def signal(scheduler, heard):
    return Signal("moved", ("x", "y"), scheduler, heard.failed)


@pytest.fixture
def replaying(scheduler, heard):
    return Signal("ready", ("welcome",), scheduler, heard.failed, replay=True)


def test_listeners_are_called_in_the_order_of_their_subscription(signal, heard):
    signal(lambda x, y: heard.append(("first", x, y)))
    signal(lambda x, y: heard.append(("second", x, y)))
    signal._emit(1, 2)
    assert heard == [("first", 1, 2), ("second", 1, 2)]


def test_subscribing_returns_the_function_so_it_decorates(signal, heard):
    @signal
    def listener(x, y):
        heard.append(x)

    @signal.once
    def once(x, y):
        heard.append(y)

    signal._emit(1, 2)
    assert heard == [1, 2]
    assert callable(listener)
    assert callable(once)


def test_a_function_subscribed_twice_is_called_twice_and_off_takes_one(signal, heard):
    def listener(x, y):
        heard.append(x)

    signal(listener)
    signal(listener)
    signal._emit(1, 0)
    signal.off(listener)
    signal._emit(2, 0)
    assert heard == [1, 1, 2]


def test_once_hears_one_emission(signal, heard):
    signal.once(lambda x, y: heard.append(x))
    signal._emit(1, 0)
    signal._emit(2, 0)
    assert heard == [1]
    assert not signal.has_listeners


def test_once_can_be_taken_off_before(signal, heard):
    def listener(x, y):
        heard.append(x)

    signal.once(listener)
    signal.off(listener)
    signal._emit(1, 0)
    assert heard == []


def test_once_hears_one_emission_even_when_a_listener_emits_again(signal, heard):
    signal.once(lambda x, y: signal._emit(x + 1, y))
    signal.once(lambda x, y: heard.append(x))
    signal._emit(1, 0)
    assert heard == [2]


def test_off_of_a_stranger_does_nothing(signal):
    signal.off(print)
    assert not signal.has_listeners


def test_off_finds_bound_methods(signal):
    class Application:
        def __init__(self):
            self.heard = []

        def moved(self, x, y):
            self.heard.append(x)

    application = Application()
    signal(application.moved)
    signal.off(application.moved)
    signal._emit(1, 2)
    assert application.heard == []


def test_listeners_that_come_and_go_during_an_emission_count_from_the_next(signal, heard):
    def late(x, y):
        heard.append(("late", x))

    def first(x, y):
        signal.off(first)
        signal(late)
        heard.append(("first", x))

    signal(first)
    signal._emit(1, 0)
    signal._emit(2, 0)
    assert heard == [("first", 1), ("late", 2)]


def test_a_listener_that_raises_is_reported_and_the_others_are_called(signal, heard):
    error = RuntimeError("no")

    @signal
    def bad(x, y):
        raise error

    signal(lambda x, y: heard.append(x))
    signal._emit(1, 2)
    assert heard == [1]
    assert heard.failures == [(error, "moved", (1, 2))]


def test_a_listener_that_asks_a_cancelled_future_is_reported(signal, heard, scheduler):
    @signal
    def bad(x, y):
        future = scheduler.create_future()
        future.cancel()
        future.result()

    signal._emit(1, 2)
    assert [type(exc) for exc, *_ in heard.failures] == [asyncio.CancelledError]


def test_async_listeners_start_in_order_and_run_side_by_side(signal, heard, scheduler):
    gate = scheduler.create_future()

    @signal
    async def slow(x, y):
        heard.append(("slow starts", x))
        await gate
        heard.append(("slow ends", x))

    @signal
    async def fast(x, y):
        heard.append(("fast", x))

    signal._emit(1, 2)
    scheduler.run()
    assert heard == [("slow starts", 1), ("fast", 1)]
    gate.set_result(None)
    scheduler.run()
    assert heard[-1] == ("slow ends", 1)
    assert scheduler.unfinished == []


def test_an_async_listener_that_raises_is_reported(signal, heard, scheduler):
    error = KeyError("no")

    @signal
    async def bad(x, y):
        raise error

    signal._emit(1, 2)
    scheduler.run()
    assert heard.failures == [(error, "moved", (1, 2))]
    assert scheduler.unheard == []


def test_a_plain_listener_may_return_something_to_await(signal, heard, scheduler):
    async def work(x):
        heard.append(x)

    signal(lambda x, y: work(x))
    signal._emit(7, 0)
    scheduler.run()
    assert heard == [7]


def test_a_replaying_signal_gives_a_late_listener_the_last_emission(replaying, heard):
    replaying._emit("first")
    replaying._emit("second")
    replaying(heard.append)
    assert heard == ["second"]
    replaying._emit("third")
    assert heard == ["second", "third"]


def test_a_replaying_signal_has_nothing_for_a_listener_before_its_first_emission(replaying, heard):
    replaying(heard.append)
    replaying.once(heard.append)
    assert heard == []
    replaying._emit("first")
    replaying._emit("second")
    assert heard == ["first", "first", "second"]


def test_once_on_a_replaying_signal_is_satisfied_by_the_last_emission(replaying, heard):
    replaying._emit("first")
    replaying.once(heard.append)
    replaying._emit("second")
    assert heard == ["first"]


def test_a_signal_without_replay_does_not_replay(signal, heard):
    signal._emit(1, 2)
    signal(lambda x, y: heard.append(x))
    assert heard == []


def test_wait_returns_the_arguments_of_the_next_emission(signal, scheduler):
    task = scheduler.start(signal.wait())
    assert not task.done()
    signal._emit(1, 2)
    signal._emit(3, 4)
    scheduler.run()
    assert task.result() == (1, 2)
    assert not signal.has_listeners


def test_wait_returns_a_tuple_for_one_argument_too(replaying, scheduler):
    replaying._emit("before")
    task = scheduler.start(replaying.wait())
    assert not task.done()
    replaying._emit("next")
    scheduler.run()
    assert task.result() == ("next",)


def test_wait_times_out_and_leaves_nothing(signal, scheduler):
    task = scheduler.start(signal.wait(timeout=5))
    scheduler.advance(4.9)
    assert not task.done()
    scheduler.advance(0.2)
    with pytest.raises(TimeoutError, match="moved"):
        task.result()
    assert not signal.has_listeners
    assert scheduler.timers == []


def test_wait_that_is_satisfied_cancels_its_timer(signal, scheduler):
    task = scheduler.start(signal.wait(timeout=5))
    signal._emit(1, 2)
    scheduler.run()
    assert task.result() == (1, 2)
    assert scheduler.timers == []


def test_a_timeout_of_zero_waits_for_one_turn_only(signal, scheduler):
    task = scheduler.start(signal.wait(timeout=0))
    scheduler.advance(0)
    assert isinstance(task.exception(), TimeoutError)


def test_a_wait_that_is_cancelled_leaves_nothing(signal, scheduler):
    task = scheduler.start(signal.wait(timeout=5))
    task.cancel()
    scheduler.run()
    assert task.cancelled()
    assert not signal.has_listeners
    assert scheduler.timers == []


def test_an_emission_after_the_cancellation_finds_the_waiter_gone(signal, scheduler):
    task = scheduler.start(signal.wait())
    task.cancel()
    signal._emit(1, 2)  # before the task has had its turn
    scheduler.run()
    assert task.cancelled()
    assert scheduler.unheard == []


def test_an_emission_and_the_timeout_at_the_same_instant_settle_a_wait_once(signal, scheduler):
    task = scheduler.start(signal.wait(timeout=5))
    scheduler.call_later(5, signal._emit, 1, 2)
    timers = [timer for _, _, timer in scheduler._timers]
    scheduler.now += 5
    for timer in timers:
        timer.callback(*timer.args)
    scheduler.run()
    assert isinstance(task.exception(), TimeoutError)

    other = scheduler.start(signal.wait(timeout=5))
    expire = scheduler._timers[-1][2]
    signal._emit(3, 4)
    expire.callback(*expire.args)
    scheduler.run()
    assert other.result() == (3, 4)


@pytest.mark.parametrize("bad", [None, 1, "fn", [], lambda: None, lambda x: None, lambda x, y, z: None])
def test_a_handler_that_cannot_be_called_is_refused_at_once(signal, bad):
    with pytest.raises(TypeError, match="x, y"):
        signal(bad)
    with pytest.raises(TypeError, match="x, y"):
        signal.once(bad)
    assert not signal.has_listeners


@pytest.mark.parametrize(
    "good",
    [
        lambda x, y: None,
        lambda *args: None,
        lambda x, y=1: None,
        lambda x, y, z=1: None,
        functools.partial(lambda a, x, y: None, 0),
        print,
    ],
)
def test_a_handler_that_can_be_called_is_taken(good):
    check_handler(good, "x", "y")


def test_a_builtin_that_does_not_tell_its_signature_is_taken():
    check_handler(dict, "x")
    check_handler(type, "x")


# Channels.


@pytest.fixture
def side():
    return ServerSide()


@pytest.fixture
def channel(side):
    return side.endpoint.channel


def test_on_adds_listeners_of_a_type_also_as_a_decorator(side, channel, heard):
    channel.on("chat", lambda conn, payload: heard.append(("plain", payload)))

    @channel.on("chat")
    def decorated(conn, payload):
        heard.append(("decorated", payload))

    @channel.once("chat")
    def once(conn, payload):
        heard.append(("once", payload))

    peer = side.join()
    peer.say("chat", 1)
    peer.say("chat", 2)
    assert heard == [("plain", 1), ("decorated", 1), ("once", 1), ("plain", 2), ("decorated", 2)]


def test_off_takes_one_listener_or_all_and_leaves_no_entry(channel):
    def one(conn, payload): ...

    def other(conn, payload): ...

    channel.on("chat", one)
    channel.on("chat", other)
    channel.off("chat", one)
    assert channel._by_type["chat"].fns == (other,)
    channel.off("chat", other)
    assert channel._by_type == {}
    channel.on("chat", one)
    channel.once("chat", other)
    channel.off("chat")
    assert channel._by_type == {}
    channel.off("chat")
    channel.off("chat", one)
    assert channel._by_type == {}


def test_a_once_listener_that_was_called_leaves_no_entry_and_the_next_message_is_ignored(side, channel, heard):
    channel.once("reply", lambda conn, payload: heard.append(payload))
    peer = side.join()
    peer.say("reply", 1)
    peer.say("reply", 2)
    assert heard == [1]
    assert channel._by_type == {}
    assert side.names("ignored") == [("ignored", "ann", "reply", 2)]


def test_a_once_listener_can_be_taken_off_before(side, channel, heard):
    def listener(conn, payload):
        heard.append(payload)

    channel.once("reply", listener)
    channel.off("reply", listener)
    side.join().say("reply", 1)
    assert heard == []
    assert channel._by_type == {}


def test_a_once_listener_can_add_itself_again(side, channel, heard):
    def listener(conn, payload):
        heard.append(payload)
        channel.once("reply", listener)

    channel.once("reply", listener)
    peer = side.join()
    peer.say("reply", 1)
    peer.say("reply", 2)
    assert heard == [1, 2]
    assert len(channel._by_type["reply"].fns) == 1


RESERVED = ["~wse:hi", "~wse:call", "~wse:response", "~wse:mine", "~wse:", "", None]


@pytest.mark.parametrize("name", RESERVED)
def test_a_channel_takes_no_reserved_type_even_before_the_decorated_function(channel, name):
    with pytest.raises(WseError) as caught:
        channel.on(name)
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    with pytest.raises(WseError):
        channel.once(name, print)
    assert channel._by_type == {}


def test_a_channel_takes_no_unhashable_type(channel):
    with pytest.raises(WseError, match="hashable"):
        channel.on(["chat"], print)


def test_a_channel_takes_no_handler_that_cannot_be_called(channel):
    with pytest.raises(TypeError, match="conn, payload"):
        channel.on("chat", lambda payload: None)
    with pytest.raises(TypeError, match="conn, payload"):
        channel.once("chat")(lambda: None)
    assert channel._by_type == {}


# Procedures.


def test_a_procedure_is_registered_also_as_a_decorator(side):
    procedures = side.endpoint.procedures

    @procedures.register("add")
    def add(conn, payload): ...

    def sub(conn, payload): ...

    assert procedures.register("sub", sub) is sub
    assert procedures.by_name == {"add": add, "sub": sub}


def test_a_name_is_registered_once(side):
    procedures = side.endpoint.procedures
    procedures.register("add", lambda conn, payload: 1)
    with pytest.raises(WseError) as caught:
        procedures.register("add", lambda conn, payload: 2)
    assert caught.value.code == ErrorCode.RP_ALREADY_REGISTERED
    assert caught.value.details == {"rp": "add"}
    assert procedures.by_name["add"](None, None) == 1


def test_a_procedure_can_be_taken_away_and_registered_again(side):
    procedures = side.endpoint.procedures
    procedures.register("add", lambda conn, payload: 1)
    procedures.unregister("add")
    procedures.register("add", lambda conn, payload: 2)
    procedures.unregister("add")
    with pytest.raises(WseError) as caught:
        procedures.unregister("add")
    assert caught.value.code == ErrorCode.RP_NOT_REGISTERED
    assert caught.value.details == {"rp": "add"}


@pytest.mark.parametrize("name", [*RESERVED, ["add"], {}])
def test_no_procedure_takes_a_reserved_or_unhashable_name(side, name):
    with pytest.raises(WseError) as caught:
        side.endpoint.procedures.register(name, lambda conn, payload: 1)
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    assert side.endpoint.procedures.by_name == {}


def test_a_procedure_that_cannot_be_called_is_refused_at_once(side):
    with pytest.raises(TypeError, match="conn, payload"):
        side.endpoint.procedures.register("add", lambda payload: 1)


def test_procedures_and_channels_of_a_client_take_the_payload_alone():
    def allow(name): ...

    order = Order(FakeScheduler())
    Procedures(("payload",), allow, order).register("add", lambda payload: 1)
    Channel(("payload",), allow, order).on("chat", lambda payload: 1)
    with pytest.raises(TypeError, match=r"\(payload\)"):
        Procedures(("payload",), allow, order).register("add", lambda conn, payload: 1)


def test_all_listeners_of_a_type_or_of_all_types_can_be_removed(side):
    channel = side.endpoint.channel
    for kind in ("a", "b", "c"):
        channel.on(kind, lambda conn, payload: None)
        channel.once(kind, lambda conn, payload: None)
    assert [channel.listener_count(kind) for kind in ("a", "b", "absent")] == [2, 2, 0]
    channel.remove_all("a")
    channel.remove_all("absent")
    assert [channel.listener_count(kind) for kind in ("a", "b", "c")] == [0, 2, 2]
    channel.remove_all()
    assert [channel.listener_count(kind) for kind in ("a", "b", "c")] == [0, 0, 0]
    peer = side.join()
    peer.say("b", 1)
    assert side.names("ignored") == [("ignored", "ann", "b", 1)]


# Handlers that would do nothing, or never be called right.


async def later(conn, payload): ...


def test_a_decorator_without_its_name_says_how_it_is_written(side):
    class Methods:
        def method(self, conn, payload): ...

    for fn in (later, lambda conn, payload: 1, Methods().method, print, partial(later, None)):
        with pytest.raises(TypeError, match=r"@register\("):
            side.endpoint.procedures.register(fn)
        for decorator in (side.endpoint.channel.on, side.endpoint.channel.once):
            with pytest.raises(TypeError, match=r"@channel\.on(ce)?\("):
                decorator(fn)
    assert side.endpoint.procedures.by_name == {}
    assert side.endpoint.channel._by_type == {}


async def yields_later(conn, payload):
    yield 1


def yields_now(conn, payload):
    yield 1


class Yielding:
    async def __call__(self, conn, payload):
        yield 1

    async def method(self, conn, payload):
        yield 1


GENERATORS = [yields_later, yields_now, Yielding(), Yielding().method, partial(yields_later)]


@pytest.mark.parametrize("fn", GENERATORS, ids=["async", "plain", "object", "method", "partial"])
def test_a_generator_is_rejected_where_it_is_registered(side, channel, fn):
    for register in (channel.on, channel.once):
        with pytest.raises(TypeError, match="generator"):
            register("chat", fn)
    with pytest.raises(TypeError, match="generator"):
        check_handler(fn, "conn", "payload")


@pytest.mark.parametrize("name", ["Depends", "Query", "Security"])
def test_a_parameter_that_a_framework_would_fill_is_rejected(side, channel, name):
    marker = type(name, (), {"__module__": "fastapi.params"})()

    def by_default(conn, payload, db=marker): ...

    def annotated(conn, payload, db): ...

    annotated.__annotations__["db"] = Annotated[int, marker]
    for fn in (by_default, annotated):
        for register in (side.endpoint.procedures.register, channel.on):
            with pytest.raises(TypeError, match="resolves no dependencies: get 'db'"):
                register("chat", fn)


class Depends:
    pass


Database = Annotated[int, Depends()]


@pytest.mark.parametrize("annotation", ["Annotated[int, Depends()]", "Database", "Annotated[Unknown, Depends()]"])
def test_the_same_holds_where_annotations_are_text(side, channel, annotation):
    def handler(conn, db): ...

    handler.__annotations__["db"] = annotation  # as under `from __future__ import annotations`
    for register in (side.endpoint.procedures.register, channel.on):
        with pytest.raises(TypeError, match="resolves no dependencies: get 'db'"):
            register("chat", handler)


@pytest.mark.parametrize("annotation", ["int", "Unknown", "1/0", "not Python"])
def test_annotations_that_are_text_need_no_value(channel, annotation):
    def handler(conn, payload): ...

    handler.__annotations__["payload"] = annotation
    channel.on("chat", handler)


def test_a_default_is_looked_at_where_annotations_have_no_value(channel):
    def handler(conn, payload, db=Depends()): ...

    handler.__annotations__["db"] = "Unknown"
    with pytest.raises(TypeError, match="resolves no dependencies: get 'db'"):
        channel.on("chat", handler)


def test_other_defaults_are_the_handlers_own_business(side, channel):
    channel.on("chat", lambda conn, payload, n=1, log=print: None)
    side.endpoint.procedures.register("add", lambda conn, payload, cache={}: 1)


@pytest.mark.parametrize("fn", [None, "handler", 7, lambda: None, lambda a, b: None])
def test_a_handler_with_a_code_is_both_kinds_of_error(fn):
    with pytest.raises(TypeError) as caught:
        check_handler(fn, "auth", code=ErrorCode.INVALID_CRA_GENERATOR)
    assert isinstance(caught.value, WseError)
    assert caught.value.code == ErrorCode.INVALID_CRA_GENERATOR
    assert "(auth)" in str(caught.value)
