"""The times and bounds of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """The times and bounds of a cluster; the same for all its nodes.

    Args:
        lease: Seconds after which a node that does not renew its lease is dead. Others begin to take its devices out
            `renew` seconds after that at the latest; on NATS, whose leases end at whole seconds, one more.
        renew: Seconds between two renewals, and between two looks for dead nodes.
        canary: Seconds between two messages that a node sends itself through the broker.
        deaf_after: How many of these may fail to come back until the node says that the broker is deaf.
        query: Seconds that other nodes have to tell who of theirs is in a room.
        backlog: How many messages to other nodes are kept while the broker cannot be reached.
        backlog_bytes: How many bytes they may have.
        farewell: Seconds that a node takes at most to sign off when it closes; to cut the connection to an engine that
            hangs takes up to one more.
    """

    lease: float = 5.0
    renew: float = 1.0
    canary: float = 1.0
    deaf_after: int = 3
    query: float = 1.0
    backlog: int = 10_000
    backlog_bytes: int = 16 * 1024 * 1024
    farewell: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.renew < self.lease:
            raise ValueError(f"a lease of {self.lease} s must be renewed before it ends, not every {self.renew} s")
        if min(self.canary, self.query, self.farewell) <= 0 or self.deaf_after < 1:
            raise ValueError("the times of a cluster are seconds above 0, and deaf_after is at least 1")
        if min(self.backlog, self.backlog_bytes) < 0:
            raise ValueError("a backlog cannot be less than empty")
