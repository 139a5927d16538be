"""Mistakes that a type checker finds."""

from shop_client import Client


async def main(client: Client) -> None:
    await client.call("notes.mised", {})
    await client.call("notes.missed", {"after": "x"})
    await client.call("notes.missed")
    await client.call("notes.load", None)
    await client.call("pay", {"type": "coin"})
    client.send("notes.write", {"text": "a", "color": "green"})
    client.send("note-added", {"id": 1, "text": ""})
    client.channel.on("note-added", lambda note: note["title"])
    client.register("full-name", lambda payload: 5)
    client.register("fullname", lambda payload: "")
    text: str = await client.call("count", 1)
    client.stream("notes.missed", {})
    print(text)
    await client.connect({"nam": "ada"})
    Client("ws://localhost", identity={"name": "ada"}, reconect=True)
    print((await client.connect({"name": "ada"}))["name"])
