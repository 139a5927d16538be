"""What a client claims when it comes back, and what the server knows of the session (WIRE.md section 7, `resume`)."""

from __future__ import annotations

import re
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NamedTuple

from wse.core.session.ledger import is_count
from wse.types import ClientId

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession
    from wse.core.ports.scheduling import Timer


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
    UNREACHABLE = "unreachable"


class Claim(NamedTuple):
    """A session that a client wants to go on with.

    Attributes:
        id: The session.
        key: Its secret; empty if the client has come to another node, which has sent the `proof`.
        got: How many messages of the server the client has handled.
        sent: The first and the last of its own messages that it keeps.
        holder: The node that has had the session last, as far as the client knows; empty without a cluster.
        proof: What shows that another node knows the key.
    """

    id: str
    key: str
    got: int
    sent: tuple[int, int]
    holder: str = ""
    proof: str = ""

    def fits(self, key: str) -> bool:
        """Whether it is made with that key."""
        if self.proof:
            return bool(key) and is_same(proof_of(key), self.proof)
        return is_same(key, self.key)


class Refusal(NamedTuple):
    """Why a claim is not met.

    Attributes:
        why: What the client is told.
        got: How many of its messages had come, if that is known and its own affair.
        close: The close with which the application has ended the session; the client gets the same.
        to: The node that has the session instead.
    """

    why: str
    got: int | None = None
    close: tuple[int, str] | None = None
    to: str = ""


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
        holding: The time for which they hold the window open.
        is_overdue: Whether the window has ended meanwhile.
        why: Why the session is being ended, if not by the application.
        to: The node to which it is being handed over.
        is_moved: Whether it has come from another node.
        returns: How often its client has come back to this node.
    """

    __slots__ = (
        "claim",
        "claimants",
        "goes_on",
        "holding",
        "holds",
        "is_called_back",
        "is_moved",
        "is_overdue",
        "key",
        "lost",
        "problem",
        "returns",
        "since",
        "to",
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
        self.holding: Timer | None = None
        self.is_overdue = False
        self.why: Why | None = None
        self.to = ""
        self.is_moved = False
        self.returns = 0


class Tombstone(NamedTuple):
    """What is known of a session that has ended."""

    key: str
    cid: ClientId
    why: Why
    got: int
    close: tuple[int, str] | None
    to: str
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
    conn_id, _, holder = id_.partition(".")
    return Claim(conn_id, key, got, (first, last), holder if is_name(conn_id) and is_name(holder) else ""), None


is_name = re.compile("[0-9a-z]{1,32}").fullmatch
"""Whether a text of a client may be the name of a connection or of a node."""


def proof_of(key: str) -> str:
    """What shows that a node knows the key of a session, and does not tell it."""
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def is_same(key: str, other: str) -> bool:
    """Whether two keys are the same, in a time that says nothing about them."""
    return bool(key) and compare_digest(key.encode(), other.encode("utf-8", "surrogatepass"))
