"""WIRE.md section 7, `calls`: streams, cancellation, deadlines and progress, in both directions."""

import asyncio
import gc
import inspect
from functools import partial

import pytest

from support.net import ServerLog, make_server, soon
from wse import ErrorCode, Limits, WseError, current_call, shield_deadline


class Sides:
    """The side that registers and the side that calls, whichever way round; both stream alike."""

    def __init__(self, run, direction):
        self._run = run
        self._direction = direction

    async def start(self, **options):
        server = make_server(**options)
        place = await self._run(server)
        log = ServerLog(server)
        self.client = client = await place.connect(limits=options.get("limits"))
        self.conn = conn = await log.conn("ann")
        self.errors = []
        if self._direction == "client calls":
            self.caller, self.callee = client._connections.session, conn._session
            self.call, self.stream = client.call, client.stream
            self.register = lambda name, fn, **options: server.register(name, without_conn(fn), **options)
            server.when.error(lambda err, conn: self.errors.append(err))
        else:
            self.caller, self.callee = conn._session, client._connections.session
            self.call, self.stream, self.register = conn.call, conn.stream, client.register
            client.when.error(self.errors.append)
        return self

    async def at_rest(self):
        """Return when neither side has anything left of any call."""
        await until(
            lambda: (
                not self.caller.pending_calls
                and not (self.caller._asking and self.caller._asking.calls)
                and not (self.callee._serving and (self.callee._serving.calls or self.callee._serving.streams))
                and not self.callee.running_handlers
                and not self.callee._running_calls
            )
        )


def without_conn(fn):
    """The same procedure as a server has it."""
    if inspect.isasyncgenfunction(fn):

        async def wrapped(conn, *args):
            items = fn(*args)
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()

        return wrapped
    if inspect.isgeneratorfunction(fn):

        def plain(conn, *args):
            yield from fn(*args)

        return plain
    if len(inspect.signature(fn).parameters) == 2:
        return lambda conn, payload, items: fn(payload, items)
    return lambda conn, payload: fn(payload)


@pytest.fixture(params=["client calls", "server calls"])
async def sides(request, run):
    return Sides(run, request.param)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def collect(stream):
    async with stream as items:
        return [item async for item in items]


async def read_into(seen, stream):
    async with stream as items:
        async for item in items:
            seen.append(item)


async def fails(awaitable):
    with pytest.raises(WseError) as caught:
        await soon(awaitable)
    return caught.value


async def count(n):
    for i in range(n):
        yield i


async def test_every_item_of_a_stream_arrives_once_in_order(sides):
    await sides.start()
    sides.register("count", count)
    assert await soon(collect(sides.stream("count", 1000))) == list(range(1000))
    assert await soon(collect(sides.stream("count", 0))) == []
    await sides.at_rest()


async def test_a_plain_generator_is_a_stream_and_the_smallest_window_is_enough(sides):
    await sides.start()

    def plain(n):
        yield from range(n)

    sides.register("plain", plain)
    assert await soon(collect(sides.stream("plain", 100, window=1))) == list(range(100))
    assert await soon(collect(sides.stream("plain", 600, window=10_000))) == list(range(600))
    await sides.at_rest()


async def test_a_generator_never_runs_ahead_of_its_reader_by_more_than_the_window(sides):
    await sides.start()
    made = []

    async def numbers(payload):
        for i in range(1000):
            made.append(i)
            yield i

    sides.register("numbers", numbers)
    async with sides.stream("numbers", window=8) as items:
        taken = 0
        async for _ in items:
            taken += 1
            assert len(made) <= taken + 8 + 1
            if taken == 50:
                break
    await sides.at_rest()
    assert len(made) < 80


@pytest.mark.parametrize("how", ["break", "exception", "cancel", "garbage"])
async def test_leaving_a_stream_runs_the_generators_finally(sides, how):
    await sides.start()
    ended = asyncio.Event()

    async def forever(payload):
        try:
            n = 0
            while True:
                yield n
                n += 1
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            ended.set()

    sides.register("forever", forever)
    if how == "break":
        async with sides.stream("forever") as items:
            async for _ in items:
                break
    elif how == "exception":

        async def read_and_raise():
            async with sides.stream("forever") as items:
                async for item in items:
                    item / 0

        with pytest.raises(ZeroDivisionError):
            await soon(read_and_raise())
    elif how == "cancel":
        first = asyncio.Event()

        async def read():
            async with sides.stream("forever") as items:
                async for _ in items:
                    first.set()

        task = asyncio.create_task(read())
        await soon(first.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async for _ in sides.stream("forever"):
            break
        gc.collect()
    await soon(ended.wait())
    await sides.at_rest()
    assert sides.errors == []


async def test_an_error_comes_after_the_items_before_it(sides):
    await sides.start()

    async def breaks(payload):
        yield 1
        yield 2
        raise WseError("app.broken", {"at": 3})

    sides.register("breaks", breaks)
    seen = []
    error = await fails(read_into(seen, sides.stream("breaks")))
    assert (seen, error.code, error.details["at"]) == ([1, 2], "app.broken", 3)
    await sides.at_rest()


async def test_an_item_that_cannot_be_encoded_ends_the_stream_and_closes_the_generator(sides):
    await sides.start()
    ended = []

    async def bad(payload):
        try:
            yield 1
            yield object()
            yield 3
        finally:
            ended.append(True)

    sides.register("bad", bad)
    seen = []
    error = await fails(read_into(seen, sides.stream("bad")))
    assert (seen, error.code, ended) == ([1], ErrorCode.RP_EXECUTION_FAILED, [True])
    await sides.at_rest()


async def test_a_stream_called_plainly_and_a_plain_procedure_as_a_stream(sides):
    await sides.start()
    sides.register("count", count)
    sides.register("echo", lambda payload: payload)
    assert (await fails(sides.call("count", 3))).code == ErrorCode.RP_IS_A_STREAM
    assert (await fails(sides.call("count", 3, timeout=9))).code == ErrorCode.RP_IS_A_STREAM
    assert (await fails(collect(sides.stream("echo")))).code == ErrorCode.RP_NOT_A_STREAM
    assert (await fails(collect(sides.stream("nothing")))).code == ErrorCode.RP_NOT_REGISTERED
    assert (await fails(sides.call("echo", upload=[1]))).code == ErrorCode.RP_NOT_A_STREAM
    await sides.at_rest()
    assert sides.errors == []


async def test_timeouts_of_a_stream_between_items_and_of_all(sides):
    await sides.start()
    began, ended = [], []

    async def slow(payload):
        began.append(payload)
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append(payload)

    sides.register("slow", slow)
    for number, options in enumerate(({"timeout": 0.05}, {"deadline": 0.05})):
        seen = []
        error = await fails(read_into(seen, sides.stream("slow", number, **options)))
        assert error.code == ErrorCode.RP_TIMEOUT
        assert seen in ([1], [])  # on a machine that is busy
    await sides.at_rest()
    assert ended == began


async def test_more_streams_than_the_limit_are_refused(sides):
    await sides.start(limits=Limits(streams=2))

    async def endless(payload):
        yield payload
        await asyncio.Event().wait()

    sides.register("endless", endless)
    async with sides.stream("endless", 1) as one, sides.stream("endless", 2) as two:
        assert [await soon(anext(one)), await soon(anext(two))] == [1, 2]
        error = await fails(collect(sides.stream("endless", 3)))
        assert (error.code, error.details["limit"]) == (ErrorCode.LIMIT_EXCEEDED, "streams")
    await sides.at_rest()


async def test_many_streams_opened_and_left_leave_nothing_behind(sides):
    await sides.start()
    open_generators = 0

    async def endless(payload):
        nonlocal open_generators
        open_generators += 1
        try:
            while True:
                yield payload
        finally:
            open_generators -= 1

    sides.register("endless", endless)
    for n in range(200):
        async with sides.stream("endless", n, window=2) as items:
            if n % 2:
                assert await soon(anext(items)) == n
    await sides.at_rest()
    assert open_generators == 0


# Cancellation.


async def test_a_cancelled_task_cancels_the_procedure_that_wants_it(sides):
    await sides.start()
    began, ended = asyncio.Event(), asyncio.Event()

    async def long(payload):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    sides.register("long", long, cancel=True)
    task = asyncio.create_task(sides.call("long"))
    await soon(began.wait())
    task.cancel()
    await soon(ended.wait())
    await sides.at_rest()
    assert sides.errors == []


async def test_any_other_procedure_runs_on_and_is_told(sides):
    await sides.start()
    began, go_on, seen = asyncio.Event(), asyncio.Event(), []

    async def long(payload):
        call = current_call()
        seen.append(call.cancelled)
        began.set()
        await go_on.wait()
        seen.append(call.cancelled)

    sides.register("long", long)
    task = asyncio.create_task(sides.call("long"))
    await soon(began.wait())
    task.cancel()
    await until(lambda: not sides.callee._serving.calls)
    go_on.set()
    await sides.at_rest()
    assert seen == [False, True]


async def test_a_timeout_cancels_the_procedure(sides):
    await sides.start()
    began, ended = [], []

    async def long(payload):
        began.append(payload)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(payload)

    sides.register("long", long, cancel=True)
    assert (await fails(sides.call("long", timeout=0.05))).code == ErrorCode.RP_TIMEOUT
    await sides.at_rest()
    assert ended == began


# Deadlines.


async def test_a_procedure_knows_its_deadline(sides):
    await sides.start()
    seen = []

    async def job(payload):
        seen.append(current_call().remaining)

    sides.register("job", job)
    await soon(sides.call("job", timeout=5))
    await soon(sides.call("job", timeout=0))
    await soon(sides.call("job"))
    assert 0 < seen[0] <= 5
    assert seen[1] is None
    assert seen[2] is None or seen[2] > 5


async def test_nested_calls_inherit_what_is_left(run):
    server = make_server()
    place = await run(server)
    log = ServerLog(server)
    client = await place.connect()
    conn = await log.conn("ann")
    seen = []

    async def hop(payload):
        seen.append(current_call().remaining)
        if payload:
            await client.call("hop", payload - 1)

    @server.register("hop")
    async def server_hop(conn, payload):
        seen.append(current_call().remaining)
        if payload:
            await conn.call("hop", payload - 1)

    client.register("hop", hop)
    await soon(conn.call("hop", 2, timeout=15))
    assert len(seen) == 3
    assert all(left is not None and left <= 15 for left in seen)
    seen.clear()

    @server.register("shielded")
    async def shielded(conn, payload):
        with shield_deadline():
            await conn.call("hop", 0, timeout=0)

    await soon(client.call("shielded", timeout=15))
    assert seen == [None]


async def test_a_timeout_tells_at_which_side_the_time_ran_out(sides):
    await sides.start()

    async def impatient(payload):
        raise WseError(ErrorCode.RP_TIMEOUT, {"rp": "another", "timeout": 1, "at": "caller"})

    async def late(payload):
        await asyncio.Event().wait()

    sides.register("impatient", impatient)
    sides.register("late", late, cancel=True)
    for name, timeout, at in (("impatient", None, "callee"), ("late", 0.05, "caller")):
        error = await fails(sides.call(name, timeout=timeout))
        assert (error.code, error.details["at"]) == (ErrorCode.RP_TIMEOUT, at)
    await sides.at_rest()


async def test_only_a_timeout_of_the_call_itself_is_inherited(run):
    server = make_server(timeout=0)
    place = await run(server)
    client = await place.connect()
    seen = []

    @client.register("last")
    async def last(payload):
        seen.append(current_call().remaining)

    @server.register("first")
    async def first(conn, payload):
        await conn.call("last")

    await soon(client.call("first"))
    assert seen == [None]


def test_outside_there_is_a_call_without_a_deadline():
    call = current_call()
    call.progress(1)
    assert (call.deadline, call.remaining, call.cancelled) == (None, None, False)


# Progress and uploads.


async def test_progress_reaches_a_caller_that_asks_for_it(sides):
    await sides.start()

    async def job(payload):
        for percent in (10, 50, 100):
            current_call().progress(percent)
            await asyncio.sleep(0)
        return "done"

    sides.register("job", job)
    seen = []
    assert await soon(sides.call("job", on_progress=seen.append)) == "done"
    assert seen == [10, 50, 100]
    assert await soon(sides.call("job")) == "done"
    await sides.at_rest()


async def test_an_upload_arrives_in_order_and_its_end_is_seen(sides):
    await sides.start()

    async def total(payload, items):
        seen = [item async for item in items]
        assert seen == list(range(len(seen)))
        return payload + sum(seen)

    sides.register("total", total, upload=True)
    assert await soon(sides.call("total", 1, upload=range(500))) == 1 + sum(range(500))
    assert await soon(sides.call("total", 2, upload=count(100))) == 2 + sum(range(100))
    assert (await fails(sides.call("total", 2))).code == ErrorCode.RP_IS_A_STREAM
    await sides.at_rest()


async def test_an_upload_that_raises_cancels_the_call(sides):
    await sides.start()
    ended = []

    async def total(payload, items):
        try:
            async for _ in items:
                pass
        except WseError as exc:
            ended.append(exc.code)
            raise

    async def breaks():
        yield 1
        raise KeyError("gone")

    sides.register("total", total, upload=True)
    with pytest.raises(KeyError, match="gone"):
        await soon(sides.call("total", upload=breaks()))
    await sides.at_rest()
    assert ended == [ErrorCode.RP_DISCONNECT]


async def test_items_in_both_directions_at_once(sides):
    await sides.start()

    async def double(payload, items):
        async for item in items:
            yield item * 2

    sides.register("double", double, upload=True)
    assert await soon(collect(sides.stream("double", upload=range(300)))) == [2 * i for i in range(300)]
    await sides.at_rest()


# The end of the connection.


async def test_the_end_of_the_connection_ends_streams_at_both_sides(run):
    server = make_server()
    place = await run(server)
    log = ServerLog(server)
    client = await place.connect()
    conn = await log.conn("ann")
    ended = asyncio.Event()

    @server.register("endless")
    async def endless(conn, payload):
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def read():
        async with client.stream("endless") as items:
            async for _ in items:
                conn.drop()

    assert (await fails(read())).code == ErrorCode.RP_DISCONNECT
    await soon(ended.wait())
    await until(lambda: not conn._session.tasks)


# Peers without the extension.


async def test_a_peer_without_the_extension_sees_nothing_of_it(run):
    server = make_server()
    log = ServerLog(server)
    server.register("count", lambda conn, payload: payload)
    place = await run(server)
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann"})
    assert (await peer.hear())[0] == "~wse:welcome"
    conn = await log.conn("ann")
    task = asyncio.create_task(conn.call("job", 1, timeout=5))
    assert await peer.hear() == ["job", 1, 1]
    task.cancel()
    for refused in (
        collect(conn.stream("job")),
        conn.call("job", on_progress=print),
        conn.call("job", upload=[1]),
    ):
        assert (await fails(refused)).code == ErrorCode.UNSUPPORTED
    await peer.say("count", 5, "s")
    assert await peer.hear() == ["~wse:response", 5, "s"]  # nothing came in between


async def test_the_devices_that_were_slower_than_the_first_are_told(run):
    server = make_server(conns_per_user=2)
    place = await run(server)
    log = ServerLog(server)
    fast, slow = await place.connect(), await place.connect()
    await until(lambda: len(log.all("connected")) == 2)
    began, ended = asyncio.Event(), asyncio.Event()

    @fast.register("ring")
    async def answers(payload):
        await began.wait()
        return "fast"

    @slow.register("ring", cancel=True)
    async def never(payload):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert await soon(server.call("ann", "ring")) == "fast"
    await soon(ended.wait())


async def test_the_server_streams_from_the_newest_device_of_a_user(run):
    server = make_server(conns_per_user=2)
    place = await run(server)
    log = ServerLog(server)
    for name in ("old", "new"):
        client = await place.connect()
        client.register("name", partial(named, name))
    await until(lambda: len(log.all("connected")) == 2)
    assert await soon(collect(server.stream("ann", "name"))) == ["new"]
    assert (await fails(collect(server.stream("bob", "name")))).code == ErrorCode.CONNECTION_MISSING


async def named(name, payload):
    yield name


async def test_a_slow_reader_of_many_items_costs_neither_side_memory_nor_others_their_turn(sides):
    await sides.start()
    made = 0

    async def numbers(payload):
        nonlocal made
        while True:
            yield "x" * 1000
            made += 1

    sides.register("numbers", numbers)
    sides.register("echo", lambda payload: payload)
    async with sides.stream("numbers") as items:
        for taken in range(1, 200):
            await soon(anext(items))
            assert await soon(sides.call("echo", taken)) == taken
            assert made <= taken + 33
            assert items._asked.inflow._held <= 33 * 1100
            assert sides.callee.queued <= 40_000
    await sides.at_rest()
