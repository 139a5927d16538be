"""The counters of an endpoint: a few integers on the message path, and counts of rarer events."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from wse.errors import CloseReason, ErrorCode, WseError

_REASONS = frozenset(str(reason) for reason in CloseReason)
_CODES = frozenset(str(code) for code in ErrorCode)
_CLOSE_CODES = frozenset((*range(1000, 1016), 4000))
"""Those of RFC 6455 and of WSE; others are an application's own, and a peer can choose among a thousand."""

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of times."""


class Histogram:
    """Counts values in buckets.

    Attributes:
        bounds: The upper bound of each bucket but the last, which has none.
        counts: The values in each bucket.
        total: The sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counters:
    """Counts since the endpoint was made.

    The integers are counted up in place on the message path; `closes` by `count_close`. No key of the counters comes
    from a peer, so none of them grows without bound.
    """

    __slots__ = (
        "answered",
        "answers",
        "bytes_in",
        "bytes_out",
        "calls_in",
        "calls_out",
        "calls_running",
        "close_codes",
        "closes",
        "dropped",
        "ends",
        "errors",
        "inbox_lost",
        "kept",
        "limits",
        "messages_in",
        "messages_out",
        "opened",
        "unanswered",
        "undelivered",
        "unsuccessful",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.messages_in = 0
        self.messages_out = 0
        self.calls_in = 0
        self.calls_out = 0
        self.calls_running = 0  # of async procedures
        self.answered = 0  # calls of this side, with a result
        self.unsuccessful: Counter[str] = Counter()  # calls of peers, by outcome
        self.unanswered: Counter[str] = Counter()  # calls of this side without a result, by outcome
        self.bytes_in = 0
        self.bytes_out = 0
        self.errors: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()
        self.close_codes: Counter[int] = Counter()
        self.ends: Counter[tuple[str, str]] = Counter()  # by code and reason
        self.dropped: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()  # messages that were kept here, by what for: a user, or a room
        self.undelivered: Counter[str] = Counter()  # messages that nobody has got, by how they were sent
        self.inbox_lost = 0  # kept messages that were gone before a device came

    def count_close(self, code: int, reason: str) -> None:
        """Count a connection that has ended."""
        self.close_codes[code] += 1
        reason = str(reason) if reason in _REASONS else "other"
        self.closes[reason] += 1
        self.ends[str(code) if code in _CLOSE_CODES else "other", reason] += 1

    @property
    def successful(self) -> int:
        """Calls of peers that were answered with a result."""
        return self.calls_in - self.calls_running - self.unsuccessful.total()

    def count_answer(self, error: BaseException | None) -> None:
        """Count an error that a procedure has raised on purpose. Its code may be a peer's, from a nested call."""
        code = str(error.code) if isinstance(error, WseError) else ""
        self.answers[code if code in _CODES else "other"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The present state of a server, and its counters since it was created: the result of `WseServer.stats`.

    Attributes:
        uptime: Seconds since it was started; 0 before.
        connections: Connections whose socket is open.
        unauthenticated: Those of them that are not authenticated yet.
        identities: Users with a connection.
        queued_bytes: Bytes that wait for receivers to take them.
        queued_bytes_max: The largest number of bytes that wait for one receiver.
        running_handlers: `async` handlers that have not ended.
        pending_calls: Calls to clients that wait for their answer.
        detached: Sessions whose client is away and may return.
        retained: Bytes that all sessions keep for clients that may have to be sent them again.
        opened: Connections opened so far.
        messages_in: Messages received, without calls and answers.
        messages_out: Messages sent, one for each receiver, without calls and answers.
        calls_in: Calls received.
        calls_out: Calls made to clients.
        bytes_in: Bytes of all messages, calls and answers received, without the framing of WebSocket.
        bytes_out: Bytes of all messages, calls and answers sent, before compression and without the framing.
        errors: Failures that were reported on `error`, by code. A `WseError` that a procedure raises is its answer, and
            does not count here.
        answers: Errors that procedures raised on purpose, as a `WseError`, by code; codes that are not WSE's own are
            `other`.
        closes: Connections that have ended, by reason; reasons that are not WSE's own are `other`.
        close_codes: Connections that have ended, by close code; 1006 is a connection that was lost.
        dropped: Messages not delivered to slow receivers, by their `Overflow` policy; `too-large` counts messages that
            were larger than the receiver accepts.
        limits: The number of times that each of `Limits` was exceeded.
        refused_origins: Connections refused for their origin.
    """

    uptime: float
    connections: int
    unauthenticated: int
    identities: int
    queued_bytes: int
    queued_bytes_max: int
    running_handlers: int
    pending_calls: int
    opened: int
    messages_in: int
    messages_out: int
    calls_in: int
    calls_out: int
    bytes_in: int
    bytes_out: int
    errors: dict[str, int] = field(default_factory=dict)
    closes: dict[str, int] = field(default_factory=dict)
    close_codes: dict[int, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    refused_origins: int = 0
    detached: int = 0
    retained: int = 0
