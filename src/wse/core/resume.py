"""The settings of sessions that outlive their connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How long a session is kept without a connection, and how much of it.

    A client that asks for it keeps its session over a lost connection: messages and calls of both sides that were under
    way arrive once, in order, when it is back. What cannot be kept ends the session, and the client is told.

    Args:
        window: Seconds for which a session is kept without a connection. 60: a lift, a tunnel, a router that restarts.
            A client may ask for less. The user counts as connected meanwhile, and `left` fires after that time.
        bytes: Bytes of messages that are kept for one session until its peer has confirmed them, and of those that
            wait for its return. 256 KiB. More while connected costs the session its return, not its connection; more
            while it is away ends it.
        messages: The same as a number of messages.
        detached: Sessions without a connection, at a server. With more, the one that has been away longest ends.
        retained: Bytes that all sessions of a server keep together; a message to many counts once for all of them and
            64 bytes for each.

    Raises:
        ValueError: A bound that is not positive.
    """

    window: float = 60
    bytes: int = 256 * 1024
    messages: int = 1000
    detached: int = 10_000
    retained: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("window", "bytes", "messages", "detached", "retained"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
