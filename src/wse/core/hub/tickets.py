"""What a client claims when it comes back, and what the server knows of the session (WIRE.md section 7, `resume`)."""

from __future__ import annotations

from enum import StrEnum
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NamedTuple

from wse.core.session.ledger import is_count
from wse.types import ClientId

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession


class Why(StrEnum):
    """Why a session cannot go on, as the client is told."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    OVERFLOW = "overflow"
    MISMATCH = "mismatch"
    GAP = "gap"
    USER = "user"
    PROTOCOL = "protocol"
    STUCK = "stuck"
    ENDED = "ended"


class Claim(NamedTuple):
    """A session that a client wants to go on with.

    Attributes:
        id: The session.
        key: Its secret.
        got: How many messages of the server the client has handled.
        sent: The first and the last of its own messages that it keeps.
    """

    id: str
    key: str
    got: int
    sent: tuple[int, int]


class Ticket:
    """What a client has asked for, and what it needs to come back.

    Attributes:
        window: Seconds for which the session is kept.
        claim: The session that it wants to go on with.
        problem: Why the claim cannot be met, whatever it claims.
        holds: The session that it claims, once the key has been found to be right.
        goes_on: The session that goes on; the answer says so.
        lost: What the answer says about the session that does not go on.
        key: The secret of the session; empty before the welcome.
        since: When the session became detached.
        until: When the session ends, while it is detached.
        is_called_back: Whether this side has closed its last socket, for the client to come back.
        claimants: Clients that know the key and are being authenticated.
        is_overdue: Whether the window has ended meanwhile.
        why: Why the session is being ended, if not by the application.
    """

    __slots__ = (
        "claim",
        "claimants",
        "goes_on",
        "holds",
        "is_called_back",
        "is_overdue",
        "key",
        "lost",
        "problem",
        "since",
        "until",
        "why",
        "window",
    )

    def __init__(self, window: float, claim: Claim | None, problem: Why | None) -> None:
        self.window = window
        self.claim = claim
        self.problem = problem
        self.holds: ServerSession | None = None
        self.goes_on: ServerSession | None = None
        self.lost: dict[str, Any] | None = None
        self.key = ""
        self.since = 0.0
        self.until = 0.0
        self.is_called_back = False
        self.claimants = 0
        self.is_overdue = False
        self.why: Why | None = None


class Tombstone(NamedTuple):
    """What is known of a session that has ended."""

    key: str
    cid: ClientId
    why: Why
    got: int
    close: tuple[int, str] | None
    until: float


def read_claim(params: dict[str, Any]) -> tuple[Claim | None, Why | None]:
    """What a client claims, or why that makes no sense."""
    if "id" not in params:
        return None, None
    id_, key, got, sent = (params.get(name) for name in ("id", "key", "got", "sent"))
    if not isinstance(id_, str) or not isinstance(key, str):
        return None, Why.UNKNOWN
    if (
        not isinstance(got, int)
        or not is_count(got)
        or not isinstance(sent, list)
        or len(sent) != 2
        or not all(map(is_count, sent))
    ):
        return None, Why.MISMATCH
    first, last = sent
    if first > last + 1 or not first:
        return None, Why.MISMATCH
    return Claim(id_, key, got, (first, last)), None


def is_same(key: str, other: str) -> bool:
    """Whether two keys are the same, in a time that says nothing about them."""
    return bool(key) and compare_digest(key.encode(), other.encode("utf-8", "surrogatepass"))
