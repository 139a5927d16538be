"""Inboxes at a server: the extension `inbox` (WIRE.md section 7), and what `WseServer.keep` does.

A device that offers the extension says its name, and perhaps the number of the last message that it has. Its cursor is
read from the store before it is welcomed, and the answer tells what comes. After the welcome it is a reader of its
user's box. What it reports as seen moves its cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from wse.core.hub.kept.feed import Feed, Reader
from wse.core.hub.kept.form import Kept, pack
from wse.core.hub.network import USER
from wse.core.names import encode_name
from wse.core.ports.store import Record
from wse.core.session.extensions import Extension
from wse.core.session.phase import Ignoring
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.inbox import Inbox
    from wse.core.ports.protocol import ExtensionTypes, Protocol
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.store import Span, Store
    from wse.core.session.extensions import Control
    from wse.types import ClientId, MessageType

CHECK_EVERY: Final = 30.0
"""Seconds between two looks for messages whose hints have been lost."""

CHECKED_AT_A_TIME: Final = 500
"""Boxes whose newest numbers are asked for in one step."""

MOST_OF_A_NAME: Final = 200
"""Characters of the name of a device."""

READING = Ignoring()
"""The phase between acceptance and welcome, while the cursor is read."""


class Device(Reader):
    """A device with an inbox.

    Args:
        conn: The connection.
        name: The name that the client has chosen.
        after: The number of the last message that it has, by its own account.

    Attributes:
        span: What the inbox held when the device connected; `None` if that is not known.
        seen: What it has reported as seen.
    """

    __slots__ = ("after", "name", "seen", "span")

    def __init__(self, conn: WseConnection, name: str, after: int | None) -> None:
        super().__init__(conn)
        self.name = name
        self.after = after
        self.span: Span | None = None
        self.seen = 0

    def lost(self) -> None:
        self.conn._session.cut(1012, CloseReason.BY_SERVER)  # it connects again, and begins anew


class Write:
    """A cursor that is being moved.

    Attributes:
        number: Where it is to be moved.
        done: Done when it has been moved, or could not be.
    """

    __slots__ = ("done", "number")

    def __init__(self, number: int, done: asyncio.Future[None]) -> None:
        self.number = number
        self.done = done


class Inboxes(Extension):
    """The inboxes of a server.

    Args:
        hub: The connections.
        settings: The limits.
        store: Where messages are kept.
        readers: Message protocols to read what nodes of other protocols have packed.
    """

    name = "inbox"

    def __init__(self, hub: Hub, settings: Inbox, store: Store, readers: Iterable[Protocol]) -> None:
        self._hub = hub
        self._settings = settings
        self._bounds = settings.bounds
        self._feeds: dict[str, Feed] = {}
        self._writes: dict[tuple[str, str], Write] = {}
        self._timer: Timer | None = None
        self.endpoint = hub.endpoint
        self.store = store
        self.readers = {protocol.name: protocol for protocol in (*readers, *hub.endpoint.protocols)}

    async def open(self) -> None:
        """Open the store, if it is not open."""
        if self._timer is not None:
            return
        await self.store.open()
        self._timer = self.endpoint.scheduler.call_later(CHECK_EVERY, self._check_later)

    async def close(self) -> None:
        """Close the store."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.store.close()

    # Extension.

    def offered(self, session: ServerSession, params: Any) -> bool:
        if not isinstance(params, dict):
            return False
        name, after = params.get("device"), params.get("after")
        if not isinstance(name, str) or not 0 < len(name) <= MOST_OF_A_NAME:
            return False
        if after is not None and not _is_number(after):
            return False
        session.inbox = Device(session.conn, name, after)
        return True

    def answer(self, session: ServerSession) -> Any:
        device = session.inbox
        if device is None or device.span is None:
            return {}  # a session that goes on, or a store that is away
        span = device.span
        begin = max(device.position + 1, span.first)
        return {"from": begin, "to": span.last, "lost": begin - device.position - 1}

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.seen: self._seen}

    # A device comes and goes.

    def find(self, session: ServerSession, cid: ClientId, welcome: Callable[[], None]) -> None:
        """Read a device's cursor, then call `welcome`, if the client is still there.

        Raises:
            TypeError, ValueError: Such a user cannot have an inbox; see `encode_name`.
        """
        box = _box(cid)
        session.enter(READING)
        self.endpoint.scheduler.spawn(self._find(session, box, welcome))

    async def _find(self, session: ServerSession, box: str, welcome: Callable[[], None]) -> None:
        device = session.inbox
        assert device is not None  # it was made when the extension was offered
        try:
            # What the device has reported over its last connection counts.
            while (write := self._writes.get((box, device.name))) is not None:
                await write.done
            from_now = self._settings.new_device == "none"
            cursor = await self.store.cursor(box, device.name, self._bounds, from_now=from_now)
        except WseError as exc:  # it gets its messages when the store is back
            self.endpoint.report(WseError(exc.code, session.context(), "an inbox cannot be read"), session, exc)
            device.position = device.after or 0
        else:
            device.span = cursor.span
            after = device.after
            device.position = cursor.after if after is None or after > cursor.span.last else after
            device.seen = cursor.after
        if not session.ended:
            try:
                welcome()
            except (TypeError, ValueError) as exc:
                error = WseError(ErrorCode.MSG_PROCESSING_ERROR, session.context())
                self.endpoint.report(error, session, exc)
                session.close(1000, CloseReason.NOT_AUTHORIZED)

    def begin(self, session: ServerSession) -> None:
        """A device has been welcomed, or has come from another node."""
        device = session.inbox
        if device is not None:
            box = _box(session.conn.cid)
            feed = self._feeds.get(box)
            if feed is None:
                feed = self._feeds[box] = Feed(self, box, Kept.numbered)
            feed.add(device)

    def end(self, session: ServerSession) -> None:
        """A device has gone."""
        box = _box(session.conn.cid)
        feed = self._feeds.get(box)
        if feed is not None and feed.readers.pop(session.conn.conn_id, None) is not None and not feed.readers:
            del self._feeds[box]

    # What it has seen.

    def _seen(self, session: ServerSession, number: Any, stamp: Any) -> None:
        device = session.inbox
        if device is None or not _is_number(number) or number > device.position:
            session.violation("what a device has seen is the number of a message that it has got")
            return
        if number > device.seen:
            device.seen = number
            cursor = _box(session.conn.cid), device.name
            write = self._writes.get(cursor)
            if write is None:
                write = self._writes[cursor] = Write(number, self.endpoint.scheduler.create_future())
                self.endpoint.scheduler.spawn(self._write(*cursor, write))
            write.number = max(write.number, number)

    async def _write(self, box: str, device: str, write: Write) -> None:
        """Move a cursor, and once more if the device has seen more meanwhile."""
        written = 0
        try:
            while written < write.number:
                written = write.number
                await self.store.seen(box, device, written)
        except WseError as exc:  # the device gets these messages again when it connects anew
            self.endpoint.report(WseError(exc.code, {"box": box}, "a cursor cannot be moved"), None, exc)
        finally:
            del self._writes[box, device]
            wake(write.done)

    # Messages.

    async def keep(self, cid: ClientId, type: MessageType, payload: Any, key: str | None, ttl: float | None) -> int:
        """Keep a message for a user; see `WseServer.keep`."""
        return await self._keep(_box(cid), USER, cid, type, payload, key, ttl)

    async def _keep(
        self, box: str, kind: str, name: Any, type: MessageType, payload: Any, key: str | None, ttl: float | None
    ) -> int:
        if not self._hub.started:
            raise WseError(ErrorCode.NOT_STARTED)
        self.endpoint.check_sent(type)
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl is in seconds, more than 0, not {ttl!r}")
        data = pack(self.endpoint.protocols, type, payload)
        if len(data) > self._settings.message:
            details = {"limit": "message", "allowed": self._settings.message, "size": len(data), "type": type}
            raise WseError(ErrorCode.LIMIT_EXCEEDED, details)
        record, is_new = await self.store.keep(box, data, self._bounds, key=key, ttl=ttl)
        if not is_new:  # the first time may have gone wrong after the store had it
            record = Record(record.number, record.at, b"")
        self._hub.network.kept(kind, name, record)
        self.heard(box, name, record)
        return record.number

    def heard(self, box: str, name: Any, record: Record) -> None:
        """A node has kept a message, this one or another.

        Args:
            box: The box.
            name: The user.
            record: The message, without data if it must be read.
        """
        feed = self._feeds.get(box)
        others = [conn for conn in self._hub.conns_of(name) if conn._session.inbox is None]
        if feed is None and not others:
            return
        message = None
        if record.data:
            message = (feed or Feed(self, box, Kept.plain)).decode(record)
        if feed is not None:
            feed.heard(record.number, message)
        if message is not None:
            for conn in others:  # without an inbox, it is a message like any other
                conn.send(message.type, message.payload)

    # Hints that were lost.

    def look(self) -> None:
        """Look for messages in all boxes: hints may have been lost."""
        if self._feeds:
            self.endpoint.scheduler.spawn(self._check())

    def _check_later(self) -> None:
        self._timer = self.endpoint.scheduler.call_later(CHECK_EVERY, self._check_later)
        self.look()

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


def _box(cid: ClientId) -> str:
    return USER + encode_name(cid)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
