"""The real servers that the integration tests talk to, in one process.

Prints one line of JSON, {"plain": url, "other": url, …}, then serves until its standard
input ends. The first argument, if any, is the port of the plain server.
"""

import asyncio
import json
import sys
import time
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id, get_current_span

from wse import Handshake, Inbox, WseError, WseJSON, WseMsgpack, WseServer, current_call
from wse.auth import ScramKeys, ScramServer
from wse.otel import instrument

PASSWORDS = {"ada": "lovelace", "a=b,c": "p=q,r", "grüße": "naïve\u00a0ⅸ", "ru": "שלום"}


def plain(name: str, port: int) -> WseServer:
    server = WseServer(port=port, conns_per_user=2, timeout=5, auth_timeout=2, protocol=[WseJSON(), WseMsgpack()])

    @server.identify
    async def identify(auth: Handshake) -> None:
        identity = auth.identity
        if identity == "refuse" or (auth.challenge is not None and auth.challenge.response != 42):
            auth.refuse()
        else:
            auth.accept(str(identity or "anonymous"), {"server": name, "identity": identity, "meta": auth.meta})

    @server.channel.on("echo")
    def echo(conn: Any, payload: Any) -> None:
        conn.send("echo", payload)

    @server.channel.on("shout")
    def shout(conn: Any, payload: Any) -> None:
        server.broadcast("shout", payload)

    @server.register("add")
    def add(conn: Any, payload: Any) -> Any:
        return payload["a"] + payload["b"]

    @server.register("same")
    def same(conn: Any, payload: Any) -> Any:
        return payload

    @server.register("fail")
    def fail(conn: Any, payload: Any) -> None:
        raise ValueError("no good")

    @server.register("deny")
    async def deny(conn: Any, payload: Any) -> None:
        raise WseError("app.denied", {"why": "closed"}, "the shop is closed")

    @server.register("never")
    async def never(conn: Any, payload: Any) -> None:
        await asyncio.Event().wait()

    @server.register("call-back")
    async def call_back(conn: Any, payload: Any) -> Any:
        try:
            return {"result": await conn.call(payload["name"], payload.get("payload"))}
        except WseError as error:
            return {"code": error.code, "details": error.details, "text": str(error)}

    @server.register("drop")
    def drop(conn: Any, payload: Any) -> None:
        asyncio.get_running_loop().call_soon(lambda: conn.drop(payload["reason"], payload["code"]))

    @server.register("devices")
    def devices(conn: Any, payload: Any) -> int:
        return len(conn.client.conns)

    server.when.error(lambda err, conn: None)
    return server


class Users(dict[str, ScramKeys]):
    async def get(self, username: str) -> ScramKeys | None:  # type: ignore[override]
        return dict.get(self, username)


def challenged() -> WseServer:
    server = plain("challenged", 0)
    server.use_challenge(lambda auth: {"double": 21})
    return server


def streams() -> WseServer:
    server = WseServer(port=0)
    server.identify(lambda auth: auth.accept("ada"))
    ended: list[str] = []

    @server.register("ticks")
    async def ticks(conn: Any, count: Any) -> Any:
        try:
            for number in range(count):
                yield number
        finally:
            ended.append("ticks")

    @server.register("never", cancel=True)
    async def never(conn: Any, payload: Any) -> None:
        try:
            current_call().progress("begun")
            await asyncio.Event().wait()
        finally:
            ended.append("never")

    @server.register("job")
    async def job(conn: Any, payload: Any) -> Any:
        current_call().progress({"done": 0.5})
        return current_call().remaining

    @server.register("echo", upload=True)
    async def echo(conn: Any, payload: Any, items: Any) -> Any:
        async for item in items:
            yield item

    @server.register("ended")
    def get_ended(conn: Any, payload: Any) -> list[str]:
        return ended

    @server.register("stream-back")
    async def stream_back(conn: Any, payload: Any) -> Any:
        async with conn.stream("lines", payload["count"], window=8) as lines:
            return [line async for line in lines][-3:]

    @server.register("leave-back")
    async def leave_back(conn: Any, payload: Any) -> None:
        async with conn.stream("forever") as items:
            async for _ in items:
                return

    @server.register("upload-back")
    async def upload_back(conn: Any, payload: Any) -> Any:
        progress: list[Any] = []
        total = await conn.call("sum", None, upload=range(100), on_progress=progress.append, timeout=30)
        return [total, progress]

    return server


def inbox() -> WseServer:
    server = WseServer(port=0, inbox=Inbox(messages=100), conns_per_user=4, protocol=[WseJSON(), WseMsgpack()])

    @server.identify
    def identify(auth: Handshake) -> None:
        auth.accept(str(auth.identity))

    @server.register("keep")
    async def keep(conn: Any, payload: Any) -> int:
        return await server.keep(conn.cid, "note", payload)

    return server


def rooms() -> WseServer:
    server = WseServer(port=0, conns_per_user=4, protocol=[WseJSON(), WseMsgpack()])
    server.room("doc", presence=True)

    @server.identify
    def identify(auth: Handshake) -> None:
        auth.accept(tuple(auth.identity) if isinstance(auth.identity, list) else str(auth.identity))

    verdict = asyncio.Event()

    @server.room_guard
    async def guard(conn: Any, name: Any) -> bool:
        if name == "secret":
            raise WseError("app.secret", {"room": name})
        if name == "slow":
            await verdict.wait()
        return bool(name != "closed")

    @server.register("decide")
    async def decide(conn: Any, payload: Any) -> int:
        verdict.set()
        await asyncio.sleep(0)
        return len(await server.room("slow").members())

    @server.register("add")
    def add(conn: Any, payload: Any) -> None:
        server.room("doc").add(conn)

    @server.register("remove")
    def remove(conn: Any, payload: Any) -> None:
        server.room("doc").discard(conn)

    @server.register("say")
    def say(conn: Any, payload: Any) -> None:
        server.room("doc").send("said", payload)

    server.when.error(lambda err, conn: None)
    return server


def scram() -> WseServer:
    server = WseServer(port=0)
    keys = {name: ScramKeys.from_password(password, iterations=4096) for name, password in PASSWORDS.items()}
    half = ScramServer(Users(keys), iterations=4096)
    server.use_challenge(half.challenge)

    @server.identify
    def identify(auth: Handshake) -> None:
        username = half.verify(auth)
        if username is None:
            auth.refuse()
        else:
            half.accept(auth, username, {"hello": username})

    return server


def impostor() -> WseServer:
    server = WseServer(port=0)
    server.use_challenge(ScramServer(Users(), iterations=4096).challenge)
    server.identify(
        lambda auth: auth.accept("ada", {"scram": "v=bm90IHRoZSBzZXJ2ZXIncyBwcm9vZg==", "welcome": "trust me"})
    )
    return server


def tokens() -> WseServer:
    server = WseServer(port=0)

    @server.identify
    def identify(auth: Handshake) -> None:
        token = auth.identity["token"]
        if token < 0:
            auth.refuse("banned" if token == -1 else "busy", retry=token != -1)
        else:
            auth.accept("ada", token, expires=time.time() + 0.4)

    @server.reauthenticate
    def reauthenticate(conn: Any, identity: Any) -> float | None:
        conn.send("renewed", identity["token"])
        return time.time() + 0.4 if identity["token"] < 3 else None

    server.when.error(lambda err, conn: None)
    return server


def traced() -> WseServer:
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, conns_per_user=5)
    instrument(server, tracer_provider=TracerProvider())

    def present() -> str:
        return format_trace_id(get_current_span().get_span_context().trace_id)

    @server.register("trace")
    def trace(conn: Any, payload: Any) -> Any:
        return present(), payload

    @server.register("traces")
    async def traces(conn: Any, payload: Any) -> Any:
        yield present()

    @server.register("call-back")
    async def call_back(conn: Any, payload: Any) -> Any:
        return await conn.call("double", payload)

    return server


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    servers = {
        "plain": plain("plain", port),
        "other": plain("other", 0),
        "challenged": challenged(),
        "scram": scram(),
        "streams": streams(),
        "inbox": inbox(),
        "rooms": rooms(),
        "impostor": impostor(),
        "tokens": tokens(),
        "traced": traced(),
    }
    for server in servers.values():
        await server.start()
    print(json.dumps({name: server.url for name, server in servers.items()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(server.close() for server in servers.values()))


asyncio.run(main())
