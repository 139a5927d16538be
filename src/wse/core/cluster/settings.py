"""The times and bounds of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """The times and bounds of a cluster; the same for all its nodes.

    Args:
        lease_ttl: Seconds after which a node that does not renew its lease is dead. Other nodes begin to remove its
            devices at most `renew_interval` seconds later. On NATS, whose leases end at whole seconds, this takes one
            second more.
        renew_interval: Seconds between two renewals of the lease, and between two searches for dead nodes.
        canary_interval: Seconds between two messages that a node sends itself through the broker.
        canary_misses: The number of these messages that may be lost before the node reports that the broker does not
            deliver.
        query_timeout: Seconds that other nodes have to answer a query, such as for the members of a room.
        backlog: The number of messages to other nodes that are kept while the broker cannot be reached.
        backlog_bytes: The number of bytes that the backlog may hold.
        close_timeout: The longest time, in seconds, that a node takes to leave the cluster when it closes. If the
            broker does not respond, cutting the connection takes up to one second more.
        wait_for_broker: Seconds for which `start` tries to reach the broker; with 0 it raises at once, and with
            `math.inf` it tries for ever.

    Raises:
        ValueError: A time or bound is out of its range.
    """

    lease_ttl: float = 5.0
    renew_interval: float = 1.0
    canary_interval: float = 1.0
    canary_misses: int = 3
    query_timeout: float = 1.0
    backlog: int = 10_000
    backlog_bytes: int = 16 * 1024 * 1024
    close_timeout: float = 5.0
    wait_for_broker: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.renew_interval < self.lease_ttl:
            raise ValueError(
                f"renew_interval must be above 0 and below lease_ttl, {self.lease_ttl} s, not {self.renew_interval} s"
            )
        if min(self.canary_interval, self.query_timeout, self.close_timeout) <= 0 or self.canary_misses < 1:
            raise ValueError("the times of a cluster must be above 0 seconds, and canary_misses at least 1")
        if not self.wait_for_broker >= 0:
            raise ValueError(f"wait_for_broker must be 0 (no waiting) or more seconds, not {self.wait_for_broker}")
        if min(self.backlog, self.backlog_bytes) < 0:
            raise ValueError("backlog and backlog_bytes must not be negative")
