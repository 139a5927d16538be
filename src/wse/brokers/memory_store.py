"""A store in the memory of this process: what it keeps is gone with it."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wse.core.ports.store import REPEAT_WITHIN, Cursor, Page, Record, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wse.core.ports.store import Bounds


@dataclass(slots=True)
class Box:
    """The messages of one user or room.

    Attributes:
        last: The number of the newest message.
        size: Bytes of all messages.
        records: The messages, and when each expires.
        keys: The keys of recent messages: the message, and until when its key counts.
        cursors: How far each device has come, the one that was used least recently first.
        until: When the box may be forgotten.
        epoch: The name of this row of numbers.
    """

    last: int = 0
    size: int = 0
    records: deque[tuple[Record, float]] = field(default_factory=deque)
    keys: dict[str, tuple[Record, float]] = field(default_factory=dict)
    cursors: OrderedDict[str, int] = field(default_factory=OrderedDict)
    until: float = 0.0
    epoch: str = field(default_factory=lambda: secrets.token_hex(4))

    def add(self, record: Record, expires: float) -> None:
        self.records.append((record, expires))
        self.size += len(record.data)
        self.last = record.number

    def trim(self, bounds: Bounds) -> None:
        """Drop the oldest messages until the bounds are kept."""
        while len(self.records) > bounds.messages or (self.size > bounds.bytes and len(self.records) > 1):
            self._drop()

    def expire(self, now: float) -> None:
        """Drop what has expired, at the beginning; `live` leaves out the rest."""
        while self.records and self.records[0][1] <= now:
            self._drop()
        for key in list(self.keys):
            if self.keys[key][1] > now:
                break
            del self.keys[key]

    def _drop(self) -> None:
        record, _ = self.records.popleft()
        self.size -= len(record.data)

    def live(self, now: float) -> Iterator[Record]:
        return (record for record, expires in self.records if expires > now)

    def span(self, now: float) -> Span:
        first = next(self.live(now), None)
        return Span(self.last + 1 if first is None else first.number, self.last, self.epoch)


class MemoryStore:
    """A `wse.core.ports.store.Store` for the servers of one process.

    Args:
        clock: The time of day, in Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._boxes: OrderedDict[str, Box] = OrderedDict()  # the one that was written least recently first

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def keep(
        self, box: str, data: bytes, bounds: Bounds, *, key: str | None = None, ttl: float | None = None
    ) -> tuple[Record, bool]:
        now = self._clock()
        self._forget(now)
        content = self._boxes.setdefault(box, Box())
        content.expire(now)
        if key is not None and key in content.keys:
            return content.keys[key][0], False
        record = Record(content.last + 1, now, data, content.epoch)
        content.add(record, now + bounds.lifetime(ttl))
        content.trim(bounds)
        content.until = now + 2 * bounds.ttl
        self._boxes.move_to_end(box)
        if key is not None:
            content.keys[key] = record, now + REPEAT_WITHIN
        return record, True

    async def read(self, box: str, after: int, count: int) -> Page:
        now = self._clock()
        content = self._boxes.get(box, _NO_BOX)
        content.expire(now)
        found = [record for record in content.live(now) if record.number > after]
        return Page(tuple(found[:count]), content.span(now))

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        now = self._clock()
        content = self._boxes.setdefault(box, Box())
        content.until = max(content.until, now + 2 * bounds.ttl)
        self._boxes.move_to_end(box)
        span = content.span(now)
        after = content.cursors.get(device)
        if after is None or after > content.last:
            after = content.last if from_now else 0
        content.cursors[device] = after
        content.cursors.move_to_end(device)
        while len(content.cursors) > bounds.devices:
            content.cursors.popitem(last=False)
        return Cursor(after, span)

    async def seen(self, box: str, device: str, number: int) -> None:
        content = self._boxes.get(box, _NO_BOX)
        if device in content.cursors:
            content.cursors[device] = max(content.cursors[device], min(number, content.last))
            content.cursors.move_to_end(device)

    async def furthest(self, box: str) -> int:
        return max(self._boxes.get(box, _NO_BOX).cursors.values(), default=0)

    async def last(self, boxes: Sequence[str]) -> list[int]:
        return [self._boxes.get(box, _NO_BOX).last for box in boxes]

    def _forget(self, now: float) -> None:
        while self._boxes:
            box, content = next(iter(self._boxes.items()))
            if content.until > now:
                break
            del self._boxes[box]


_NO_BOX = Box(epoch="")
"""Stands for any box that nothing was written to."""
