"""The settings of the heartbeat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The times after which a silent peer is pinged (RFC 6455, 5.5.2), and after which its connection counts as lost.

    Args:
        interval: Seconds of silence after which a peer is pinged; 0 means never. The default of 20 is below the minute
            after which many proxies and home routers forget a connection.
        timeout: Seconds without any byte from the peer after that ping; then the connection counts as lost.

    Raises:
        ValueError: A time is negative, or `timeout` is 0.
    """

    interval: float = 20.0
    timeout: float = 20.0

    def __post_init__(self) -> None:
        if self.interval < 0 or self.timeout <= 0:
            raise ValueError("interval must not be negative, and timeout must be more than 0 seconds")
