"""The settings of sessions that outlive their connection."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The limits for sessions that are kept without a connection.

    A client that asks for it keeps its session over a lost connection. Messages and calls of both sides that were under
    way then arrive once, in order, when the client is back. If too much must be kept, the session ends, and the client
    learns this.

    Args:
        window: Seconds for which a session is kept without a connection. The default of 60 is enough for a lift, a
            tunnel or a router that restarts. A client may ask for less. The user counts as connected during that time,
            and `left` fires after it.
        bytes: Bytes of messages that are kept for one session: those that its peer has not confirmed yet, and those
            that wait for its return. If there are more while it is connected, the session cannot be resumed, but stays
            connected. If there are more while it is disconnected, the session ends.
        messages: The limit for the same messages by number.
        detached: Sessions without a connection, at a server. If there are more, the session that has been disconnected
            longest ends.
        retained: Bytes that all sessions of a server keep together. A message to many counts once for all of them, and
            64 bytes for each.
        drain: Seconds for which a node of a cluster that closes waits after it has closed its connections, so that
            clients can take their sessions along to other nodes. It waits no longer than it has sessions.

    Raises:
        ValueError: A limit is out of its range.
    """

    window: float = 60
    bytes: int = 256 * 1024
    messages: int = 1000
    detached: int = 10_000
    retained: int = 256 * 1024 * 1024
    drain: float = 10

    def __post_init__(self) -> None:
        for name in ("window", "bytes", "messages", "detached", "retained"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 <= self.drain < inf:
            raise ValueError(f"drain is in seconds, or 0 for none, not {self.drain}")
