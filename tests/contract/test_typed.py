"""Typed handlers, on every transport, over connections that come back, and against peers that send garbage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
import pydantic
import pytest
from pydantic.alias_generators import to_camel

from support.net import ServerLog, make_server, soon
from support.resume import RETURNING, cut, until
from wse import Depends, ErrorCode, Event, Handshake, Router, WseError


class Page(msgspec.Struct):
    after: int = 0


class Note(pydantic.BaseModel):
    text: str


class Author(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, populate_by_name=True)
    full_name: str


class Book(msgspec.Struct):
    author: Author


@dataclass
class Point:
    x: int


GARBAGE = [
    None,
    True,
    0,
    -1.5,
    "",
    "\x00\ud7ff",
    [],
    [[]] * 20,
    {"after": None},
    {"after": "1"},
    {"text": ["a"]},
    {"x": {"x": {"x": 1}}},
    {"": ""},
    {"a" * 5000: "b" * 5000},
    ["` - at `$.x`"],
]


@pytest.fixture
async def place(run):
    server = make_server()
    notes = Router(prefix="notes.")
    ran = []

    async def db(conn):
        ran.append("begin")
        try:
            yield conn.cid
        finally:
            ran.append("end")

    @notes.register
    def page(conn, page: Page) -> int:
        ran.append(page)
        return page.after

    @notes.register
    async def note(conn, note: Note, db: Annotated[str, Depends(db)]) -> list[Note]:
        ran.append(note)
        return [note, Note(text=db)]

    @notes.register
    async def points(conn, point: Point) -> AsyncIterator[Point]:
        for x in range(point.x):
            yield Point(x)

    @notes.channel.on
    def point(conn, point: Point) -> None:
        ran.append(point)

    server.include(notes)
    place = await run(server)
    place.ran = ran
    place.log = ServerLog(server)
    return place


async def test_values_arrive_as_their_types(place):
    client = await place.connect()
    assert await soon(client.call("notes.page", {"after": 4})) == 4
    assert await soon(client.call("notes.note", {"text": "a"}, result=list[Note])) == [Note(text="a"), Note(text="ann")]
    async with client.stream("notes.points", Point(3), item=Point) as points:
        assert [point async for point in points] == [Point(0), Point(1), Point(2)]
    client.send("notes.point", Point(5))
    await soon(client.call("notes.page", Page()))
    assert place.ran == [Page(4), "begin", Note(text="a"), "end", Point(5), Page()]


async def test_aliases_of_pydantic_are_the_names_in_messages_in_both_directions(run):
    server = make_server()
    got = []

    @server.register
    async def sign(conn, author: Author) -> Author:
        got.append(author)
        return author

    @server.register
    async def publish(conn, author: Author) -> Book:
        got.append(author)
        return Book(author)

    server.register("plain", lambda conn, payload: {"payload": payload, "author": Author(full_name="ada")})
    place = await run(server)
    client = await place.connect()
    ada, sent = Author(full_name="ada"), {"fullName": "ada"}
    assert await soon(client.call("sign", sent)) == sent
    assert await soon(client.call("sign", ada, result=Author)) == ada
    assert await soon(client.call("publish", sent)) == {"author": sent}
    assert await soon(client.call("publish", ada, result=Book)) == Book(ada)
    assert await soon(client.call("plain", ada)) == {"payload": sent, "author": sent}
    assert got == [ada] * 4
    schemas = server.asyncapi()["components"]["schemas"]
    assert list(schemas["Author"]["properties"]) == ["fullName"]


async def test_garbage_is_answered_and_runs_nothing(place):
    client = await place.connect()
    for name in ("notes.page", "notes.note"):
        for payload in GARBAGE:
            if name == "notes.page" and isinstance(payload, dict) and "after" not in payload:
                continue  # unknown fields do no harm, and all others have a default
            with pytest.raises(WseError) as caught:
                await soon(client.call(name, payload))
            assert caught.value.code is ErrorCode.INVALID_PAYLOAD
            assert caught.value.details["errors"][0]["path"].startswith("$")
            client.send("notes.point", payload)
    assert await soon(client.call("notes.page", {})) == 0
    assert place.ran == [Page()]
    assert client.status == "READY"


async def test_the_client_checks_as_well(place):
    client = await place.connect()

    @client.register
    def double(n: int) -> int:
        return 2 * n

    conn = await place.log.conn("ann")
    assert await soon(conn.call("double", 4, result=int)) == 8
    with pytest.raises(WseError) as caught:
        await soon(conn.call("double", "4"))
    assert caught.value.code is ErrorCode.INVALID_PAYLOAD


async def test_an_identity_of_another_type_is_refused(run):
    server = make_server()

    @server.identify
    async def identify(auth: Handshake[Point, Page]):
        auth.accept(auth.identity.x, Note(text="hi"))

    place = await run(server)
    client = await place.connect(identity={"x": 7}, meta={"after": 1})
    assert list(server.clients) == [7]
    await client.close()
    for identity, meta in (("ann", {}), ({"x": "7"}, {}), ({"x": 7}, {"after": "x"})):
        with pytest.raises(WseError) as caught:
            await place.connect(identity=identity, meta=meta)
        assert caught.value.code is ErrorCode.NOT_AUTHORIZED


async def test_state_and_data_outlive_a_connection(run):
    server = make_server()
    tokens = iter(["first", "second", None])
    server.identify(lambda auth: auth.accept("ann", state=next(tokens)))
    place = await run(server)
    log = ServerLog(server)
    client = place.client(identity="ann", **RETURNING)
    await soon(client.connect())
    conn = await log.conn("ann")
    conn.data["n"] = 1
    resumed = []
    client.when.resumed(lambda *args: resumed.append(args))
    seen = [conn.state]
    for count in (1, 2):
        cut(client)
        await until(lambda count=count: len(log.all("resumed")) == len(resumed) == count)
        seen.append(conn.state)
    assert seen == ["first", "second", "second"]  # an acceptance that says nothing changes nothing
    assert conn.data == {"n": 1}
    await client.close()


async def test_events_reach_everybody_encoded(run):
    server = make_server()
    place = await run(server)
    log = ServerLog(server)
    added = Event("added", Note)
    client = await place.connect()
    heard = asyncio.Queue()
    client.channel.on("added", heard.put_nowait)
    conn = await log.conn("ann")
    server.room("all").add(conn)
    for to in (server, conn, conn.client, server.room("all")):
        added.send(to, Note(text="a"))
        assert await soon(heard.get()) == {"text": "a"}
