"""Bounds on what one peer may ask of this side, and the overflow policies."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wse.core.ports.scheduling import Scheduler


class Overflow(StrEnum):
    """The policy for a message to a receiver whose queue is full (`Limits.send_buffer`).

    By default a message that does not fit closes the connection, so messages are never dropped unless you choose that.
    """

    CLOSE = "close"
    """Close that connection with 1013 and `wse.slow-receiver`."""

    DROP_NEWEST = "drop-newest"
    """Drop the message."""

    DROP_OLDEST = "drop-oldest"
    """Drop waiting messages of this type, the oldest first, until the new one fits."""

    LATEST = "latest"
    """Keep only the newest of this type, or the newest of each `key`. This applies as soon as one waits, not only when
    the queue is full. A message with a key takes the place of the older one. A message without a key goes to the end of
    the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the messages, calls and connections of peers; `None` means no limit.

    A peer that exceeds a limit learns which one. Its call is answered with `wse.limit-exceeded` and the limit's name,
    or its connection is closed with a reason that names the limit (`CloseReason`). The excess is reported on `error`,
    once for each connection and limit, and counted every time (`WseServer.stats`).

    Args:
        message_size: The largest message, in bytes, before and after inflation. The default of 1 MiB is far above a
            chat message or a call, and far below a harmful size. Closes with 1009 (RFC 6455, 7.4.1).
        frame_size: The largest frame, in bytes, on the built-in listener and client; `None` means `message_size`, since
            a frame can be as large as a message. Closes with 1009.
        handshake_size: The largest message before the welcome, in bytes, with identity and meta. The default of 64 KiB
            has room for any token, and is more than unauthenticated peers need. Closes with 1009.
        nesting: The depth to which arrays and objects may be nested. The default of 100 is more than any hand-written
            message, and recursive code of applications survives it. Closes with 1008.
        connections: Connections of a server. There is no default limit, because only the operator knows the memory and
            the file descriptors. Closes with 1013, so that reconnecting clients try again.
        connections_per_address: Connections from one address; for IPv6 from one network of 64 bits, which usually
            belongs to one subscriber. There is no default limit, because thousands of users may share the address of a
            proxy or a company. With `trusted_proxies`, about 100 are sensible. Closes with 1013.
        unauthenticated: Connections that are not authenticated yet. The default of 4,096 has room for a burst of
            returning clients. While they are silent, they cost about 50 MiB; the server reads their messages up to
            `frame_size`. Each may last for `auth_timeout`. Closes with 1013.
        incoming_calls: Calls of one peer that wait for an answer. The default of 1,000 is far more than a page has in
            flight. Further calls are answered with `wse.limit-exceeded`.
        outgoing_calls: Calls to one peer that wait for its answer. The default of 10,000 limits the memory that a peer
            costs if it never answers. Further calls raise `LIMIT_EXCEEDED`.
        handlers: `async` handlers that run for one connection, including those of calls. The default is 1,000, as each
            costs a few KiB. A further call is answered with `wse.limit-exceeded`; a further message closes with 1008.
        handler_linger: Seconds that `async` handlers may run after their connection has ended; then they are cancelled.
            The default of 10 is time to finish the work for a client that has just left. `None` lets them run.
        streams: Streams and uploads of one peer that run at the same time; they also count as calls and as handlers.
            The default of 100 is far more than a page shows. Further ones are answered with `wse.limit-exceeded`.
        stream_window: Items of one stream that may be on their way to the peer, however many it asks for.
        rooms: Rooms that a client may be in when it enters one by itself (`room_guard`). The default of 100 is far more
            than a page shows. Further ones are answered with `wse.limit-exceeded`.
        state_size: Bytes of a state that a client shows in a room (`room.presence`), in MessagePack. The default of 4
            KiB has room for a cursor, a selection and a name. A larger state is dropped.
        message_rate: Messages per second from one connection, including calls and answers. There is no default limit: a
            chat needs 10, a game 100, a bulk producer 100,000. Closes with 1008.
        message_burst: Messages that may arrive at once after a pause; `None` means the messages of two seconds.
        byte_rate: Bytes per second from one connection. There is no default limit. Closes with 1008.
        byte_burst: Bytes that may arrive at once after a pause; `None` means the bytes of two seconds, or
            `message_size` if that is more.
        send_buffer: Bytes that wait for one peer. The default of 1 MiB takes seconds on a slow phone's line. Above it,
            the message type's `Overflow` decides; by default the connection is closed with 1013 and
            `wse.slow-receiver`. A single message may be larger if no other message waits.

    Raises:
        ValueError: A limit is not positive.
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
    streams: int | None = 100
    stream_window: int = 256
    rooms: int | None = 100
    state_size: int = 4096
    message_rate: float | None = None
    message_burst: float | None = None
    byte_rate: float | None = None
    byte_burst: float | None = None
    send_buffer: int = 1024 * 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is not None and field.name in _ALWAYS:
                raise ValueError(f"{field.name} must not be None")
            if value is not None and value <= 0 and field.name != "handler_linger":
                raise ValueError(f"{field.name} must be more than 0, not {value}")
        if self.message_burst is not None and self.message_burst < 1:
            raise ValueError(f"message_burst must be at least 1, not {self.message_burst}")
        if self.handler_linger is not None and self.handler_linger < 0:
            raise ValueError(f"handler_linger must not be negative, as {self.handler_linger} is")

    @property
    def max_frame_size(self) -> int:
        """The largest frame, in bytes."""
        return self.message_size if self.frame_size is None else min(self.frame_size, self.message_size)


_ALWAYS = frozenset(("message_size", "handshake_size", "nesting", "send_buffer", "state_size", "stream_window"))
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
