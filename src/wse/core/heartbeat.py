"""The settings of the heartbeat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """When a silent peer is pinged (RFC 6455, 5.5.2), and when its connection counts as lost.

    Args:
        interval: Seconds of silence after which a peer is pinged; 0 never pings. 20: below the minute after which many
            proxies and home routers forget a connection.
        timeout: Seconds after that ping without any byte from the peer, after which the connection counts as lost.

    Raises:
        ValueError: A time is negative, or `timeout` is 0.
    """

    interval: float = 20.0
    timeout: float = 20.0

    def __post_init__(self) -> None:
        if self.interval < 0 or self.timeout <= 0:
            raise ValueError("interval and timeout are in seconds, and only the interval may be 0")
