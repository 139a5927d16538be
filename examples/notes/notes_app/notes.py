"""Notes: to list, add and remove them."""

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from wse import Depends, Event, Router, WseConnection, WseError

from .account import confirm
from .database import Db

router = Router(prefix="notes.", tags=["notes"])


class Note(msgspec.Struct):
    """A note, as its readers see it."""

    id: int
    owner: str
    text: str
    at: datetime


class NewNote(msgspec.Struct):
    text: Annotated[str, Meta(min_length=1, max_length=1000)]


class NoteRef(msgspec.Struct):
    """Names a note."""

    note: int


class Page(msgspec.Struct):
    """A part of the notes, the newest first."""

    before: int | None = None
    """The id of a note: older ones are meant."""
    size: Annotated[int, Meta(ge=1, le=100)] = 50


added = Event("notes.added", Note, tags=["notes"], doc="There is a note that the user may read.")
removed = Event("notes.removed", int, tags=["notes"], doc="A note is gone; its id.")
router.include(added)
router.include(removed)


def owner_only(conn: WseConnection, payload: NoteRef, db: Db) -> None:
    """A guard: the payload names a note of the caller's own."""
    if not db.execute("SELECT 1 FROM note WHERE id = ? AND owner = ?", (payload.note, conn.cid)).fetchone():
        raise WseError("notes.not-yours")


def readers(db: sqlite3.Connection, note: int) -> list[str]:
    """The users with whom a note is shared."""
    return [row["user"] for row in db.execute("SELECT user FROM reader WHERE note = ? ORDER BY user", (note,))]


def note_of(row: sqlite3.Row) -> Note:
    return msgspec.convert(dict(row), Note)


def tell(conn: WseConnection, users: Iterable[Any], event: Event[Any], payload: Any) -> None:
    """Send an event to all devices of some users."""
    for user in users:
        if identity := conn.server.clients.get(user):
            event.send(identity, payload)


@router.register("list")
def list_notes(conn: WseConnection, page: Page, db: Db) -> list[Note]:
    """The notes of the user, and those that others share with the user. The newest come first."""
    rows = db.execute(
        """
        SELECT id, owner, text, at FROM note
        WHERE (owner = :user OR id IN (SELECT note FROM reader WHERE user = :user))
            AND (:before IS NULL OR id < :before)
        ORDER BY id DESC LIMIT :size
        """,
        {"user": conn.cid, "before": page.before, "size": page.size},
    )
    return [note_of(row) for row in rows]


@router.register
def add(conn: WseConnection, new: NewNote, db: Db) -> Note:
    """Add a note. All devices of the user hear of it."""
    at = datetime.now(UTC)
    row = db.execute("INSERT INTO note (owner, text, at) VALUES (?, ?, ?)", (conn.cid, new.text, at.isoformat()))
    assert row.lastrowid is not None
    note = Note(row.lastrowid, conn.cid, new.text, at)
    db.commit()  # before anybody hears of it
    tell(conn, [conn.cid], added, note)
    return note


@router.register(dependencies=[Depends(owner_only)], errors=["notes.not-yours"])
async def remove(conn: WseConnection, ref: NoteRef, db: Db) -> bool:
    """Remove a note, after a question to the user if others read it. Returns whether it is gone."""
    others = readers(db, ref.note)
    if others and not await confirm(conn, f"{', '.join(others)} can read this note. Remove it?"):
        return False
    db.execute("DELETE FROM note WHERE id = ?", (ref.note,))
    db.commit()
    tell(conn, [conn.cid, *others], removed, ref.note)
    return True
