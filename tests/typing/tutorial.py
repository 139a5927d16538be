"""The last server and client of the tutorial as their author would annotate them: checked by mypy and pyright, run by
nobody."""

from typing import Any

from wse import Handshake, WseClient, WseConnection, WseError, WseServer

server = WseServer(port=4200, conns_per_user=2)


@server.identify
def identify(auth: Handshake) -> None:
    name = auth.identity
    if name in ("ada", "grace"):
        auth.accept(name, {"hello": name})
    else:
        auth.refuse()


@server.channel.on("chat")
def chat(conn: WseConnection, text: str) -> None:
    server.broadcast("chat", {"from": conn.cid, "text": text})


@server.when.connected
def connected(conn: WseConnection) -> None:
    conn.client.send("devices", len(conn.client.conns))


@server.register("who-is-online")
def who_is_online(conn: WseConnection, payload: None) -> list[str]:
    return sorted(server.clients)


@server.register("my-batteries")
async def my_batteries(conn: WseConnection, payload: None) -> list[Any]:
    return await conn.client.call("battery")


async def main() -> None:
    async with WseClient("ws://127.0.0.1:4200", identity="ada") as laptop:
        laptop.register("battery", lambda payload: {"laptop": "80 %"})
        print("online:", await laptop.call("who-is-online"))
        try:
            await laptop.call("make-coffee")
        except WseError as error:
            print("no coffee:", error)


server.run()
