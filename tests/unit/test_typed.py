"""Handlers that say what they take: hints, results, streams, identities, events."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pydantic
import pytest
from msgspec import Meta

from support.net import TIMEOUT
from wse import (
    ClientProcedure,
    ErrorCode,
    Event,
    Handshake,
    WseClient,
    WseConnection,
    WseError,
    WseJSON,
    WseMsgpack,
    WseServer,
)
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.testing import connect
from wse.validation.failures import InvalidResultError

if TYPE_CHECKING:
    from wse import Room  # has no value at run time


async def until(condition) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


class Page(msgspec.Struct):
    after: int = 0
    size: Annotated[int, Meta(ge=1, le=100)] = 20


class Note(pydantic.BaseModel):
    text: str


@dataclass
class Login:
    name: str


class Device(msgspec.Struct):
    kind: str


@pytest.fixture
def server():
    return WseServer(lambda auth: auth.accept(auth.identity or "ann"), protocol=[WseJSON(), WseMsgpack()])


@pytest.fixture
def errors(server):
    heard = []
    server.when.error(lambda error, conn: heard.append(error))
    return heard


async def refused(call) -> WseError:
    with pytest.raises(WseError) as caught:
        await call
    return caught.value


@pytest.fixture(params=[WseJSON, WseMsgpack])
def protocol(request):
    return request.param()


# Payloads.


async def test_a_handler_gets_a_value_of_its_hint(server, protocol):
    ran = []

    @server.register("page")
    def page(conn, page: Page):
        ran.append(page)

    @server.register("note")
    async def note(conn, note: Note):
        ran.append(note)

    async with connect(server, protocol=protocol) as client:
        await client.call("page", {})
        await client.call("page", {"after": 3})
        await client.call("note", {"text": "a"})
    assert ran == [Page(), Page(3), Note(text="a")]


@pytest.mark.parametrize("payload", [None, [], "x", {"after": "x"}, {"size": 0}, {"size": 101}])
async def test_garbage_is_refused_before_the_handler_runs(server, errors, protocol, payload):
    @server.register("page")
    def page(conn, page: Page):
        pytest.fail("it ran")

    async with connect(server, protocol=protocol) as client:
        error = await refused(client.call("page", payload))
    assert error.code is ErrorCode.INVALID_PAYLOAD
    assert set(error.details["errors"][0]) == {"path", "message", "type"}
    (report,) = errors
    assert report.code is ErrorCode.RP_EXECUTION_FAILED
    assert report.__cause__.code is ErrorCode.INVALID_PAYLOAD


async def test_a_peers_garbage_makes_no_traceback(server, caplog):
    server.register("page", _takes_page)
    async with connect(server) as client:
        await refused(client.call("page", None))
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def _takes_page(conn, page: Page): ...


async def test_a_message_with_garbage_is_reported_and_not_handled(server, errors):
    ran = []

    @server.channel.on("page")
    def page(conn, page: Page):
        ran.append(page)

    async with connect(server) as client:
        client.send("page", {"after": "x"})
        client.send("page", {"after": 1})
        await until(lambda: ran == [Page(1)])
    (report,) = errors
    assert report.code is ErrorCode.MSG_PROCESSING_ERROR
    assert report.__cause__.details["errors"][0]["path"] == "$.after"


def test_a_handler_without_hints_is_registered_as_it_is(server):
    def handler(conn, payload): ...

    def anything(conn: WseConnection, payload: Any) -> Any: ...

    def everything(conn: WseConnection, payload: object) -> object: ...

    for index, fn in enumerate((handler, anything, everything)):
        server.register(str(index), fn)
        server.channel.on(str(index), fn)
        assert server._hub.endpoint.procedures.by_name[str(index)] is fn
        assert server._hub.endpoint.channel._by_type[str(index)].fns == (fn,)


async def test_the_payload_is_the_second_parameter_whatever_its_name(server):
    @server.register("a")
    def a(conn, /, conn_: int):
        return conn_

    @server.register("b")
    def b(*args: int):
        return len(args)

    @server.register("c")
    def c(conn, auth: str):
        return auth

    async with connect(server) as client:
        assert await client.call("a", 1) == 1
        assert await client.call("b", "x") == 2
        assert await client.call("c", "x") == "x"


async def test_types_may_be_local_and_hints_text(server):
    class Local(msgspec.Struct):
        n: int

    @server.register("local")
    def local(conn, it: Local) -> list[Local]:
        return [it, it]

    async with connect(server) as client:
        assert await client.call("local", {"n": 1}) == [{"n": 1}, {"n": 1}]


def test_a_hint_without_a_value_is_an_error_that_says_what_to_do(server):
    def unknown(conn, room: Room): ...

    def result(conn, payload) -> Missing: ...  # noqa: F821 - unknown on purpose

    def broken(conn, payload): ...

    broken.__annotations__["payload"] = "not Python"
    for fn, name in ((unknown, "'room'"), (result, "the result"), (broken, "'payload'")):
        with pytest.raises(TypeError, match=rf"{name} of .*{fn.__name__} has no value: .*Import the type at run time"):
            server.register("x", fn)
        if fn is not result:
            with pytest.raises(TypeError, match="has no value"):
                server.channel.on("x", fn)
    server.channel.on("x", result)  # nobody uses it


def test_hints_of_the_connection_need_no_value(server):
    def handler(conn: Room, payload: int): ...

    server.register("x", handler)


async def test_bound_methods_partials_and_objects_may_have_hints(server):
    import functools

    class Object:
        def __call__(self, conn, n: int):
            return n

        def method(self, conn, n: int):
            return n

    def with_more(extra, conn, n: int):
        return n

    for index, fn in enumerate((Object(), Object().method, functools.partial(with_more, "extra"))):
        server.register(str(index), fn)
        async with connect(server) as client:
            assert await client.call(str(index), 5) == 5
            assert (await refused(client.call(str(index), "5"))).code is ErrorCode.INVALID_PAYLOAD


async def test_listeners_with_hints_can_be_removed(server):
    ran = []

    def listener(conn, n: int):
        ran.append(n)

    server.channel.on("n", listener)
    server.channel.once("n", listener)
    server.channel.on("ordered", listener, ordered=True)
    assert server.channel.listener_count("n") == 2
    async with connect(server) as client:
        client.send("n", 1)
        await until(lambda: ran == [1, 1])
        server.channel.off("n", listener)
        server.channel.off("ordered", listener)
        assert server.channel.listener_count("n") == server.channel.listener_count("ordered") == 0


async def test_ordered_handlers_may_have_hints(server):
    done = []

    @server.register("n", ordered=True)
    async def handler(conn, n: int):
        await asyncio.sleep(0)
        done.append(n)

    async with connect(server) as client:
        await asyncio.gather(*(client.call("n", n) for n in range(5)))
        assert (await refused(client.call("n", "x"))).code is ErrorCode.INVALID_PAYLOAD
    assert done == [*range(5)]


# Results.


async def test_a_wrong_result_is_the_servers_fault(server, errors):
    @server.register("plain")
    def plain(conn, payload) -> int:
        return "x"  # type: ignore[return-value]  # wrong on purpose

    @server.register("async")
    async def later(conn, payload) -> Page:
        return {"after": "x"}  # type: ignore[return-value]  # wrong on purpose

    @server.register("nothing")
    async def nothing(conn, payload) -> None:
        return 5  # type: ignore[return-value]  # wrong on purpose

    async with connect(server) as client:
        for name in ("plain", "async", "nothing"):
            error = await refused(client.call(name))
            assert error.code is ErrorCode.RP_EXECUTION_FAILED
    assert [type(error.__cause__) for error in errors] == [InvalidResultError] * 3


async def test_results_may_be_of_any_type(server, protocol):
    @server.register("notes")
    async def notes(conn, payload) -> list[Note]:
        return [Note(text="a")]

    @server.register("unhinted")
    def unhinted(conn, payload):
        return {"note": Note(text="a"), "page": Page()}

    @server.register("future")
    def future(conn, payload) -> asyncio.Future[int]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(5)
        return done

    async with connect(server, protocol=protocol) as client:
        assert await client.call("notes") == [{"text": "a"}]
        assert await client.call("notes", result=list[Note]) == [Note(text="a")]
        assert await client.call("unhinted") == {"note": {"text": "a"}, "page": {"after": 0, "size": 20}}
        assert await client.call("future") == 5


async def test_the_welcome_may_be_a_model(protocol):
    server = WseServer(lambda auth: auth.accept("ann", Note(text="hi")), protocol=[WseJSON(), WseMsgpack()])
    async with connect(server, protocol=protocol) as client:
        assert await client.when.ready.wait(TIMEOUT) == ({"text": "hi"},)


async def test_other_values_of_pydantic_can_be_sent(server):
    url = pydantic.TypeAdapter(pydantic.HttpUrl).validate_python("http://a.example")

    class Tags(pydantic.RootModel[list[str]]): ...

    server.register(
        "values", lambda conn, payload: {"url": url, "tags": Tags(["a"]), "secret": pydantic.SecretStr("x")}
    )
    async with connect(server) as client:
        values = await client.call("values")
    assert values == {"url": "http://a.example/", "tags": ["a"], "secret": "**********"}


async def test_what_cannot_be_encoded_is_still_an_error(server, errors):
    server.register("object", lambda conn, payload: object())
    async with connect(server) as client:
        assert (await refused(client.call("object"))).code is ErrorCode.RP_EXECUTION_FAILED
    assert "Encoding objects of type object is unsupported" in str(errors[0].__cause__)


# Streams and uploads.


async def test_payloads_and_items_of_streams_are_checked(server, errors):
    closed = []

    @server.register("count")
    async def count(conn, to: int) -> AsyncIterator[int]:
        try:
            for n in range(to):
                yield n
            yield "x"  # type: ignore[misc]  # wrong on purpose
        finally:
            closed.append("count")

    @server.register("plain")
    def plain(conn, to: int) -> Iterator[int]:
        yield from range(to)

    async with connect(server) as client:
        async with client.stream("count", 9) as numbers:
            assert await anext(numbers) == 0
        await until(lambda: closed == ["count"])
        assert [n async for n in client.stream("plain", 3)] == [0, 1, 2]
        numbers = client.stream("count", 2)
        assert [await anext(numbers), await anext(numbers)] == [0, 1]
        with pytest.raises(WseError) as wrong:
            await anext(numbers)
        assert wrong.value.code is ErrorCode.RP_EXECUTION_FAILED
        with pytest.raises(WseError) as refused:
            await anext(client.stream("count", "x"))
        assert refused.value.code is ErrorCode.INVALID_PAYLOAD
    assert closed == ["count", "count"]


async def test_items_of_an_upload_are_checked(server):
    @server.register("sum", upload=True)
    async def total(conn, start: int, items: AsyncIterator[int]) -> int:
        return start + sum([item async for item in items])

    async with connect(server) as client:
        assert await client.call("sum", 1, upload=[2, 3]) == 6
        assert (await refused(client.call("sum", 1, upload=[2, "x"]))).code is ErrorCode.INVALID_PAYLOAD
        assert (await refused(client.call("sum", "x", upload=[2]))).code is ErrorCode.INVALID_PAYLOAD


async def test_items_are_checked_at_the_caller(server):
    closed = []

    @server.register("mixed")
    async def mixed(conn, payload):
        try:
            yield 1
            yield "x"
            while True:
                yield 2
        finally:
            closed.append(True)

    async with connect(server) as client:
        stream = client.stream("mixed", item=int)
        assert await anext(stream) == 1
        with pytest.raises(WseError) as caught:
            await anext(stream)
        assert caught.value.code is ErrorCode.INVALID_PAYLOAD
        assert caught.value.details["rp"] == "mixed"
        await until(lambda: closed == [True])


# The client, and calls of clients.


async def test_the_clients_handlers_have_hints_as_well(server):
    async with connect(server) as client:
        heard = []

        @client.register
        def double(n: int) -> int:
            return n * 2

        @client.channel.on("page")
        def page(page: Page):
            heard.append(page)

        (conn,) = server.clients["ann"].conns.values()
        assert await conn.call("double", 4) == 8
        assert (await refused(conn.call("double", "4"))).code is ErrorCode.INVALID_PAYLOAD
        conn.send("page", {"after": 1})
        await until(lambda: heard == [Page(1)])


async def test_results_are_checked_at_the_caller(server):
    async with connect(server) as client:
        client.register("battery", lambda payload: payload)
        (conn,) = server.clients["ann"].conns.values()
        assert await conn.call("battery", 80, result=int) == 80
        assert await conn.call("battery", {"after": 1}, result=Page) == Page(1)
        error = await refused(conn.call("battery", "full", result=int))
        assert error.code is ErrorCode.INVALID_PAYLOAD
        assert error.details["rp"] == "battery"
        assert await server.call("ann", "battery", 80, result=int) == 80
        assert (await refused(server.call("ann", "battery", "full", result=int))).code is ErrorCode.INVALID_PAYLOAD
        (result,) = await server.call("ann", "battery", "full", mode="all", result=int)
        assert isinstance(result, WseError)
        assert await conn.client.call("battery", 80, result=int) == [80]


# Identities.


async def test_identity_and_meta_may_be_typed(server):
    seen = []

    @server.identify
    def identify(auth: Handshake[Login, Device]):
        seen.append((auth.identity, auth.meta))
        auth.accept(auth.identity.name)

    async with connect(server, {"name": "ann"}, {"kind": "phone"}) as client:
        (conn,) = server.clients["ann"].conns.values()
        assert seen == [(Login("ann"), Device("phone"))]
        assert (conn.identity, conn.meta) == ({"name": "ann"}, {"kind": "phone"})  # as sent: they may travel
    assert client.gave_up is None


@pytest.mark.parametrize(
    ("identity", "meta", "path"), [("ann", {"kind": "a"}, "$.identity"), ({"name": "ann"}, {}, "$.meta.kind")]
)
async def test_a_wrong_identity_is_refused_with_a_reason(server, errors, identity, meta, path):
    @server.identify
    async def identify(auth: Handshake[Login, Device]):
        pytest.fail("it ran")

    with pytest.raises(WseError) as caught:
        async with connect(server, identity, meta):
            pass
    assert caught.value.code is ErrorCode.NOT_AUTHORIZED
    assert caught.value.details["reason"] == "wse.invalid-payload"
    assert errors[0].__cause__.details["errors"][0]["path"] == path


async def test_a_welcome_may_be_typed_and_a_wrong_one_is_the_servers_fault(server, errors):
    welcomes = [Device("phone"), Login("ann")]

    @server.identify
    def identify(auth: Handshake[Any, Any, Device]):
        auth.accept("ann", welcomes.pop(0))

    async with connect(server) as client:
        assert await client.wait_ready() == {"kind": "phone"}
    with pytest.raises(WseError) as caught:
        async with connect(server):
            pass
    assert caught.value.code is ErrorCode.NOT_AUTHORIZED
    assert "not of the declared type" in str(errors[0].__cause__)


async def test_an_identify_handler_without_a_type_needs_no_value_for_its_hint(server):
    def identify(auth: Handshake):
        auth.accept("bob")

    identify.__annotations__["auth"] = "OnlyForTypeCheckers"
    server.identify(identify)
    async with connect(server):
        assert "bob" in server.clients


# State.


async def test_state_is_what_accept_was_given(server):
    claims = object()
    server.identify(lambda auth: auth.accept("ann", state=claims))
    async with connect(server):
        (conn,) = server.clients["ann"].conns.values()
        assert conn.state is claims
        conn.state = 5
        assert conn.state == 5


async def test_connections_can_be_referred_to_weakly(server):
    async with connect(server):
        (conn,) = server.clients["ann"].conns.values()
        seen = weakref.WeakSet([conn])
        reference = weakref.ref(conn)
        assert conn in seen
    del conn
    gc.collect()
    assert reference() is None


# Clusters.


async def test_models_reach_devices_of_other_nodes():
    cluster = MemoryCluster()
    here, there = (WseServer(lambda auth: auth.accept("ann"), broker=MemoryBroker(cluster)) for _ in range(2))

    async def echo(payload):
        return payload

    async def twice(payload):
        for _ in range(2):
            yield payload

    async with here, there, connect(there) as client:
        client.register("echo", echo)
        client.register("twice", twice)
        heard = []
        client.channel.on("note", heard.append)
        Event("note", Note).send(here, Note(text="a"))
        assert await here.call("ann", "echo", Note(text="a"), result=Note) == Note(text="a")
        assert (await refused(here.call("ann", "echo", 5, result=Note))).code is ErrorCode.INVALID_PAYLOAD
        assert [n async for n in here.stream("ann", "twice", Page(1), item=Page)] == [Page(1), Page(1)]
        await until(lambda: heard == [{"text": "a"}])


# Threads.


async def test_a_procedure_may_run_in_a_thread(server):
    import threading

    @server.register(thread=True)
    def where(conn, n: int) -> bool:
        return threading.current_thread() is not threading.main_thread()

    async with connect(server) as client:
        assert await client.call("where", 1) is True
        assert (await refused(client.call("where", "x"))).code is ErrorCode.INVALID_PAYLOAD

    async def coroutine(conn, payload): ...

    def generator(conn, payload):
        yield

    for fn in (coroutine, generator):
        with pytest.raises(TypeError, match="thread=True is for plain functions"):
            server.register("x", fn, thread=True)


# Names.


async def test_a_bare_decorator_takes_the_name_of_the_function(server):
    @server.register
    def add(conn, numbers: list[int]) -> int:
        return sum(numbers)

    @server.channel.on
    def chat(conn, text: str):
        server.broadcast("chat", text)

    client: WseClient
    async with connect(server) as client:
        heard = []
        client.channel.on(chat.__name__, heard.append)
        assert await client.call("add", [1, 2]) == 3
        client.send("chat", "hello")
        await until(lambda: heard == ["hello"])


def test_a_callable_in_the_place_of_a_name_is_an_error(server):
    class Name: ...

    def fn(conn, payload): ...

    for wrong in (fn, Name, print, lambda conn, payload: 1):
        with pytest.raises(TypeError, match="name"):
            server.register(wrong, fn)
        with pytest.raises(TypeError, match="name"):
            server.channel.on(wrong, fn)
    for nameless in (Name, lambda conn, payload: 1):
        with pytest.raises(TypeError, match="name"):
            server.register(nameless)
        with pytest.raises(TypeError, match="name"):
            server.channel.once(nameless)


# Declared messages and procedures.


async def test_an_event_is_sent_to_connections_users_rooms_and_everybody(server):
    note_added = Event("note-added", Note)
    async with connect(server) as client:
        heard = []
        client.channel.on("note-added", heard.append)
        (conn,) = server.clients["ann"].conns.values()
        server.room("all").add(conn)
        for to in (conn, conn.client, server.room("all"), server):
            note_added.send(to, Note(text="a"))
        note_added.send(conn, {"text": "a"})  # type: ignore[arg-type]  # wrong on purpose
        await until(lambda: heard == [{"text": "a"}] * 5)
        with pytest.raises(TypeError, match=r"\$.text"):
            note_added.send(conn, {"text": 5})  # type: ignore[arg-type]  # wrong on purpose
        nothing = Event("nothing")
        nothing.send(conn)
        with pytest.raises(TypeError, match="null"):
            nothing.send(conn, 5)  # type: ignore[arg-type]  # wrong on purpose


async def test_a_client_procedure_is_called_with_its_types(server):
    full_name = ClientProcedure("full-name", None, str)
    double = ClientProcedure("double", int, int)
    count = ClientProcedure("count", int, int, stream=True)
    async with connect(server) as client:
        client.register("full-name", lambda payload: "Ann Lee")
        client.register("double", lambda n: n * 2 if n else "nothing")

        @client.register("count")
        async def counts(n):
            for i in range(n):
                yield i
            yield "end"

        (conn,) = server.clients["ann"].conns.values()
        assert await full_name(conn) == "Ann Lee"
        assert await full_name(conn.client) == ["Ann Lee"]
        assert await double(conn, 4, timeout=5) == 8
        assert (await refused(double(conn, 0))).code is ErrorCode.INVALID_PAYLOAD
        with pytest.raises(TypeError):
            await double(conn, "x")  # type: ignore[arg-type]  # wrong on purpose
        stream = count.stream(conn, 1)
        assert await anext(stream) == 0
        with pytest.raises(WseError):
            await anext(stream)


async def test_an_identity_that_is_no_user_is_named_for_what_it_is(server):
    added, whole, count = Event("added", int), ClientProcedure("whole", None, str), ClientProcedure("n", None, int)
    async with connect(server, "ann"):
        (conn,) = server.clients["ann"].conns.values()
        added.send(conn.client, 1)
        for identity in (conn.identity, {"name": "ann"}, None):
            for use in (lambda: added.send(identity, 1), lambda: count.stream(identity)):  # noqa: B023 - at once
                with pytest.raises(TypeError, match=r"conn\.client"):
                    use()
            with pytest.raises(TypeError, match=r"conn\.client"):
                await whole(identity)
        with pytest.raises(TypeError, match=r"conn\.client"):
            server.room("lobby").add(conn.identity)


def test_operations_tell_what_handlers_say(server):
    added = Event("added", Note, tags=["notes"], doc="A note has been added.", examples=[{"text": "a"}])
    battery = ClientProcedure("battery", None, int, errors=["no-battery"])
    elsewhere = Event("elsewhere", int)
    WseServer(lambda auth: None).include(elsewhere)

    @server.register(errors=["too-old", WseError("gone")], tags=["notes"], examples=[{"after": 1}])
    def missed(conn, page: Page) -> list[Note]:
        """What came while you were away."""
        return []

    @server.register("tail", upload=True)
    async def tail(conn, payload: None, items: AsyncIterator[str]) -> AsyncIterator[int]:
        yield 1

    @server.channel.on("chat")
    def chat(conn, text: str):
        """Say something."""

    server.channel.on("chat", print)
    server.channel.on("gone", chat)
    server.channel.off("gone", chat)
    server.register("removed", chat)
    server.unregister("removed")
    found = {each.name: each for each in server.operations if each.name != "elsewhere"}
    assert [each for each in server.operations if each.name == "elsewhere"] == []
    one = found["missed"]
    assert (one.kind, one.receiver, one.payload, one.result) == ("procedure", "server", Page, list[Note])
    assert (one.errors, one.tags, one.examples) == (("too-old", "gone"), ("notes",), ({"after": 1},))
    assert one.doc == "What came while you were away."
    assert one.source is missed
    stream = found["tail"]
    assert (stream.payload, stream.item, stream.upload, stream.yields, stream.uploads) == (None, int, str, True, True)
    said = found["chat"]
    assert (said.kind, said.receiver, said.payload, said.doc) == ("message", "server", str, "Say something.")
    assert (found["added"].receiver, found["added"].payload, found["added"].doc) == (
        "client",
        Note,
        added.operation.doc,
    )
    assert (found["battery"].kind, found["battery"].payload, found["battery"].result) == ("procedure", None, int)
    assert battery.operation.errors == ("no-battery",)
    assert not {"gone", "removed"} & set(found)


def test_errors_are_declared_by_their_codes(server):
    with pytest.raises(TypeError, match="list of codes"):
        server.register("x", lambda conn, payload: 1, errors="too-old")
    with pytest.raises(TypeError, match="by its code"):
        server.register("x", lambda conn, payload: 1, errors=[5])


def test_a_function_in_place_of_a_name_is_an_error_of_a_declaration():
    with pytest.raises(TypeError, match="Event needs a name"):
        Event(print, int)
    with pytest.raises(TypeError, match="ClientProcedure needs a name"):
        ClientProcedure(print, None, str)


def test_an_error_may_be_raised_with_a_text():
    error = WseError("app.no", "not you")
    assert (error.code, error.details, error.message) == ("app.no", {}, "not you")
    assert "not you" in str(error)
