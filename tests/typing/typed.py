"""What type checkers must make of typed handlers: checked by mypy and pyright, run by nobody."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

import msgspec

from wse import (
    Call,
    ClientProcedure,
    Depends,
    Event,
    Handshake,
    Operation,
    Router,
    Stream,
    WseClient,
    WseConnection,
    WseError,
    WseServer,
)


class Note(msgspec.Struct):
    text: str


class Login(msgspec.Struct):
    token: str


class Device(msgspec.Struct):
    kind: str


server = WseServer(port=0)
notes = Router(prefix="notes.", tags=["notes"], dependencies=[Depends(print)])


@server.identify
async def identify(auth: Handshake[Login, Device]) -> None:
    assert_type(auth.identity, Login)
    assert_type(auth.meta, Device)
    auth.accept(auth.identity.token, Note("hi"), state=auth)


def identify_plainly(auth: Handshake[Login]) -> None:
    assert_type(auth.meta, dict[str, Any])


def identify_with_welcome(auth: Handshake[Login, dict[str, Any], Note]) -> None:
    auth.accept("ann", Note("hi"))
    auth.accept("ann", "hi")  # type: ignore[arg-type]  # not the declared welcome


def identify_anyhow(auth: Handshake) -> None:
    assert_type(auth.identity, Any)


server.identify(identify_plainly)
server.identify(identify_anyhow)
server.identify(identify_with_welcome)


def get_db(conn: WseConnection) -> str:
    assert_type(conn.state, Any)
    assert_type(conn.data, dict[str, Any])
    return "db"


@server.register
async def bare(conn: WseConnection, note: Note) -> list[Note]:
    return [note]


@server.register("named", errors=["gone"], tags=["t"], examples=[{"text": "a"}], dependencies=[Depends(get_db)])
async def named(conn: WseConnection, note: Note, db: Annotated[str, Depends(get_db)]) -> Note:
    return note


@server.register(thread=True)
def unnamed(conn: WseConnection, note: Note, db: str = Depends(get_db)) -> int:
    return 1


@notes.register
async def tail(conn: WseConnection, payload: None) -> AsyncIterator[int]:
    yield 1


@notes.channel.on
def typing(conn: WseConnection, payload: bool) -> None: ...


@notes.channel.on("read", ordered=True, dependencies=[Depends(get_db)])
def read(conn: WseConnection, payload: bool) -> None: ...


@notes.when.connected
def connected(conn: WseConnection) -> None: ...


@server.middleware
async def log(call: Call, next: Any) -> Any:
    return await next()


@server.lifespan
async def pool(server: WseServer) -> AsyncIterator[None]:
    yield


# Decorators keep the types of functions.
async def decorated(conn: WseConnection) -> None:
    assert_type(await bare(conn, Note("")), list[Note])
    assert_type(await named(conn, Note(""), "db"), Note)
    assert_type(unnamed(conn, Note(""), "db"), int)
    assert_type(typing(conn, True), None)


server.include(notes, prefix="v1.", tags=["v1"], dependencies=[Depends(get_db)])
assert_type(server.operations, list[Operation])

note_added = Event("note-added", Note)
emptied = Event("emptied")
full_name = ClientProcedure("full-name", None, str)
double = ClientProcedure("double", int, int)
ring = ClientProcedure("ring")
count = ClientProcedure("count", int, int, stream=True)


async def declared(conn: WseConnection) -> None:
    note_added.send(conn, Note(""))
    note_added.send(server, Note(""))
    note_added.send(server.room("all"), Note(""), key="a")
    note_added.send(conn.client, {"text": ""})  # type: ignore[arg-type]  # must be refused
    note_added.send(conn)  # type: ignore[call-arg]  # must be refused
    emptied.send(conn)
    assert_type(await full_name(conn), str)
    assert_type(await double(conn, 1, timeout=5), int)
    assert_type(await ring(conn), None)
    await double(conn, "1")  # type: ignore[arg-type]  # must be refused
    await double(conn)  # type: ignore[call-arg]  # must be refused
    assert_type(count.stream(conn, 3), Stream[int])


async def calls(client: WseClient, conn: WseConnection) -> None:
    assert_type(await client.call("a", result=int), int)
    assert_type(await client.call("a", result=list[Note]), list[Note])
    assert_type(await client.call("a"), Any)
    assert_type(await conn.call("a", result=Note), Note)
    assert_type(client.stream("a", item=Note), Stream[Note])
    assert_type(conn.stream("a"), Stream[Any])
    assert_type(await server.call("ann", "a", result=int), int)
    assert_type(await server.call("ann", "a", mode="all", result=int), list[int | WseError])
    assert_type(await conn.client.call("a", result=int), list[int | WseError])
    assert_type(await conn.client.call("a", mode="any", result=int), int)
    async for note in server.stream("ann", "a", item=Note):
        assert_type(note, Note)

    @client.register
    def procedure(note: Note) -> int:
        return 1

    assert_type(procedure(Note("")), int)
