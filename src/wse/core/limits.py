"""Bounds on what one peer may ask of this side, and the overflow policies."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wse.core.ports.scheduling import Scheduler


class Overflow(StrEnum):
    """The policy for a message to a receiver whose queue is full (`Limits.send_buffer`).

    Without a choice for its type a message closes the connection, so nothing is ever lost in silence.
    """

    CLOSE = "close"
    """Close that connection with 1013 and `wse.slow-receiver`."""

    DROP_NEWEST = "drop-newest"
    """Drop the message."""

    DROP_OLDEST = "drop-oldest"
    """Drop waiting messages of this type, the oldest first, until the new one fits."""

    LATEST = "latest"
    """Keep only the newest of this type, or of each `key` of it. This applies as soon as one waits, not only when the
    queue is full. A message with a key takes the place of the older one; one without goes to the end of the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what one peer may ask of this side; `None` for no bound.

    A peer that exceeds a limit is told which one: its call is answered with `wse.limit-exceeded` and the limit's name,
    or its connection is closed with a reason of its own (`CloseReason`). The excess is reported on `error`, once for
    each connection and limit, and counted every time (`WseServer.stats`).

    Args:
        message_size: Bytes of one message, in however many frames, before and after inflation. 1 MiB:
            far above a chat or a call, far below what would hurt. Closes with 1009 (RFC 6455, 7.4.1).
        frame_size: Bytes of one frame, on the built-in listener and client; `None` for `message_size`, since a frame
            can be as large as a message. Closes with 1009.
        handshake_size: Bytes of a message before the welcome, with identity and meta. 64 KiB is room for any token, and
            more than strangers need. Closes with 1009.
        nesting: How deep arrays and objects may be nested. 100 is more than any hand-written message, and recursive
            code of applications survives it. Closes with 1008.
        connections: Connections of a server. No bound by default, because only the operator knows the memory and the
            file descriptors. Closes with 1013, so that reconnecting clients come again.
        connections_per_address: Connections from one address; for IPv6 from one network of 64 bits, which is the
            size of a subscriber's. No bound by default: behind a proxy or a company's network thousands share one; with
            `trusted_proxies` in place, some 100 are sensible. Closes with 1013.
        unauthenticated: Connections that are not authenticated yet. 4,096: a burst of returning clients fits, and costs
            some 50 MiB while they are silent; what they send is taken in up to `frame_size`. Closes with 1013. Each
            may last for `auth_timeout`.
        incoming_calls: Calls of one peer that wait for an answer. 1,000 is far above what a page has in flight.
            More are answered with `wse.limit-exceeded`.
        outgoing_calls: Calls to one peer that wait for its answer. 10,000: a peer that never answers holds no more. A
            call above raises `LIMIT_EXCEEDED`.
        handlers: `async` handlers that run for one connection, including those of calls. 1,000, as each costs a few
            KiB. A call above is answered with `wse.limit-exceeded`, a message closes with 1008.
        handler_linger: Seconds that `async` handlers may go on after their connection has ended, then they are
            cancelled. 10: time to finish the work for a client that has just left. `None` lets them run.
        message_rate: Messages a second from one connection, including calls and answers. No bound by default: a chat
            needs 10, a game 100, a bulk producer 100,000. Closes with 1008.
        message_burst: Messages that may come at once after a pause; `None` for those of two seconds.
        byte_rate: Bytes a second from one connection. No bound by default, as for `message_rate`. Closes with 1008.
        byte_burst: Bytes that may come at once after a pause; `None` for those of two seconds, or `message_size`
            where that is more.
        send_buffer: Bytes that wait for one peer to take them. 1 MiB: seconds of a slow phone's line. Above it, the
            message type's `Overflow` decides; by default it closes with 1013 and `wse.slow-receiver`. A single message
            may be larger when nothing else waits.

    Raises:
        ValueError: A bound that is not positive.
    """

    message_size: int = 1024 * 1024
    frame_size: int | None = None
    handshake_size: int = 64 * 1024
    nesting: int = 100
    connections: int | None = None
    connections_per_address: int | None = None
    unauthenticated: int | None = 4096
    incoming_calls: int | None = 1000
    outgoing_calls: int | None = 10_000
    handlers: int | None = 1000
    handler_linger: float | None = 10.0
    message_rate: float | None = None
    message_burst: float | None = None
    byte_rate: float | None = None
    byte_burst: float | None = None
    send_buffer: int = 1024 * 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is not None and field.name in _ALWAYS:
                raise ValueError(f"{field.name} needs a bound")
            if value is not None and value <= 0 and field.name != "handler_linger":
                raise ValueError(f"{field.name} must be more than 0, not {value}")
        if self.message_burst is not None and self.message_burst < 1:
            raise ValueError(f"message_burst must let a message through, not {self.message_burst}")
        if self.handler_linger is not None and self.handler_linger < 0:
            raise ValueError(f"handler_linger is in seconds, not {self.handler_linger}")

    @property
    def max_frame_size(self) -> int:
        """Bytes that one frame may have."""
        return self.message_size if self.frame_size is None else min(self.frame_size, self.message_size)


_ALWAYS = frozenset(("message_size", "handshake_size", "nesting", "send_buffer"))
"""Without these a single peer could exhaust the process."""


class TokenBucket:
    """A rate with bursts: `rate` tokens a second flow in, up to `burst` of them.

    Args:
        scheduler: Its clock.
        rate: Tokens a second.
        burst: Tokens that it holds at most, and at first.
    """

    __slots__ = ("_at", "_burst", "_rate", "_scheduler", "_tokens")

    def __init__(self, scheduler: Scheduler, rate: float, burst: float) -> None:
        self._scheduler = scheduler
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = scheduler.time()

    def take(self, tokens: float) -> bool:
        """Take that many tokens, if there are enough; returns whether there were."""
        now = self._scheduler.time()
        available = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        enough = available >= tokens
        self._tokens = available - tokens if enough else available
        return enough


def nests_deeper(value: Any, depth: int) -> bool:
    """Whether arrays and objects are nested more than `depth` deep in a decoded value."""
    level = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for item in level:
            if type(item) is dict:
                inner += [child for child in item.values() if type(child) is dict or type(child) is list]
            elif type(item) is list:
                inner += [child for child in item if type(child) is dict or type(child) is list]
        if not inner:
            return False
        level = inner
    return True
