"""Passwords with SCRAM-SHA-256: neither the password nor anything that can be replayed is sent.

Run:    pip install "wse[scram]" && python examples/scram_auth.py
Shows:  the right password, a wrong one and an unknown user; the values that the server stores; and that a server
        without the user's keys cannot impersonate the real one.
"""

import asyncio
import json

from wse import Handshake, WseClient, WseError, WseServer
from wse.auth import Scram, ScramKeys, ScramServer


class Users:
    """The user store: any object with `async get(username)`. This one keeps JSON, as a database would."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}

    def add(self, username: str, password: str) -> None:
        self.rows[username] = json.dumps(ScramKeys.from_password(password).to_dict())

    async def get(self, username: str) -> ScramKeys | None:
        row = self.rows.get(username)
        return None if row is None else ScramKeys.from_dict(json.loads(row))


def make_server(users: Users) -> WseServer:
    server = WseServer(port=0)
    ScramServer(users).attach(server)
    return server


async def attempt(url: str, username: str, password: str) -> None:
    client = WseClient(url, identity=Scram(username, password))
    try:
        await client.connect()
    except WseError as error:
        print(f"  {username} with {password!r}: {error.code}")
    else:
        print(f"  {username} with {password!r}: signed in")
        await client.close()


def make_impostor() -> WseServer:
    """A server that has no keys, and claims that every client has signed in."""
    server = WseServer(port=0)
    real = ScramServer(Users())
    server.use_challenge(real.challenge)

    @server.identify
    def identify(auth: Handshake) -> None:
        auth.accept("ada", {"scram": "v=bm90IHRoZSBzZXJ2ZXIncyBwcm9vZg==", "welcome": "trust me"})

    return server


async def main() -> None:
    users = Users()
    users.add("ada", "lovelace")
    print("what the server stores of a password:", *json.loads(users.rows["ada"]))

    async with make_server(users) as server:
        print("the server:")
        await attempt(server.url, "ada", "lovelace")
        await attempt(server.url, "ada", "byron")
        await attempt(server.url, "nobody", "lovelace")

    async with make_impostor() as impostor:
        print("a server that only claims to know ada:")
        await attempt(impostor.url, "ada", "lovelace")


if __name__ == "__main__":
    asyncio.run(main())
