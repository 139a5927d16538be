"""The database, an SQLite file. HTTP routes and WSE handlers get their connection to it by the same dependency."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

from fastapi import Depends

FILE = os.environ.get("NOTES_DATABASE", "notes.sqlite3")

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (name TEXT PRIMARY KEY, salt BLOB NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS token (
    hash BLOB PRIMARY KEY,  -- of the token, so that a stolen database logs nobody in
    user TEXT NOT NULL REFERENCES user,
    expires REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS note (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES user,
    text TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS reader (
    note INTEGER NOT NULL REFERENCES note ON DELETE CASCADE,
    user TEXT NOT NULL REFERENCES user,
    PRIMARY KEY (note, user)
) STRICT;
"""


def create_tables() -> None:
    with closing(open_database()) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)


def open_database() -> sqlite3.Connection:
    # FastAPI runs a plain dependency and its route in different threads, though never at the same time.
    db = sqlite3.connect(FILE, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA foreign_keys = ON")
    return db


def get_db() -> Iterator[sqlite3.Connection]:
    """A connection for one call. What it has changed is committed at the end, and rolled back after an exception.

    Handlers use it in the event loop: every statement here takes far less than a millisecond. A database across the
    network needs an asynchronous driver, or handlers with `thread=True`.
    """
    with closing(open_database()) as db:
        yield db
        db.commit()


Db = Annotated[sqlite3.Connection, Depends(get_db)]
"""A parameter of a route, a handler or another dependency."""
