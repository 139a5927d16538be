"""A program with the generated client of support/shop.py, which lies beside it as shop_client.py."""

import asyncio
from collections.abc import Iterator

from shop_client import Client, ErrorCode, Note, User, Welcome

from wse import WseError


async def main(url: str) -> list[object]:
    client = Client(url, identity={"name": "ada"}, meta={"kind": "terminal"}, timeout=20)
    added: asyncio.Queue[Note] = asyncio.Queue()
    client.channel.on("note-added", added.put_nowait)

    @client.register("full-name")
    def full_name(payload: None) -> str:
        return "Ada Lovelace"

    def ticks(last: int) -> Iterator[int]:
        yield from range(last + 1)

    client.register("ticks", ticks)
    async with client:
        welcome: Welcome = await client.wait_ready()
        client.send("notes.write", {"text": "Hello"})
        heard: list[object] = [welcome["user"], (await added.get())["text"]]
        notes: list[Note] = await client.call("notes.missed", {"after": 41})
        heard.append(notes)
        closed: ErrorCode = "notes.closed"
        try:
            await client.call("notes.missed", {"after": 99})
        except WseError as error:
            heard.append(error.code if error.code == closed else error)
        heard.append([note["id"] async for note in client.stream("notes.tail")])
        total: float = await client.call("notes.load", upload=[{"x": 1}, {"x": 3, "y": 2}])
        heard.append(total)
        heard.append(await client.call("pay", {"type": "card", "number": "42"}))
        user: User = await client.call("whoami", {"user": {"name": "Ada"}})
        heard.append(user["name"])
        heard.append(await client.call("introduce"))
        heard.append(await client.call("count", 2))
    return heard
