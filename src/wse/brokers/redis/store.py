"""The store on Redis 7 or later, or Valkey. Its keys, under the prefix and `v2:`, the version of the format:

    ib:<box>        stream  the messages: the id `<number>-0`; fields a (time), x (end), d (data)
    ih:<box>        hash    "#n" the last number; "#b" bytes of all messages; "c:<device>" cursors, "number used";
                            "#u" counts the uses; "#e" the epoch
    ik:<box>:<key>  string  "number time" of the message with that key; for five minutes

What is kept survives a restart of the engine only if the engine writes it to a disk (`appendonly yes`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from wse.brokers.redis.store_scripts import CURSOR, KEEP, READ, SEEN
from wse.core.names import encode_text
from wse.core.ports.store import Cursor, Page, Record, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wse.brokers.reconnecting import ReconnectingBroker
    from wse.brokers.redis.connection import RedisConnection
    from wse.brokers.redis.scripts import Script
    from wse.core.ports.store import Bounds


class RedisStore:
    """A `wse.core.ports.store.Store` on the connection of a broker.

    Args:
        broker: The broker.
        keys: What all keys start with.
    """

    def __init__(self, broker: ReconnectingBroker[RedisConnection], keys: str) -> None:
        self._broker = broker
        self._keys = keys

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def keep(
        self, box: str, data: bytes, bounds: Bounds, *, key: str | None = None, ttl: float | None = None
    ) -> tuple[Record, bool]:
        own = bounds.lifetime(ttl)
        number, at, is_new, epoch = await self._run(
            KEEP, box, data, bounds.messages, bounds.bytes, _milliseconds(bounds.ttl), _milliseconds(own), _name(key)
        )
        return Record(number, int(at) / 1000, data, epoch.decode()), bool(is_new)

    async def read(self, box: str, after: int, count: int) -> Page:
        first, last, epoch, records = await self._run(READ, box, after, count)
        span = Span(first, last, epoch.decode())
        return Page(tuple(Record(number, int(at) / 1000, data) for number, at, data in records), span)

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        after, first, last, epoch = await self._run(
            CURSOR, box, _name(device), _milliseconds(bounds.ttl), bounds.devices, int(from_now)
        )
        return Cursor(after, Span(first, last, epoch.decode()))

    async def seen(self, box: str, device: str, number: int) -> None:
        await self._run(SEEN, box, _name(device), number)

    async def furthest(self, box: str) -> int:
        async def ask(connection: RedisConnection) -> int:
            fields: list[bytes] = await connection.command("HGETALL", f"{self._keys}ih:{box}")
            cursors = [value for name, value in zip(fields[::2], fields[1::2], strict=True) if name.startswith(b"c:")]
            return max((int(cursor.split()[0]) for cursor in cursors), default=0)

        return await self._broker.ask(ask)

    async def last(self, boxes: Sequence[str]) -> list[int]:
        async def ask(connection: RedisConnection) -> list[int]:
            asked = (connection.command("HGET", f"{self._keys}ih:{box}", "#n") for box in boxes)
            return [int(answer or 0) for answer in await asyncio.gather(*asked)]

        return await self._broker.ask(ask)

    async def _run(self, script: Script, box: str, *args: Any) -> Any:
        return await self._broker.ask(lambda connection: connection.run(script, self._keys, box, *args))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _name(name: str | None) -> str:
    """A key or the name of a device, of which any characters may be made."""
    return "" if name is None else "k" + encode_text(name)
