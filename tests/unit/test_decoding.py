"""Messages that are decoded straight into the types of their handlers: faster, and the same in every other respect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import attrs
import msgspec
import pytest

from support.net import TIMEOUT
from wse import Depends, ErrorCode, Limits, WseError, WseJSON, WseMsgpack, WseServer
from wse.testing import connect


class Page(msgspec.Struct):
    after: int = 0
    more: Any = None


class Other(msgspec.Struct):
    other: str


@dataclass
class Point:
    x: int


@attrs.define
class Pen:
    colour: str


@pytest.fixture
def server():
    return WseServer(lambda auth: auth.accept("ann"), protocol=[WseJSON(), WseMsgpack()])


@pytest.fixture(params=[WseJSON, WseMsgpack])
def protocol(request):
    return request.param()


def decoded(session, *message):
    """What the session makes of the payload of a message."""
    return list(session._decode(session.protocol.codec.encode(message)))[1]


def session_of(server):
    (conn,) = server.clients["ann"].conns.values()
    return conn._session


async def until(condition) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


async def refused(call) -> WseError:
    with pytest.raises(WseError) as caught:
        await call
    return caught.value


async def test_payloads_of_classes_are_decoded_into_them(server, protocol):
    @server.register
    def page(conn, page: Page): ...

    @server.register(thread=True)
    def point(conn, point: Point): ...

    @server.register
    async def pen(conn, pen: Pen) -> AsyncIterator[int]:
        yield 1

    @server.channel.on("other", ordered=True)
    async def other(conn, other: Other) -> None: ...

    @server.register
    def plain(conn, payload): ...

    @server.register
    def number(conn, payload: list[int]): ...

    async with connect(server, protocol=protocol):
        session = session_of(server)
        assert decoded(session, "page", {"after": 1}, "7") == Page(1)
        assert decoded(session, "point", {"x": 1}, 7) == Point(1)
        assert decoded(session, "pen", {"colour": "red"}, 7) == Pen("red")
        assert decoded(session, "other", {"other": ""}, None) == Other("")
        assert decoded(session, "plain", {"after": 1}, "7") == {"after": 1}
        assert decoded(session, "number", [1], "7") == [1]
        assert decoded(session, "~wse:response", {"after": 1}, 1) == {"after": 1}
        assert list(session._decode(protocol.codec.encode(("page", {}, [])))) == ["page", Page(), []]


async def test_a_server_without_such_handlers_decodes_as_ever(server):
    server.register("n", lambda conn, payload: 1)

    @server.register
    def typed(conn, n: int): ...

    async with connect(server):
        session = session_of(server)
        assert session._decode is session.protocol.codec.decode


@pytest.mark.parametrize("message", ['["page"]', '["page",{"after":1}]', '["page",{"after":1},null,"more"]'])
async def test_short_and_long_messages_are_taken_as_ever(server, message):
    heard = []
    server.channel.on("page", lambda conn, payload: heard.append(payload))

    @server.register
    def typed(conn, page: Page): ...

    async with connect(server):
        session_of(server).receive(message)
    assert heard == [None if message == '["page"]' else {"after": 1}]


async def test_unknown_names_and_garbage_are_treated_as_ever(server, protocol):
    ignored = []
    server.when.ignored(lambda conn, kind, payload: ignored.append((kind, payload)))

    @server.register
    def typed(conn, page: Page): ...

    async with connect(server, protocol=protocol) as client:
        assert (await refused(client.call("unknown", {"after": 1}))).code is ErrorCode.RP_NOT_REGISTERED
        assert (await refused(client.call("typed", {"after": "x"}))).details["errors"][0]["path"] == "$.after"
        client.send("unknown", {"after": 1})
        await until(lambda: ignored == [("unknown", {"after": 1})])
        session_of(server).receive("garbage")
        await client.when.closed.wait(TIMEOUT)


async def test_handlers_that_want_different_things_get_them(server, protocol):
    heard = []

    @server.register("both")
    def call(conn, page: Page):
        heard.append(page)

    @server.channel.on("both")
    def message(conn, other: Other):
        heard.append(other)

    @server.channel.on("mixed")
    def typed(conn, page: Page):
        heard.append(page)

    @server.channel.on("mixed")
    def untyped(conn, payload):
        heard.append(payload)

    def room(payload: Other):
        return payload.other

    @server.register
    def depends(conn, page: dict[str, Any], room: Annotated[str, Depends(room)]):
        return room

    async with connect(server, protocol=protocol) as client:
        await client.call("both", {"after": 1})
        client.send("both", {"other": "a"})
        client.send("mixed", {"after": 1})
        assert await client.call("depends", {"other": "a"}) == "a"
    assert heard == [Page(1), Other("a"), Page(1), {"after": 1}]


async def test_handlers_may_come_and_go_while_clients_are_connected(server):
    heard = []

    @server.register
    def typed(conn, page: Page): ...

    async with connect(server) as client:
        session = session_of(server)

        def listener(conn, page: Page):
            heard.append(page)

        client.send("typed", {})  # now it has been decoded once
        server.channel.on("late", listener)
        client.send("late", {"after": 1})
        await until(lambda: heard == [Page(1)])
        assert decoded(session, "late", {"after": 1}, None) == Page(1)
        server.channel.on("late", print)
        assert decoded(session, "late", {"after": 1}, None) == {"after": 1}
        server.channel.off("late", print)
        assert decoded(session, "late", {"after": 1}, None) == Page(1)
        server.channel.remove_all("late")
        server.unregister("typed")
        server.register("typed", lambda conn, payload: payload)
        assert await client.call("typed", {"after": "x"}) == {"after": "x"}


async def test_middleware_sees_what_has_come(server):
    seen = []

    @server.register
    def typed(conn, page: Page) -> int:
        return page.after

    async with connect(server) as client:
        assert await client.call("typed", {"after": 1}) == 1

        @server.middleware
        async def look(call, next):
            seen.append(call.payload)
            return await next()

        assert await client.call("typed", {"after": 1}) == 1
    assert seen == [{"after": 1}]


async def test_the_limit_of_nesting_holds_inside_of_objects(server):
    server = WseServer(lambda auth: auth.accept("ann"), limits=Limits(nesting=20))
    ran = []

    @server.register
    def typed(conn, page: Page):
        ran.append(page)

    def nested(depth):
        return {"more": None} if not depth else {"more": [nested(depth - 1)["more"]]}

    async with connect(server) as client:
        await client.call("typed", nested(10))
        assert (await refused(client.call("typed", nested(30)))).code is ErrorCode.RP_DISCONNECT
    assert len(ran) == 1


async def test_the_payload_goes_back_with_an_error(server, protocol):
    @server.register
    def fails(conn, page: Page):
        raise WseError("failed")

    async with connect(server, protocol=protocol) as client:
        error = await refused(client.call("fails", {"after": 1}))
        assert error.details["payload"] == {"after": 1, "more": None}
