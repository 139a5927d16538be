"""API keys in a database: only their hashes are stored, and the query runs in a thread.

Run:    python examples/sqlite_auth.py
Shows:  an async identify handler with the standard library's sqlite3; a key can be revoked.

A key of 256 random bits cannot be guessed, so one round of SHA-256 is enough for the stored hash. Passwords are short
and need more protection: see scram_auth.py.
"""

import asyncio
import hashlib
import secrets
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from wse import Handshake, WseClient, WseError, WseServer


class ApiKeys:
    """The keys in an SQLite file. Every method opens its own connection, so any thread may call it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with closing(sqlite3.connect(file)) as db, db:
            db.execute("CREATE TABLE api_key (hash TEXT PRIMARY KEY, user TEXT NOT NULL)")

    def issue(self, user: str) -> str:
        """Make a key. It is shown only once, here; the database has only its hash."""
        key = secrets.token_urlsafe(32)
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("INSERT INTO api_key VALUES (?, ?)", (hash_key(key), user))
        return key

    def revoke(self, user: str) -> None:
        with closing(sqlite3.connect(self._file)) as db, db:
            db.execute("DELETE FROM api_key WHERE user = ?", (user,))

    def user_of(self, key: str) -> str | None:
        with closing(sqlite3.connect(self._file)) as db:
            row = db.execute("SELECT user FROM api_key WHERE hash = ?", (hash_key(key),)).fetchone()
        return None if row is None else str(row[0])


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def make_server(keys: ApiKeys) -> WseServer:
    server = WseServer(port=0)

    @server.identify
    async def identify(auth: Handshake) -> None:
        if not isinstance(auth.identity, str):
            return auth.refuse()
        # sqlite3 blocks, and a blocked event loop serves no client. So the query runs in a thread.
        user = await asyncio.to_thread(keys.user_of, auth.identity)
        if user is None:
            return auth.refuse()
        return auth.accept(user)

    return server


async def attempt(server: WseServer, what: str, key: str) -> None:
    client = WseClient(server.url, identity=key)
    try:
        await client.connect()
    except WseError as error:
        print(f"{what}:", error.code)
    else:
        print(f"{what}: signed in as", *server.clients)
        await client.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        keys = ApiKeys(Path(folder) / "keys.sqlite3")
        key = keys.issue("ada")
        async with make_server(keys) as server:
            await attempt(server, "ada's key", key)
            await attempt(server, "another key", secrets.token_urlsafe(32))
            keys.revoke("ada")
            await attempt(server, "ada's key after it was revoked", key)


if __name__ == "__main__":
    asyncio.run(main())
