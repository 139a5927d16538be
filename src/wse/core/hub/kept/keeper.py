"""What a server keeps: it puts messages into boxes of the store, and hands them to the readers that are here.

`Inboxes` adds the devices of users, and `Histories` the members of rooms.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final

from wse.core.hub.kept.feed import Feed, deliver_kept
from wse.core.hub.kept.form import Kept, box_of, packed_for_store
from wse.core.hub.kept.limits import announce
from wse.core.hub.kept.unread import Unread
from wse.core.hub.network import USER
from wse.core.ports.store import Record
from wse.errors import ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Hashable, Iterable

    from wse.core.hub.connection import WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.hub.kept.feed import Reader
    from wse.core.inbox import Inbox
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.store import Store
    from wse.types import MessageType

CHECK_EVERY: Final = 30.0
"""Seconds between two looks for messages whose hints have been lost."""

CHECKED_AT_A_TIME: Final = 500
"""Boxes whose newest numbers are asked for in one step."""


class Keeper:
    """The boxes of users and rooms, as one server sees them.

    Args:
        hub: The connections.
        settings: The limits.
        store: Where messages are kept.
        readers: Message protocols to read what nodes of other protocols have packed.

    Attributes:
        settings: The limits.
        store: Where messages are kept.
        readers: Message protocols by name.
        is_open: Whether the store is open.
        unread: Looks after messages until they have been read; `None` if that is not wanted.
    """

    def __init__(self, hub: Hub, settings: Inbox, store: Store, readers: Iterable[Protocol]) -> None:
        self._hub = hub
        self._feeds: dict[str, Feed] = {}
        self._timer: Timer | None = None
        self._announced_at = -inf
        self.is_open = False
        self._opening: asyncio.Future[None] | None = None
        self.endpoint = hub.endpoint
        self.settings = settings
        self.store = store
        self.unread: Unread | None = None
        if settings.undelivered is not None:
            self.unread = Unread(self, hub, settings.undelivered, hub.fallbacks.signal)
        self.readers = {protocol.name: protocol for protocol in (*readers, *hub.endpoint.protocols)}

    async def open(self) -> None:
        """Open the store, if it is not open."""
        while not self.is_open:
            if self._opening is not None:  # another connection of a web application has begun with it
                await self._opening
                continue
            opening = self._opening = self.endpoint.scheduler.create_future()
            try:
                await self.store.open()
                self.is_open = True
                self._announced_at = -inf
                self._check_later()
            finally:
                self._opening = None
                wake(opening)

    def forget_loop(self) -> None:
        """The event loop has ended: nothing of it runs again."""
        self.is_open = False
        self._opening = self._timer = None
        if self.unread is not None:
            self.unread.forget_loop()

    async def close(self) -> None:
        """Close the store."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.is_open = False
        if self.unread is not None:
            self.unread.stop()
        await self.store.close()

    # Readers.

    def add(self, box: str, reader: Reader, form: Callable[[Kept, Protocol], Packed]) -> None:
        """Let a connection read a box, in this form; all readers of one box have the same. Then `look_at` the box."""
        feed = self._feeds.get(box)
        if feed is None:
            feed = self._feeds[box] = Feed(self, box, form)
        feed.add(reader)

    def remove(self, box: str, conn: WseConnection) -> None:
        """Let a connection no longer read a box; harmless if it does not."""
        feed = self._feeds.get(box)
        reader = None if feed is None else feed.readers.pop(conn.conn_id, None)
        if feed is None or reader is None:
            return
        if not feed.readers:
            del self._feeds[box]
        reader.gone()

    def reader(self, box: str, conn: WseConnection) -> Reader | None:
        """The connection as a reader of the box, if it is one."""
        feed = self._feeds.get(box)
        return None if feed is None else feed.readers.get(conn.conn_id)

    def look_at(self, box: str) -> None:
        """Look for messages in a box that is read here."""
        feed = self._feeds.get(box)
        if feed is not None:
            feed.look()

    # Messages.

    async def keep(
        self, kind: str, name: Hashable, type: MessageType, payload: Any, key: str | None, ttl: float | None
    ) -> int:
        """Keep a message for a user or a room; see `WseServer.keep`."""
        if not self._hub.started:
            raise WseError(ErrorCode.NOT_STARTED)
        self.endpoint.check_sent(type)
        box = box_of(kind, name)
        data = packed_for_store(self.settings, self.endpoint.protocols, type, payload, key, ttl)
        record, is_new = await self.store.keep(box, data, self.settings.bounds, key=key, ttl=ttl)
        if self.unread is not None and kind == USER:
            self.unread.watch(name, record.number, record.epoch)
        if is_new:
            self.endpoint.counters.kept["user" if kind == USER else "room"] += 1
        else:  # the first time may have gone wrong after the store had it
            record = Record(record.number, record.at, b"", record.epoch)
        self._hub.network.kept(kind, name, record)
        self.heard(kind, name, record)
        return record.number

    def heard(self, kind: str, name: Any, record: Record) -> None:
        """A message has been kept, by this node or another.

        Args:
            kind: Whether it is for a user or a room.
            name: The user or the room.
            record: The message, without data if it must be read.
        """
        box = box_of(kind, name)
        feed = self._feeds.get(box)
        receivers: Collection[WseConnection] = self._hub.conns_of(name) if kind == USER else self._hub.rooms.local(name)
        # For those that are no readers, it is a message like any other.
        others = [conn for conn in receivers if feed is None or conn.conn_id not in feed.readers]
        message = self.decode(box, record) if record.data and (feed is not None or others) else None
        if feed is not None:
            feed.heard(record.number, record.epoch, message)
        if message is not None and others:
            deliver_kept(self.endpoint, message, Kept.plain, others)

    def queue(self, conn: WseConnection, box: str, record: Record) -> None:
        """Let a message that has been kept wait for a connection that has come after it, and is no reader."""
        message = self.decode(box, record) if record.data else None
        if message is not None:
            try:
                conn._session.queue(message.type, message.plain(conn._session.protocol))
            except WseError as exc:  # its protocol cannot carry the message
                self.endpoint.report(exc)

    def decode(self, box: str, record: Record) -> Kept | None:
        """The message; `None` if it cannot be decoded, which is reported."""
        try:
            return Kept(record, self.readers)
        except Exception as exc:  # another version, or another program, may have written it
            details = {"box": box, "number": record.number}
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, details, "a kept message cannot be decoded")
            self.endpoint.report(error, None, exc)
            return None

    # Hints that were lost.

    def look(self) -> None:
        """Look for messages in all boxes: hints may have been lost."""
        if self._feeds:
            self.endpoint.scheduler.spawn(self._check())

    def _check_later(self) -> None:
        wait = min(CHECK_EVERY, self.settings.ttl / 4)
        self._timer = self.endpoint.scheduler.call_later(wait, self._check_later)
        self.look()
        if self._hub.network.reaches_others:
            self.endpoint.scheduler.spawn(self._announce())

    async def _announce(self) -> None:
        """Tell publishers the limits. The store may have lost them, or let them expire."""
        now = self.endpoint.scheduler.time()
        with suppress(WseError):  # later
            if await announce(self.store, self.settings, again=now - self._announced_at > self.settings.ttl / 2):
                self._announced_at = now

    async def _check(self) -> None:
        known = list(self._feeds)
        for start in range(0, len(known), CHECKED_AT_A_TIME):
            boxes = known[start : start + CHECKED_AT_A_TIME]
            try:
                numbers = await self.store.last(boxes)
            except WseError:  # the readers that need it report it
                return
            for box, number in zip(boxes, numbers, strict=True):
                feed = self._feeds.get(box)
                if feed is not None and number != feed.last:
                    feed.look()
