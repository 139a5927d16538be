"""What one peer may ask of us."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what a peer may send. Breaking one closes that connection and is reported on `error`.

    Args:
        message_size: Bytes of one message, whatever number of frames carries it. 1 MiB by default: far above
            a chat or an RPC, far below what would hurt. A larger message is closed with 1009 (RFC 6455, 7.4.1).
    """

    message_size: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.message_size < 1:
            raise ValueError(f"message_size must be at least 1 byte, not {self.message_size}")
