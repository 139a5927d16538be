"""Adds a note from a terminal, with the generated client: it needs none of the server's code.

Run:    python examples/notes/add.py ada "Lunch?"
"""

import argparse
import asyncio
import getpass
import json
import platform
from urllib.request import Request, urlopen

from notes_client import Client, Device


def log_in(url: str, name: str, password: str) -> str:
    """Get a token."""
    body = json.dumps({"name": name, "password": password}).encode()
    with urlopen(Request(f"{url}/login", body, {"Content-Type": "application/json"})) as answer:
        token: str = json.load(answer)["token"]
    return token


async def main(url: str, token: str, text: str) -> None:
    client = Client(url.replace("http", "ws", 1) + "/ws", identity={"token": token})

    @client.register("device")
    def device(payload: None) -> Device:
        return {"kind": "terminal", "name": platform.node()}

    async with client:
        note = await client.call("notes.add", {"text": text})
        print(f"note {note['id']} of {note['owner']}: {note['text']}")
        for each in await client.call("account.devices"):
            print(f"seen by: {each['kind']} {each['name']}")
        await client.call("account.log_out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("text")
    parser.add_argument("--password", help="asks for it if it is not given")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    password = arguments.password or getpass.getpass()
    asyncio.run(main(arguments.url, log_in(arguments.url, arguments.name, password), arguments.text))
