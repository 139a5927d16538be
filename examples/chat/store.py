"""The chat server's database, an SQLite file: users, their sessions and messages outlive the server."""

import getpass
import hashlib
import json
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from wse.auth import ScramKeys

# For the demo only. A real server has no passwords: it stores the keys that ScramKeys.from_password makes of them.
PASSWORDS = {"ada": "lovelace", "grace": "hopper"}

USERS = 1000
HISTORY = 100
SESSION = timedelta(days=7)  # since it was last used

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
CREATE TABLE IF NOT EXISTS sent (  -- the client's own number of a message, so that one sent again is kept once
    user TEXT NOT NULL,
    ref TEXT NOT NULL,
    message INTEGER NOT NULL REFERENCES message,
    PRIMARY KEY (user, ref)
) STRICT;
CREATE TABLE IF NOT EXISTS session (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,  -- of the key, so that a stolen database logs nobody in
    user TEXT NOT NULL,
    used TEXT NOT NULL
) STRICT;
"""


class Store:
    """Users, sessions and messages.

    It is used in the event loop: every statement here takes far less than a millisecond. A database across the network
    needs an asynchronous driver or a thread, as in examples/sqlite_auth.py.
    """

    def __init__(self, file: Path | str) -> None:
        self.file = file
        self._db = sqlite3.connect(file, isolation_level=None)
        # A message that clients have seen survives a sudden end of the server, though not one of the machine.
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
        """The keys of a user, for ScramServer."""
        row = self._keys(username)
        return ScramKeys.from_dict(json.loads(row[0])) if row else None

    def _keys(self, name: str) -> Any:
        return self._db.execute("SELECT keys FROM user WHERE name = ?", (name,)).fetchone()

    def add_user(self, name: str, keys: ScramKeys) -> bool:
        """Add a user; returns whether the name was free."""
        values = (name, json.dumps(keys.to_dict()))
        return self._db.execute("INSERT OR IGNORE INTO user VALUES (?, ?)", values).rowcount == 1

    def is_full(self) -> bool:
        """Whether no more users fit: anybody may sign up, so there must be a limit."""
        count: int = self._db.execute("SELECT count(*) FROM user").fetchone()[0]
        return count >= USERS

    def secret(self) -> bytes:
        """Random bytes, the same after every restart."""
        self._db.execute("INSERT OR IGNORE INTO setting VALUES ('secret', ?)", (secrets.token_bytes(32),))
        value: bytes = self._db.execute("SELECT value FROM setting WHERE name = 'secret'").fetchone()[0]
        return value

    # Sessions: a device that has logged in with a password comes back with a key.

    def open_session(self, user: str) -> tuple[str, int]:
        """Make a session; returns its key, which only the device keeps, and its number."""
        self._db.execute("DELETE FROM session WHERE used < ?", (_days_ago(SESSION),))
        key = secrets.token_urlsafe(32)
        cursor = self._db.execute(
            "INSERT INTO session (hash, user, used) VALUES (?, ?, ?)", (_hash(key), user, _days_ago(timedelta()))
        )
        assert cursor.lastrowid is not None  # it is there after an INSERT
        return key, cursor.lastrowid

    def session(self, key: str) -> tuple[str, int] | None:
        """The user and the number of the session with that key, if it has neither been ended nor expired."""
        row: tuple[str, int] | None = self._db.execute(
            "UPDATE session SET used = ? WHERE hash = ? AND used >= ? RETURNING user, id",
            (_days_ago(timedelta()), _hash(key), _days_ago(SESSION)),
        ).fetchone()
        return row

    def end_session(self, number: int) -> None:
        """Make its key worthless."""
        self._db.execute("DELETE FROM session WHERE id = ?", (number,))

    # Messages.

    def sent(self, user: str, ref: str) -> dict[str, Any] | None:
        """The message that a user has sent under this number, if there is one."""
        row = self._db.execute(
            "SELECT message.* FROM sent JOIN message ON id = message WHERE sent.user = ? AND ref = ?", (user, ref)
        ).fetchone()
        return as_message(row, ref) if row else None

    def add_message(
        self, user: str, device: str, text: str, to: str | None = None, ref: str | None = None
    ) -> dict[str, Any]:
        """Keep a message, and return it in the form that clients get."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        cursor = self._db.execute(
            "INSERT INTO message (at, user, device, addressee, text) VALUES (?, ?, ?, ?, ?)",
            (at, user, device, to, text),
        )
        if ref is not None:
            self._db.execute("INSERT INTO sent VALUES (?, ?, ?)", (user, ref, cursor.lastrowid))
        return as_message((cursor.lastrowid, at, user, device, to, text), ref)

    def private(self, user: str) -> list[dict[str, Any]]:
        """The last messages to one user that this user has got or sent."""
        rows = self._db.execute(
            "SELECT message.*, ref FROM message LEFT JOIN sent ON message = id"
            " WHERE addressee NOT NULL AND ? IN (addressee, message.user) ORDER BY id DESC LIMIT ?",
            (user, HISTORY),
        ).fetchall()
        return [as_message(row, ref) for *row, ref in reversed(rows)]

    def texts(self) -> list[tuple[str, str]]:
        """User and text of every message to everybody."""
        return self._db.execute("SELECT user, text FROM message WHERE addressee IS NULL").fetchall()


def as_message(row: Sequence[Any], ref: str | None) -> dict[str, Any]:
    id_, at, user, device, to, text = row
    message = {"id": id_, "at": at, "from": f"{user}/{device}", "text": text, "to": to, "ref": ref}
    return {name: value for name, value in message.items() if value is not None}


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _days_ago(time: timedelta) -> str:
    return (datetime.now(UTC) - time).isoformat(timespec="seconds")


@cache
def demo_keys(name: str) -> ScramKeys:
    return ScramKeys.from_password(PASSWORDS[name])


def keys_of_sign_up(data: Mapping[str, Any], iterations: int) -> ScramKeys:
    """The keys that a new user's browser has made of a password.

    Raises:
        KeyError, TypeError, ValueError: The data is not such keys. Another number of iterations is not allowed: it
            slows down attackers who try passwords on stolen keys, and unknown users are asked for the same number.
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
    """The demo's file: the same each time, in a temporary directory of the user's own.

    Raises:
        PermissionError: The directory belongs to another user.
    """
    directory = Path(tempfile.gettempdir(), f"wse-chat-{getpass.getuser()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and directory.lstat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user; choose a file with --database")
    return directory / "chat.sqlite3"
