"""The interface to stores: messages that are kept for users and rooms, with a cursor for each device.

A *box* holds the messages of one user or one room. It numbers them from 1, without gaps, and keeps the newest ones: as
many as its bounds allow. Its *epoch* is a name for this row of numbers: a box that was lost, or forgotten, begins
another row with another name. The name of a box consists of `A-Z a-z 0-9 _ - = .`, like a topic of a broker. Only
`wse.core.hub.kept` and publishers call a store.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field

if typing.TYPE_CHECKING:
    from collections.abc import Sequence

REPEAT_WITHIN: typing.Final = 300.0
"""Seconds for which a box remembers the keys of messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a box keeps at most.

    Attributes:
        messages: Messages.
        bytes: Bytes of their data together. The newest message is kept in any case.
        ttl: Seconds for which a message is kept. The numbers of an empty box are remembered for at least as long again.
        devices: Devices whose cursors are kept. One more forgets the one that was used least recently.
    """

    messages: int
    bytes: int
    ttl: float
    devices: int

    def lifetime(self, ttl: float | None) -> float:
        """Seconds for which a message is kept that asks for `ttl`."""
        return self.ttl if ttl is None else min(ttl, self.ttl)


@dataclass(frozen=True, slots=True)
class Record:
    """A message in a box.

    Attributes:
        number: Its number.
        at: When it was kept, in Unix seconds, by the store's clock.
        data: The message.
        epoch: The epoch of the box, where `keep` has returned it; else empty.
    """

    number: int
    at: float
    data: bytes
    epoch: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Span:
    """What a box holds.

    Attributes:
        first: The number of the oldest message that is still there; `last + 1` if none is.
        last: The number of the newest message that there has been; 0 if there has been none.
        epoch: The epoch; empty if the box has none yet.
    """

    first: int
    last: int
    epoch: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a box.

    Attributes:
        records: Messages in order of their numbers. Numbers are missing if their messages are no longer there.
        span: What the box holds.
    """

    records: tuple[Record, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a device has come.

    Attributes:
        after: The number of the last message that it has seen.
        span: What the box holds.
    """

    after: int
    span: Span


class Store(typing.Protocol):
    """Boxes of messages. All nodes of a cluster use the same ones.

    Every step is atomic. The methods raise a `WseError` with `ErrorCode.BROKER_UNAVAILABLE`, caused by the engine's own
    exception, if the engine cannot be reached, refuses, or does not answer within a few seconds. It is then unknown
    whether the step was made.
    """

    async def open(self) -> None:
        """Make the store ready; called before anything else, on the event loop that uses it."""

    async def close(self) -> None:
        """Release what `open` has taken; harmless if it is not open."""

    async def keep(
        self, box: str, data: bytes, bounds: Bounds, *, key: str | None = None, ttl: float | None = None
    ) -> tuple[Record, bool]:
        """Add a message. When this returns, the engine has it.

        Args:
            box: The box.
            data: The message.
            bounds: What the box keeps.
            key: If a message with the same key was added in the last `REPEAT_WITHIN` seconds, nothing is added.
            ttl: Seconds for which the message is kept, if that is less than `bounds.ttl`.

        Returns:
            The message, or the one that has been added with the key before; and whether it is new.
        """
        ...

    async def read(self, box: str, after: int, count: int) -> Page:
        """Return the messages with higher numbers than `after`, at most `count` of them."""
        ...

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        """Return a device's cursor. A new device begins before the oldest message, or after the newest (`from_now`).

        If the cursor is beyond the newest message, the box was lost, and the device begins anew. The box has an epoch
        after this.
        """
        ...

    async def seen(self, box: str, device: str, number: int) -> None:
        """Move a device's cursor forward to that message; it never moves back. An unknown device is ignored."""

    async def furthest(self, box: str) -> int:
        """Return the number of the newest message that any device has seen; 0 if none has seen any."""
        ...

    async def last(self, boxes: Sequence[str]) -> list[int]:
        """Return the number of the newest message of each box; 0 for a box without one."""
        ...
