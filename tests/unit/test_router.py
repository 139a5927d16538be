"""Routers: handlers of one module, or of a class, which a server includes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import pytest

from support.net import TIMEOUT
from wse import ClientProcedure, Depends, ErrorCode, Event, Router, WseError, WseServer
from wse.server.signals import ServerSignals
from wse.testing import connect
from wse.typed.router import RouterSignals


async def until(condition) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def server():
    return WseServer(lambda auth: auth.accept("ann"))


def names(server) -> list[Any]:
    return [each.name for each in server.operations if each.receiver == "server"]


async def test_names_and_types_get_the_prefix(server):
    notes = Router(prefix="notes.")
    heard = []

    @notes.register
    def missed(conn, page: int) -> int:
        return page

    @notes.register("all")
    def everything(conn, payload):
        return "all"

    @notes.register()
    def called(conn, payload):
        return "called"

    notes.register("given", lambda conn, payload: "given")

    @notes.channel.on
    def typing(conn, payload):
        heard.append(payload)

    @notes.channel.on("read")
    def read(conn, payload):
        heard.append(payload)

    @notes.channel.once("read")
    def read_once(conn, payload):
        heard.append("once")

    notes.channel.on("more", read)
    server.include(notes)
    assert names(server) == [
        *(f"notes.{name}" for name in ("missed", "all", "called", "given")),
        *(f"notes.{name}" for name in ("typing", "read", "more")),
    ]
    async with connect(server) as client:
        assert await client.call("notes.missed", 4) == 4
        assert await client.call("notes.all") == "all"
        with pytest.raises(WseError) as caught:
            await client.call("notes.missed", "x")
        assert caught.value.code is ErrorCode.INVALID_PAYLOAD
        for kind in ("typing", "read", "read", "more"):
            client.send(f"notes.{kind}", kind)
        await until(lambda: len(heard) == 5)
    assert heard == ["typing", "read", "once", "read", "more"]


def test_routers_may_be_nested(server):
    inner, middle, outer = Router("inner.", tags=["i"]), Router("middle.", tags=["m"]), Router(tags=["o"])

    @inner.register(tags=["own", "i"])
    def fn(conn, payload): ...

    middle.include(inner, prefix="x.", tags=["x"])
    outer.include(middle)
    server.include(outer, prefix="v1.", tags=["v1"])
    (operation,) = server.operations[:1]
    assert operation.name == "v1.middle.x.inner.fn"
    assert operation.tags == ("v1", "o", "m", "x", "i", "own")


def test_what_a_router_gets_later_comes_to_the_server_as_well(server):
    inner, outer = Router("inner."), Router("outer.")
    outer.include(inner)
    server.include(outer)
    inner.register("late", lambda conn, payload: 1)
    assert names(server) == ["outer.inner.late"]


def test_a_router_may_be_included_in_several_servers_and_twice_in_one(server):
    router = Router()
    router.register("fn", lambda conn, payload: 1)
    other = WseServer(lambda auth: None)
    server.include(router)
    other.include(router)
    server.include(router, prefix="v2.")
    assert (names(server), names(other)) == (["fn", "v2.fn"], ["fn"])
    with pytest.raises(WseError) as caught:
        server.include(router)
    assert caught.value.code is ErrorCode.RP_ALREADY_REGISTERED


async def test_a_router_has_the_servers_events(server):
    router = Router("prefix.")
    heard = []

    @router.when.connected
    def connected(conn):
        heard.append("connected")

    @router.when.disconnected.once
    def disconnected(conn, code, reason):
        heard.append("disconnected")

    server.include(router)
    for _ in range(2):
        async with connect(server):
            pass
    await until(lambda: len(heard) == 3)
    assert heard == ["connected", "disconnected", "connected"]
    assert set(RouterSignals.__annotations__) == {name for name in dir(server.when) if not name.startswith("_")}, (
        "the same events"
    )
    assert isinstance(server.when, ServerSignals)


class Notes:
    """Handlers that share what their object has."""

    router = Router(prefix="notes.", tags=["notes"])

    def __init__(self, db: dict[str, Any] | None = None) -> None:
        self.db = {} if db is None else db

    @router.register
    async def put(self, conn, note: dict[str, str]) -> int:
        """Keep a note."""
        self.db.update(note)
        return len(self.db)

    @router.register("get", errors=["no-note"])
    def read(self, conn, name: str) -> str:
        return self.db[name]

    @router.channel.on("forget")
    def forget(self, conn, name: str) -> None:
        del self.db[name]

    @router.when.connected
    def connected(self, conn) -> None:
        self.db["last"] = conn.cid


class LouderNotes(Notes):
    def read(self, conn, name: str) -> str:
        return super().read(conn, name).upper()


@pytest.mark.parametrize("cls", [Notes, LouderNotes])
async def test_an_object_whose_methods_are_decorated_is_a_router(server, cls):
    notes = cls({"a": "x"})
    server.include(notes)
    assert names(server) == ["notes.put", "notes.get", "notes.forget"]
    assert server.operations[0].doc == "Keep a note."
    assert server.operations[0].payload == dict[str, str]
    async with connect(server) as client:
        assert notes.db["last"] == "ann"
        assert await client.call("notes.put", {"b": "y"}) == 3
        assert await client.call("notes.get", "a") == ("x" if cls is Notes else "X")
        client.send("notes.forget", "a")
        await until(lambda: "a" not in notes.db)
        with pytest.raises(WseError) as caught:
            await client.call("notes.get", 5)
        assert caught.value.code is ErrorCode.INVALID_PAYLOAD


def test_a_class_is_made_an_object_of(server):
    server.include(Notes, prefix="v1.")
    assert names(server)[0] == "v1.notes.put"


def test_a_router_of_methods_wants_an_object(server):
    with pytest.raises(TypeError, match="include an object of their class"):
        server.include(Notes.router)


def test_guards_of_every_level_come_in_order(server):
    def guard(name):
        def guard(conn): ...

        guard.__name__ = name
        return Depends(guard)

    inner = Router(dependencies=[guard("inner")])
    inner.register("fn", lambda conn, payload: 1, dependencies=[guard("own")])
    outer = Router(dependencies=[guard("outer")])
    outer.include(inner, dependencies=[guard("between")])
    entries = []
    outer.send_to(entries.append)
    assert [mark.fn.__name__ for mark in entries[0].options["dependencies"]] == ["outer", "between", "inner", "own"]


def test_events_and_client_procedures_belong_to_a_router(server):
    router = Router("prefix.")
    added, battery = Event("added", int), ClientProcedure("battery", None, int)
    router.include(added)
    router.include(battery)
    server.include(router)
    found = [each.name for each in server.operations if each.receiver == "client"]
    assert {"added", "battery"} <= set(found)
    other = WseServer(lambda auth: None)
    assert not {"added", "battery"} & {each.name for each in other.operations}


@pytest.mark.parametrize("wrong", [None, 5, "notes", object(), print])
def test_what_cannot_be_included_is_an_error(server, wrong):
    with pytest.raises(TypeError, match="include takes a Router"):
        server.include(wrong)


def test_mistakes_are_errors_at_once(server):
    router = Router("p.")
    with pytest.raises(ValueError, match="cannot include itself"):
        router.include(router)
    with pytest.raises(TypeError, match="name"):
        router.register(print, print)
    with pytest.raises(TypeError, match="name"):
        router.register(lambda conn, payload: 1)
    with pytest.raises(TypeError, match="name"):
        router.channel.on(print, print)
    with pytest.raises(TypeError, match="strings as names"):
        router.register(5, print)
    with pytest.raises(TypeError, match="prefix is a string"):
        Router(5)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match=r"Depends\(function\)"):
        Router(dependencies=[print])
    with pytest.raises(TypeError, match="called once cannot have guards"):
        Router(dependencies=[Depends(print)]).channel.once("x", print)
    with pytest.raises(AttributeError):
        router.when.nothing  # noqa: B018 - raises


def test_routers_nested_in_a_ring_are_an_error():
    one, two = Router(), Router()
    one.include(two)
    with pytest.raises(ValueError, match="cannot include itself"):
        two.include(one)


def test_local_types_of_a_router_are_found(server):
    def make_router():
        class Page(msgspec.Struct):
            after: int

        def db() -> Page:
            return Page(1)

        router = Router()

        @router.register
        def fn(conn, page: Page, db: Annotated[Page, Depends(db)]) -> list[Page]:
            return [page, db]

        return router, Page

    router, page = make_router()
    server.include(router)
    assert server.operations[0].payload is page


async def test_static_and_class_methods_are_handlers_of_their_class(server):
    class Notes:
        router = Router(prefix="notes.")
        size = 7

        @router.register
        @staticmethod
        def double(conn, number: int) -> int:
            return 2 * number

        @router.register
        @classmethod
        def add(cls, conn, number: int) -> int:
            return cls.size + number

        @router.register("named")
        @classmethod
        def other(cls, conn, number: int) -> int:
            return cls.size - number

    with pytest.raises(TypeError, match="include an object of their class"):
        server.include(Notes.router)
    server.include(Notes())
    async with connect(server) as client:
        assert await client.call("notes.double", 4) == 8
        assert await client.call("notes.add", 4) == 11
        assert await client.call("notes.named", 4) == 3
        with pytest.raises(WseError) as wrong:
            await client.call("notes.add", "x")
        assert wrong.value.code == ErrorCode.INVALID_PAYLOAD
