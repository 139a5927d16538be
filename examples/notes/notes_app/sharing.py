"""Sharing: others may read a note."""

import sqlite3

from wse import Depends, Router, WseConnection, WseError

from .database import Db
from .notes import NoteRef, added, note_of, owner_only, removed, tell

# The guard stands at the router, and so before every procedure of it.
router = Router(prefix="sharing.", tags=["sharing"], dependencies=[Depends(owner_only)])


class Share(NoteRef):
    """A note, and the user who may read it."""

    user: str


@router.register(errors=["notes.not-yours", "sharing.no-such-user"])
def share(conn: WseConnection, share: Share, db: Db) -> None:
    """Let a user read a note. The devices of that user hear of it."""
    try:
        db.execute("INSERT OR IGNORE INTO reader VALUES (?, ?)", (share.note, share.user))
        db.commit()
    except sqlite3.IntegrityError:
        raise WseError("sharing.no-such-user", {"user": share.user}) from None
    row = db.execute("SELECT id, owner, text, at FROM note WHERE id = ?", (share.note,)).fetchone()
    tell(conn, [share.user], added, note_of(row))


@router.register(errors=["notes.not-yours"])
def unshare(conn: WseConnection, share: Share, db: Db) -> None:
    """Take a note from the list of a user."""
    if db.execute("DELETE FROM reader WHERE note = ? AND user = ?", (share.note, share.user)).rowcount:
        db.commit()
        tell(conn, [share.user], removed, share.note)
