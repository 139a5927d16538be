"""The state of a session as plain values, so that it can go on in another process.

What the peer has not confirmed travels as it was encoded, and what waits in the outbox with it. Calls do not: those of
this side have been settled before, and those of the peer are answered by the process in which they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from wse.core.packed import Packed
from wse.core.session.output import EVERYTHING
from wse.core.session.rpc import PendingCalls

if TYPE_CHECKING:
    from wse.core.session.session import Session

Kept = tuple[Any, bool, str | int | None]
"""A message as it was encoded, whether that is text as UTF-8, and its key."""


class Snapshot(msgspec.Struct, array_like=True):
    """The state of a session without a link."""

    got: int
    """How many messages have come."""
    base: int
    """The number of the first message in the ring."""
    ring: list[Kept | None]
    """The messages that the peer has not confirmed; `None` is one that must not be delivered any more."""
    outbox: list[tuple[str | int | None, Kept]]
    """The messages that have no number yet, with their types."""
    stamp: int
    """The stamp of the last call of this side."""
    stuck: tuple[int, int, bool]
    """What is known about messages that break connections; see `Ledger.breakage`."""


def take(session: Session) -> Snapshot:
    """The state of a session that has lost its link, and whose calls have been settled."""
    ledger, outbox, calls = session.ledger, session._outbox, session._calls
    assert ledger is not None  # or the session would have ended with its link
    utf8 = session.protocol.codec.utf8
    return Snapshot(
        ledger.got,
        ledger.base,
        [None if message is None else _kept(message, utf8) for message in ledger.ring],
        [] if outbox is None else [(_plain(type_), _kept(packed, utf8)) for type_, packed in outbox.typed],
        0 if calls is None else calls.last_stamp,
        ledger.breakage,
    )


def restore(session: Session, snapshot: Snapshot) -> None:
    """Put a new session, which has a ledger and no link, into that state."""
    ledger = session.ledger
    assert ledger is not None  # as above
    ledger.restore(
        snapshot.got, snapshot.base, [None if kept is None else Packed(*kept) for kept in snapshot.ring], snapshot.stuck
    )
    for type_, kept in snapshot.outbox:
        session.own_outbox.put(type_, Packed(*kept), EVERYTHING)
    if snapshot.stamp:
        session._calls = PendingCalls(
            session.endpoint.scheduler,
            session.endpoint.timeout,
            snapshot.stamp,
            unanswered=session.endpoint.counters.unanswered,
        )
    ledger.charge()


def _kept(message: Packed | str | bytes, utf8: bool) -> Kept:
    if isinstance(message, Packed):
        return message.data, message.utf8, message.key
    return message, utf8 and isinstance(message, bytes), None


def _plain(type_: Any) -> str | int | None:
    """The type of a message, as far as it can travel; a message of any other type never gives way to others."""
    return type_ if isinstance(type_, str | int) and not isinstance(type_, bool) else None
