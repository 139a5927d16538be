"""What type checkers must make of the public API: checked by mypy and pyright, run by nobody."""

from datetime import UTC, datetime
from typing import Any, assert_type

from wse import (
    Backoff,
    Challenge,
    ClientStatus,
    DeviceInfo,
    ErrorCode,
    Handshake,
    InternalTypes,
    Limits,
    Loss,
    Protocol,
    ReadyState,
    Resume,
    Room,
    Stream,
    WseClient,
    WseConnection,
    WseError,
    WseIdentity,
    WseJSON,
    WseMsgpack,
    WseServer,
    current_call,
)
from wse.auth import Scram, ScramKeys, ScramServer
from wse.testing import MemoryClient, connect

server = WseServer(
    port=0,
    conns_per_user=3,
    protocol=[WseJSON(), WseMsgpack()],
    limits=Limits(message_size=10),
    resume=Resume(window=5),
)


@server.identify
async def identify(auth: Handshake) -> None:
    assert_type(auth.meta, dict[str, Any])
    assert_type(auth.request.path, str)
    if auth.request.path == "/closed":
        auth.refuse("closed", retry=True)
    auth.accept(1, {"hello": auth.identity}, expires=datetime.now(UTC))
    auth.accept(1, expires=1_900_000_000)


@server.reauthenticate
async def reauthenticate(conn: WseConnection, identity: Any) -> datetime | None:
    return None


@server.use_challenge
def generate(auth: Handshake) -> str:
    return "quest"


@server.register("add")
def add(conn: WseConnection, payload: dict[str, int]) -> int:
    return payload["a"] + payload["b"]


assert_type(add(None, {}), int)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@server.channel.on("chat")
def chat(conn: WseConnection, message: str) -> None:
    server.broadcast("chat", message)
    server.send(conn.cid, "chat", exclude=conn)
    assert_type(conn.client, WseIdentity)
    conn.client.send("chat", message, exclude=conn)
    conn.extend(datetime.now(UTC))
    conn.extend(None)
    assert_type(conn.attached, bool)
    assert_type(conn.undelivered(), list[tuple[Any, Any]])
    assert_type(conn.expires, float | None)
    assert_type(conn.challenge, Challenge | None)
    conn.server.broadcast("chat", message)
    room = server.room("tea")
    room.add(conn)
    room.send("chat", message, exclude=conn.cid)
    assert_type(room, Room)


@server.when.joined
def joined(identity: WseIdentity, meta: dict[str, Any]) -> None:
    assert_type(identity.conns["x"], WseConnection)


@server.when.connected
async def greet(conn: WseConnection) -> None:
    assert_type(await conn.call("client-info", timeout=1.0), Any)
    assert_type(await conn.call("client-info", on_progress=print, upload=[1]), Any)
    assert_type(conn.stream("numbers"), Stream[Any])
    words: Stream[str] = conn.stream("words", window=8)
    async with words as entered:
        assert_type(entered, Stream[str])
        async for word in entered:
            assert_type(word, str)
    assert_type(current_call().remaining, float | None)
    assert_type(conn.ready_state, ReadyState)
    await conn.drain()


@server.when.error
def failed(err: WseError, conn: WseConnection | None) -> None:
    assert_type(err.code, ErrorCode | str)
    assert_type(err.details, dict[str, Any])


async def use() -> None:
    async with server:
        assert_type(server.port, int | None)
        assert_type(server.url, str)
        assert_type(server.ready, bool)
        assert_type(await server.call("ann", "where", mode="all", wait=5), list[Any])
        assert_type(await server.when.detached.wait(), tuple[WseConnection, int, str])
        assert_type(await server.devices("ann"), list[DeviceInfo])
        assert_type([cid async for cid in server.users()], list[Any])
        assert_type(await server.when.left.wait(timeout=1), tuple[WseIdentity, int, str])
    client = WseClient("ws://x", reconnect=True, backoff=Backoff(cap=3), identity=Scram("ada", "secret"))
    assert_type(await client.when.closed.wait(), tuple[int, str])
    assert_type(await client.when.ready.wait(), tuple[Any])
    assert_type(client.status, ClientStatus)
    assert_type(await client.when.lost.wait(), tuple[Loss])
    assert_type(client.recovered, bool)
    await client.flush(timeout=5)
    assert_type(await client.connect(), Any)
    async with connect(server, "me", {"device": "phone"}, timeout=3) as tested:
        assert_type(tested, MemoryClient)


class Numbers(Protocol):
    name = "numbers"
    internal_types = InternalTypes(hi=0, challenge=1, welcome=2, call=3, response=4, response_error=5)

    def pack(self, type: Any, payload: Any = None, stamp: Any = None) -> bytes:
        return b""

    def unpack(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any]:
        return (0, None, None)


class Users:
    async def get(self, username: str) -> ScramKeys | None:
        return None


ScramServer(Users()).attach(server)
WseServer(protocol=Numbers())
