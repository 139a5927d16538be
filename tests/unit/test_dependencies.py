"""Dependencies, guards and middleware: what is made for a call, in which order, and what is cleaned up when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Annotated, Any

import fastapi
import msgspec
import pytest

from support.net import TIMEOUT
from wse import Call, Depends, ErrorCode, Handshake, Router, WseConnection, WseError, WseServer
from wse.testing import connect


class Page(msgspec.Struct):
    after: int = 0


class Room(msgspec.Struct):
    room: str


async def until(condition) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def server():
    return WseServer(lambda auth: auth.accept("ann", state="claims"))


@pytest.fixture
def errors(server):
    heard = []
    server.when.error(lambda error, conn: heard.append(error))
    return heard


@pytest.fixture
def log():
    return []


async def refused(call) -> WseError:
    with pytest.raises(WseError) as caught:
        await call
    return caught.value


# What they are given.


async def test_dependencies_of_every_kind(server, log):
    def plain(conn):
        return conn.cid

    async def later(conn):
        await asyncio.sleep(0)
        return "later"

    def generator(conn):
        log.append("generator begins")
        yield "generator"
        log.append("generator ends")

    async def async_generator():
        log.append("async generator begins")
        yield "async generator"
        log.append("async generator ends")

    class Thing:
        def __init__(self, conn):
            self.cid = conn.cid

    class Caller:
        def __call__(self, payload):
            return payload

    @server.register
    async def all_of_them(
        conn,
        payload,
        one: Annotated[str, Depends(plain)],
        two: str = Depends(later),
        three: Annotated[str, Depends(generator)] = "unused",
        *,
        four: Annotated[str, Depends(async_generator)],
        five: Annotated[Thing, Depends()],
        six: Any = Depends(Caller()),
        rest: int = 5,
    ):
        log.append("handler")
        return [one, two, three, four, five.cid, six, rest]

    async with connect(server) as client:
        result = await client.call("all_of_them", "payload")
    assert result == ["ann", "later", "generator", "async generator", "ann", "payload", 5]
    assert log == [
        "generator begins",
        "async generator begins",
        "handler",
        "async generator ends",
        "generator ends",
    ]


async def test_plain_handlers_with_plain_dependencies_stay_inline(server, log):
    def db(conn):
        log.append("begin")
        yield "db"
        log.append("end")

    @server.register
    def read(conn, page: Page, db: Annotated[str, Depends(db)]) -> str:
        return f"{db} {page.after}"

    async with connect(server) as client:
        (conn,) = server.clients["ann"].conns.values()
        fn = server._hub.endpoint.procedures.by_name["read"]
        assert fn(conn, {"after": 1}) == "db 1"
        assert await client.call("read", {}) == "db 0"
    assert log == ["begin", "end"] * 2


async def test_conn_payload_and_auth_are_recognised_by_name(server):
    def what(auth, payload, conn):
        return [auth.identity, auth.meta, auth.state, auth.request.path, conn.cid, payload]

    def checked(auth: Handshake[str], payload: list[int]):
        return [auth.identity, sum(payload)]

    @server.register
    def handler(conn, it, what: Any = Depends(what), checked: Any = Depends(checked)):
        return [*what, *checked]

    async with connect(server, "secret", {"a": 1}) as client:
        assert await client.call("handler", [1, 2]) == ["secret", {"a": 1}, "claims", "/", "ann", [1, 2], "secret", 3]
        error = await refused(client.call("handler", ["x"]))
        assert error.code is ErrorCode.INVALID_PAYLOAD
        auth = server.clients["ann"]
    assert auth.cid == "ann"


async def test_a_dependency_gets_the_payload_that_the_handler_has_checked(server):
    def untyped(payload):
        return payload.after

    def typed(payload: Room):
        return payload.room

    @server.register
    def handler(conn, page: Page, after: Annotated[int, Depends(untyped)]):
        return after

    @server.register
    def other(conn, payload, room: Annotated[str, Depends(typed)]):
        return [payload, room]

    async with connect(server) as client:
        assert await client.call("handler", {"after": 4}) == 4
        assert await client.call("other", {"room": "a"}) == [{"room": "a"}, "a"]
        assert (await refused(client.call("other", {}))).details["errors"][0]["path"] == "$.room"


async def test_a_dependency_is_made_once_for_a_call(server, log):
    def db():
        log.append("made")
        return len(log)

    def user(db: Annotated[int, Depends(db)]):
        return ["user", db]

    @server.register
    def handler(
        conn,
        payload,
        db_: Annotated[int, Depends(db)],
        user: Annotated[list[Any], Depends(user)],
        fresh: Annotated[int, Depends(db, use_cache=False)],
    ):
        return [db_, user, fresh]

    async with connect(server) as client:
        assert await client.call("handler") == [1, ["user", 1], 2]
        assert await client.call("handler") == [3, ["user", 3], 4]


async def test_dependencies_come_before_or_between_the_other_parameters(server):
    def five():
        return 5

    def first(five: Annotated[int, Depends(five)], conn, payload):
        return [five, conn.cid, payload]

    def between(conn, five: Annotated[int, Depends(five)], page: Page):
        return [conn.cid, five, page.after]

    def without_payload(conn, five: Annotated[int, Depends(five)]):
        return five

    def variadic(*args, five: Annotated[int, Depends(five)]):
        return [len(args), five]

    def with_keywords(conn, five: Annotated[int, Depends(five)], **more):
        return [five, more]

    for fn in (first, between, without_payload, variadic, with_keywords):
        server.register(fn.__name__, fn)
    async with connect(server) as client:
        assert await client.call("first", 1) == [5, "ann", 1]
        assert await client.call("between", {}) == ["ann", 5, 0]
        assert await client.call("without_payload") == 5
        assert await client.call("variadic") == [2, 5]
        assert await client.call("with_keywords", 1) == [5, {}]


async def test_listeners_identify_and_reauthenticate_have_dependencies(server, log):
    def who(auth):
        return auth.identity

    def name(conn, payload):
        return f"{conn.cid} says {payload}"

    @server.identify
    async def identify(auth: Handshake[str], who: Annotated[str, Depends(who)]):
        auth.accept(who)

    @server.channel.on("chat")
    def chat(conn, payload, name: Annotated[str, Depends(name)]):
        log.append(name)

    @server.reauthenticate
    def reauthenticate(conn, identity: int, log_: Annotated[None, Depends(lambda: log.append("again"))]): ...

    async with connect(server, "bob") as client:
        client.send("chat", "hi")
        await until(lambda: log)
    assert log == ["bob says hi"]


async def test_the_client_has_dependencies_as_well(server):
    def doubled(payload: int):
        return payload * 2

    async with connect(server) as client:

        @client.register
        def double(payload, doubled: Annotated[int, Depends(doubled)]):
            return doubled

        (conn,) = server.clients["ann"].conns.values()
        assert await conn.call("double", 4) == 8


# Guards.


async def test_guards_run_first_and_nothing_is_made_after_a_refusal(server, log):
    def guard(name, code=None):
        async def guard(conn, payload):
            log.append(name)
            if payload == name:
                raise WseError(f"not-{name}", {"why": name})

        return guard

    def db():
        log.append("db")

    router = Router("r.", dependencies=[Depends(guard("router"))])

    @router.register(dependencies=[Depends(guard("one")), Depends(guard("two"))])
    def handler(conn, payload, db: Annotated[None, Depends(db)]):
        log.append("handler")

    server.include(router, dependencies=[Depends(guard("include"))])
    order = ["include", "router", "one", "two"]
    async with connect(server) as client:
        for position, name in enumerate(order, 1):
            log.clear()
            error = await refused(client.call("r.handler", name))
            assert (error.code, error.details["why"]) == (f"not-{name}", name)
            assert log == order[:position]
        log.clear()
        await client.call("r.handler")
        assert log == [*order, "db", "handler"]


async def test_a_guard_refuses_before_the_payload_is_looked_at(server, log):
    def members_only(conn):
        raise WseError("not-a-member")

    def of_room(payload: Room):
        log.append(payload)

    @server.register(dependencies=[Depends(members_only)])
    def secret(conn, page: Page): ...

    @server.register(dependencies=[Depends(of_room)])
    def open_to_all(conn, page: Page): ...

    async with connect(server) as client:
        assert (await refused(client.call("secret", "garbage"))).code == "not-a-member"
        assert (await refused(client.call("open_to_all", {"after": 1}))).details["errors"][0]["path"] == "$.room"
        assert log == []
        await client.call("open_to_all", {"room": "a"})
        assert log == [Room("a")]


async def test_what_is_wrong_with_the_payload_is_said_before_a_dependency_is_made(server, log):
    @server.register
    def handler(conn, page: Page, db: Annotated[None, Depends(lambda: log.append("db"))]): ...

    async with connect(server) as client:
        assert (await refused(client.call("handler", None))).code is ErrorCode.INVALID_PAYLOAD
    assert log == []


async def test_guards_keep_messages_away(server, errors, log):
    @server.channel.on("chat", dependencies=[Depends(lambda payload: payload or 1 / 0)])
    def chat(conn, payload):
        log.append(payload)

    async with connect(server) as client:
        client.send("chat", 0)
        client.send("chat", 1)
        await until(lambda: log == [1])
    assert [type(error.__cause__) for error in errors] == [ZeroDivisionError]


# Cleaning up.


async def test_generators_see_the_exception_and_clean_up_in_reverse_order(server, log):
    def outer():
        try:
            yield
        except ValueError:
            log.append("outer rolls back")
            raise
        finally:
            log.append("outer ends")

    async def inner(outer: Annotated[None, Depends(outer)]):
        try:
            yield
        except ValueError:
            log.append("inner rolls back")
            raise
        finally:
            log.append("inner ends")

    def second_fails(inner: Annotated[None, Depends(inner)], payload):
        if payload == "dependency":
            raise ValueError("dependency")

    @server.register
    def handler(conn, payload, second: Annotated[None, Depends(second_fails)]) -> None:
        if payload == "handler":
            raise ValueError("handler")

    async with connect(server) as client:
        for name in ("handler", "dependency"):
            error = await refused(client.call("handler", name))
            assert error.code is ErrorCode.RP_EXECUTION_FAILED
            assert log == ["inner rolls back", "inner ends", "outer rolls back", "outer ends"]
            log.clear()
        await client.call("handler")
        assert log == ["inner ends", "outer ends"]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_generator_that_swallows_the_exception_makes_no_result_of_it(server, is_async):
    def swallows():
        with suppress(ValueError):
            yield

    def plain(conn, payload, it: Annotated[None, Depends(swallows)]):
        raise ValueError("wrong")

    async def later(conn, payload, it: Annotated[None, Depends(swallows)]):
        raise ValueError("wrong")

    server.register("fails", later if is_async else plain)
    async with connect(server) as client:
        assert (await refused(client.call("fails"))).code is ErrorCode.RP_EXECUTION_FAILED


async def test_a_wrong_result_rolls_back(server, log):
    def session():
        try:
            yield
        except TypeError:
            log.append("rolled back")
            raise

    @server.register
    def handler(conn, payload, it: Annotated[None, Depends(session)]) -> int:
        return "x"  # type: ignore[return-value]  # wrong on purpose

    async with connect(server) as client:
        await refused(client.call("handler"))
    assert log == ["rolled back"]


async def test_generators_clean_up_when_the_call_is_cancelled(server, log):
    started = asyncio.Event()

    async def session():
        try:
            yield
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        finally:
            log.append("ends")

    @server.register(cancel=True)
    async def handler(conn, payload, it: Annotated[None, Depends(session)]):
        started.set()
        await asyncio.Event().wait()

    async with connect(server) as client:
        call = asyncio.create_task(client.call("handler"))
        await started.wait()
        call.cancel()
        await until(lambda: log == ["cancelled", "ends"])


async def test_a_plain_function_that_returns_a_coroutine_keeps_its_dependencies_until_it_has_ended(server, log):
    def session():
        yield "db"
        log.append("ends")

    async def work(db):
        await asyncio.sleep(0)
        log.append("works")
        return db

    server.register("handler", lambda conn, payload, db=Depends(session): work(db))
    async with connect(server) as client:
        assert await client.call("handler") == "db"
    assert log == ["works", "ends"]


async def test_dependencies_of_a_stream_live_as_long_as_it(server, log):
    def plain():
        yield 2
        log.append("plain ends")

    async def session():
        yield 3
        log.append("session ends")

    @server.register
    async def numbers(conn, payload, it: Annotated[int, Depends(session)]) -> AsyncIterator[int]:
        try:
            for n in range(it):
                yield n
        finally:
            log.append("stream ends")

    @server.register
    def plain_numbers(conn, payload: int, it: Annotated[int, Depends(plain)]) -> Iterator[int]:
        yield from range(it + payload)

    @server.register
    def mixed(conn, payload, it: Annotated[int, Depends(session)]) -> Iterator[int]:
        yield from range(it)

    async with connect(server) as client:
        assert [n async for n in client.stream("numbers")] == [0, 1, 2]
        assert log == ["stream ends", "session ends"]
        assert [n async for n in client.stream("plain_numbers", 1)] == [0, 1, 2]
        assert [n async for n in client.stream("mixed")] == [0, 1, 2]
        await until(lambda: log[2:] == ["plain ends", "session ends"])


async def test_plain_dependencies_share_the_thread_of_their_handler(server, log):
    import threading

    def session():
        yield threading.get_ident()
        log.append(threading.get_ident())

    async def later():
        return threading.get_ident()

    @server.register(thread=True)
    def all_in_one(conn, payload, it: Annotated[int, Depends(session)]) -> list[int]:
        return [it, threading.get_ident()]

    @server.register(thread=True)
    def only_the_handler(conn, payload, it: Annotated[int, Depends(later)]) -> list[int]:
        return [it, threading.get_ident()]

    async with connect(server) as client:
        begun, ran = await client.call("all_in_one")
        assert begun == ran == log[0] != threading.get_ident()
        begun, ran = await client.call("only_the_handler")
        assert begun == threading.get_ident() != ran


# FastAPI's.


async def test_fastapis_depends_are_understood(server, log):
    async def get_db(conn: WseConnection):
        yield "db"
        log.append("closed")

    def current_user(db: Annotated[str, fastapi.Depends(get_db)], auth: Handshake):
        return f"{auth.identity} of {db}"

    @server.register(dependencies=[fastapi.Depends(current_user)])
    async def handler(conn, payload, user: str = fastapi.Depends(current_user)):
        return user

    async with connect(server, "ann") as client:
        assert await client.call("handler") == "ann of db"
    assert log == ["closed"]


def test_what_only_fastapi_can_fill_is_an_error_at_registration(server):
    def needs_request(request: fastapi.Request): ...

    def needs_query(q: str = "default"): ...

    def needs_header(token: Annotated[str, fastapi.Header()]): ...

    for fn in (needs_request, needs_query):
        with pytest.raises(TypeError, match=r"FastAPI's dependency .* which WSE does not have: .*'conn', 'payload'"):
            server.register("x", lambda conn, payload, it=fastapi.Depends(fn): it)
    with pytest.raises(TypeError, match="belongs to HTTP"):
        server.register("x", lambda conn, payload, it=fastapi.Depends(needs_header): it)
    for mark in (fastapi.Query(), fastapi.Security(needs_query)):
        with pytest.raises(TypeError, match="belongs to HTTP"):
            server.register("x", lambda conn, payload, it=mark: it)
    assert server.operations == []


def test_what_cannot_be_a_dependency_is_an_error_at_registration(server):
    def loop(it: Annotated[None, Depends(lambda: None)]): ...

    loop.__annotations__["it"] = Annotated[None, Depends(loop)]

    def unknown(something): ...

    def late(conn, payload, it): ...

    late.__annotations__["it"] = "Annotated[Missing, Depends(get)]"
    for fn, problem in (
        (lambda conn, payload, it=Depends(loop): it, "depends on itself"),
        (lambda conn, payload, it=Depends(unknown): it, "needs 'something'"),
        (lambda conn, payload, it=Depends(): it, "needs a class"),
        (lambda conn, payload, more, it=Depends(print): it, "needs 'more'"),
        (lambda it=Depends(print): it, "must take conn"),
        (late, "has no value"),
    ):
        with pytest.raises(TypeError, match=problem):
            server.register("x", fn)
        with pytest.raises(TypeError, match=problem):
            server.channel.on("x", fn)
    with pytest.raises(TypeError, match="takes a function"):
        Depends("db")  # type: ignore[arg-type]  # wrong on purpose
    for wrong in (print, Depends()):
        with pytest.raises(TypeError, match=r"takes Depends\(function\)"):
            server.register("x", print, dependencies=[wrong])

    def yields(conn, payload, it: Annotated[None, Depends(print)]):
        yield

    with pytest.raises(TypeError, match="generator"):
        server.channel.on("x", yields)


# Middleware.


async def test_middleware_is_around_every_call_and_message(server, log):
    @server.register
    def before(conn, payload: int) -> int:
        return payload + 1

    @server.channel.on("chat")
    def chat(conn, payload):
        log.append("chat")

    @server.middleware
    async def outer(call: Call, next):
        log.append(f"{call.kind} {call.name} {call.payload} of {call.conn.cid}")
        result = await next()
        log.append("outer ends")
        return result

    @server.middleware
    async def inner(call, next):
        try:
            return await next(call)
        finally:
            log.append("inner ends")

    @server.register
    async def after(conn, payload):
        return payload

    async with connect(server) as client:
        assert await client.call("before", 1) == 2
        assert await client.call("after", 1) == 1
        client.send("chat", "hi")
        await until(lambda: len(log) == 10)
    around = ["inner ends", "outer ends"]
    assert log == [
        "call before 1 of ann",
        *around,
        "call after 1 of ann",
        *around,
        "message chat hi of ann",
        "chat",
        *around,
    ]


async def test_middleware_may_answer_refuse_and_change(server):
    @server.middleware
    async def rule(call, next):
        if call.payload == "answer":
            return "answered"
        if call.payload == "refuse":
            raise WseError("refused")
        call.payload = 5
        return [await next()]

    @server.register
    def handler(conn, payload: int) -> int:
        return payload

    async with connect(server) as client:
        assert await client.call("handler", "answer") == "answered"
        assert (await refused(client.call("handler", "refuse"))).code == "refused"
        assert await client.call("handler", "x") == [5]


async def test_middleware_sees_streams(server, log):
    @server.register
    async def count(conn, to: int) -> AsyncIterator[int]:
        try:
            for n in range(to):
                yield n
        finally:
            log.append("closed")

    @server.register
    def plain(conn, to):
        yield from range(to)

    @server.register(upload=True)
    async def total(conn, payload, items):
        return sum([item async for item in items])

    @server.middleware
    async def doubled(call, next):
        log.append(call.kind)
        result = await next()
        if call.kind != "stream":
            return result

        async def twice():
            if hasattr(result, "__aiter__"):
                async for item in result:
                    yield item * 2
            else:
                for item in result:
                    yield item * 2

        return twice()

    async with connect(server) as client:
        assert [n async for n in client.stream("count", 3)] == [0, 2, 4]
        assert [n async for n in client.stream("plain", 3)] == [0, 2, 4]
        assert await client.call("total", upload=[1, 2]) == 3
    assert log == ["stream", "closed", "stream", "call"]


async def test_middleware_and_handler_share_their_context(server):
    request_id: ContextVar[int] = ContextVar("request_id", default=0)

    @server.middleware
    async def identified(call, next):
        request_id.set(7)
        return await next()

    server.register("handler", lambda conn, payload: request_id.get())
    async with connect(server) as client:
        assert await client.call("handler") == 7


async def test_listeners_can_be_removed_although_there_is_middleware(server, log):
    def chat(conn, payload):
        log.append(payload)

    server.channel.on("a", chat)
    server.channel.once("b", chat)
    server.channel.on("c", chat, ordered=True)

    @server.middleware
    async def through(call, next):
        return await next()

    server.channel.on("d", chat)
    async with connect(server) as client:
        for kind in "abcdb":
            client.send(kind, kind)
        await until(lambda: len(log) == 4)
        for kind in "acd":
            server.channel.off(kind, chat)
            assert server.channel.listener_count(kind) == 0
    assert sorted(log) == ["a", "b", "c", "d"]


def test_what_is_no_middleware_is_rejected(server):
    async def one(call): ...

    def plain(call, next): ...

    with pytest.raises(TypeError, match=r"\(call, next\)"):
        server.middleware(one)
    with pytest.raises(TypeError, match="async def"):
        server.middleware(plain)
