"""What the chat server keeps, in an SQLite file: users and messages outlive it."""

import getpass
import json
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from wse.auth import ScramKeys

# For the demo only. A real server has no passwords: it stores what ScramKeys.from_password makes of them.
PASSWORDS = {"ada": "lovelace", "grace": "hopper"}

USERS = 1000
HISTORY = 100

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (name TEXT PRIMARY KEY, keys TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS message (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    user TEXT NOT NULL,
    device TEXT NOT NULL,
    addressee TEXT,  -- NULL: everybody
    text TEXT NOT NULL
) STRICT;
"""


class Store:
    """Users and messages.

    It is used in the event loop: every statement here takes far less than a millisecond. A database across the network
    needs an asynchronous driver or a thread, as in examples/sqlite_auth.py.
    """

    def __init__(self, file: Path | str) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        # A message that has been sent on survives the end of the server, however sudden; not that of the machine.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(SCHEMA)
        for name in PASSWORDS:
            if not self._keys(name):
                self.add_user(name, demo_keys(name))

    def close(self) -> None:
        self._db.close()

    # Users.

    async def get(self, username: str) -> ScramKeys | None:
        """What ScramServer asks for."""
        row = self._keys(username)
        return ScramKeys.from_dict(json.loads(row[0])) if row else None

    def _keys(self, name: str) -> Any:
        return self._db.execute("SELECT keys FROM user WHERE name = ?", (name,)).fetchone()

    def add_user(self, name: str, keys: ScramKeys) -> bool:
        """Whether the name was free."""
        values = (name, json.dumps(keys.to_dict()))
        return self._db.execute("INSERT OR IGNORE INTO user VALUES (?, ?)", values).rowcount == 1

    def is_full(self) -> bool:
        """Anybody may sign up, so there must be an end to it."""
        count: int = self._db.execute("SELECT count(*) FROM user").fetchone()[0]
        return count >= USERS

    def secret(self) -> bytes:
        """Random bytes, the same after every restart."""
        self._db.execute("INSERT OR IGNORE INTO setting VALUES ('secret', ?)", (secrets.token_bytes(32),))
        value: bytes = self._db.execute("SELECT value FROM setting WHERE name = 'secret'").fetchone()[0]
        return value

    # Messages.

    def add_message(self, user: str, device: str, text: str, to: str | None = None) -> dict[str, Any]:
        """Keep a message, and return it as clients get it."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        cursor = self._db.execute(
            "INSERT INTO message (at, user, device, addressee, text) VALUES (?, ?, ?, ?, ?)",
            (at, user, device, to, text),
        )
        return as_message((cursor.lastrowid, at, user, device, to, text))

    def history(self, user: str) -> list[dict[str, Any]]:
        """The last messages that are for a user's eyes."""
        rows = self._db.execute(
            "SELECT * FROM message WHERE addressee IS NULL OR ? IN (addressee, user) ORDER BY id DESC LIMIT ?",
            (user, HISTORY),
        ).fetchall()
        return [as_message(row) for row in reversed(rows)]

    def texts(self) -> list[tuple[str, str]]:
        """User and text of every message to everybody."""
        return self._db.execute("SELECT user, text FROM message WHERE addressee IS NULL").fetchall()


def as_message(row: tuple[Any, ...]) -> dict[str, Any]:
    id_, at, user, device, to, text = row
    message = {"id": id_, "at": at, "from": f"{user}/{device}", "text": text}
    return message if to is None else {**message, "to": to}


@cache
def demo_keys(name: str) -> ScramKeys:
    return ScramKeys.from_password(PASSWORDS[name])


def keys_of_sign_up(data: Mapping[str, Any], iterations: int) -> ScramKeys:
    """The keys that a stranger has made of a password.

    Raises:
        KeyError, TypeError, ValueError: They are none. Nobody may choose another number of iterations: it is what
            slows down those who try passwords on stolen keys, and unknown users are asked for the same.
    """
    keys = ScramKeys.from_dict(data)
    if (
        len(keys.salt) != 16
        or len(keys.stored_key) != 32
        or len(keys.server_key) != 32
        or keys.iterations != iterations
    ):
        raise ValueError("keys of the wrong size")
    return keys


def default_file() -> Path:
    """Where the demo keeps its data: the same file each time, in a temporary directory that is the user's own.

    Raises:
        PermissionError: The directory is somebody else's.
    """
    directory = Path(tempfile.gettempdir(), f"wse-chat-{getpass.getuser()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and directory.lstat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user; choose a file with --database")
    return directory / "chat.sqlite3"
