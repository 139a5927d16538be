"""Inboxes at a server: the extension `inbox` (WIRE.md section 7).

A device that offers the extension says its name, and perhaps the number of the last message that it has. Its cursor is
read from the store before it is welcomed, and the answer tells what comes. After the welcome it is a reader of its
user's box. What it reports as seen moves its cursor.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wse.core.hub.kept.feed import RETRY_AFTER, Reader
from wse.core.hub.kept.form import Kept, box_of
from wse.core.hub.network import USER
from wse.core.inbox import MOST_OF_A_NAME
from wse.core.ports.scheduling import sleep
from wse.core.session.extensions import Extension
from wse.core.session.ledger import is_count
from wse.core.session.phase import Ignoring
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.kept.keeper import Keeper
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.ports.store import Span
    from wse.core.session.extensions import Control
    from wse.types import ClientId, MessageType

READING = Ignoring()
"""The phase between acceptance and welcome, while the cursor is read."""


class Device(Reader):
    """A device with an inbox.

    Args:
        conn: The connection.
        name: The name that the client has chosen.
        after: The number of the last message that it has, by its own account.
        epoch: The epoch of that number; empty if the client does not know it.

    Attributes:
        span: What the inbox held when the device connected; `None` if that is not known.
        seen: What it has reported as seen.
        is_placed: Whether its position is known, so that it may read.
    """

    __slots__ = ("after", "is_placed", "name", "seen", "span")

    def __init__(self, conn: WseConnection, name: str, after: int | None, epoch: str = "") -> None:
        super().__init__(conn, epoch=epoch)
        self.name = name
        self.after = after
        self.span: Span | None = None
        self.seen = 0
        self.is_placed = False

    def lost(self) -> None:
        self.conn._session.close(1012, CloseReason.BY_SERVER)  # it connects again, and begins anew


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
        keeper: The boxes.
    """

    name = "inbox"

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._store = keeper.store
        self._settings = keeper.settings
        self._endpoint = keeper.endpoint
        self._writes: dict[tuple[str, str], Write] = {}
        self._finding: dict[ServerSession, ClientId] = {}  # devices without a welcome

    # Extension.

    def offered(self, session: ServerSession, params: Any) -> bool:
        if not isinstance(params, dict):
            return False
        name, after, epoch = params.get("device"), params.get("after"), params.get("epoch", "")
        if not isinstance(name, str) or not 0 < len(name) <= MOST_OF_A_NAME:
            return False
        if after is not None and not is_count(after):
            return False
        if not isinstance(epoch, str) or len(epoch) > MOST_OF_A_NAME:
            return False
        session.inbox = Device(session.conn, name, after, epoch)
        return True

    def answer(self, session: ServerSession) -> Any:
        device = session.inbox
        if device is None or device.span is None:
            return {}  # a session that goes on, or a store that is away
        span = device.span
        begin = max(device.position + 1, span.first)
        lost = begin - device.position - 1
        self._endpoint.counters.inbox_lost += lost
        return {"from": begin, "to": span.last, "lost": lost, "epoch": span.epoch}

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.seen: self._seen, types.kept: self._wants}

    # A device comes and goes.

    def find(self, session: ServerSession, cid: ClientId, welcome: Callable[[], None]) -> None:
        """Read a device's cursor, then call `welcome`, if the client is still there.

        Raises:
            TypeError, ValueError: Such a user cannot have an inbox; see `encode_name`.
        """
        box = _box(cid)
        session.enter(READING)
        self._finding[session] = cid
        self._endpoint.scheduler.spawn(self._find(session, box, welcome))

    async def _find(self, session: ServerSession, box: str, welcome: Callable[[], None]) -> None:
        device = session.inbox
        assert device is not None  # it was made when the extension was offered
        try:
            await self._place(box, device)
        except WseError as exc:  # it gets its messages when the store is back
            self._endpoint.report(WseError(exc.code, session.context(), "an inbox cannot be read"), session, exc)
        finally:
            del self._finding[session]
        if not session.ended:
            try:
                welcome()
            except (TypeError, ValueError) as exc:
                error = WseError(ErrorCode.MSG_PROCESSING_ERROR, session.context())
                self._endpoint.report(error, session, exc)
                session.close(1000, CloseReason.NOT_AUTHORIZED)

    async def _place(self, box: str, device: Device) -> None:
        """Find out where a device begins.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        # What the device has reported over its last connection counts.
        while (write := self._writes.get((box, device.name))) is not None:
            await write.done
        from_now = self._settings.new_device == "none"
        cursor = await self._store.cursor(box, device.name, self._settings.bounds, from_now=from_now)
        device.span = cursor.span
        after, epoch = device.after, cursor.span.epoch
        if after is None or after > cursor.span.last or device.epoch not in ("", epoch):
            after = cursor.after  # the box was lost, if the device says something else
        device.position, device.epoch = after, epoch
        device.seen = cursor.after
        device.is_placed = True

    def drop(self, cid: ClientId, reason: str, code: int) -> None:
        """Close a user's devices that have no welcome yet."""
        for session in [session for session, user in self._finding.items() if user == cid]:
            session.close(code, reason)

    def begin(self, session: ServerSession) -> None:
        """A device has been welcomed, or has come from another node."""
        device = session.inbox
        if device is None:
            return
        box = _box(session.conn.cid)
        if device.is_placed:
            self._read(box, device)
        else:
            self._endpoint.scheduler.spawn(self._begin_later(session, box, device))

    async def _begin_later(self, session: ServerSession, box: str, device: Device) -> None:
        """Begin when the store can be read again."""
        while not device.is_placed and not session.ended:
            await sleep(self._endpoint.scheduler, RETRY_AFTER)
            epoch = device.epoch
            with suppress(WseError):
                await self._place(box, device)
                if not session.ended and epoch not in ("", device.epoch):
                    device.lost()
        if not session.ended:
            self._read(box, device)

    def _read(self, box: str, device: Device) -> None:
        self._keeper.add(box, device, Kept.numbered)
        self._keeper.look_at(box)

    def end(self, session: ServerSession) -> None:
        """A device has gone."""
        self._keeper.remove(_box(session.conn.cid), session.conn)

    # What it has seen.

    def _seen(self, session: ServerSession, number: Any, stamp: Any) -> None:
        device = session.inbox
        if device is None or not is_count(number):
            session.violation("what a device has seen is the number of a message")
            return
        # It may have had messages over an earlier connection that are still to come over this one.
        number = min(number, device.position)
        if number > device.seen:
            device.seen = number
            cursor = _box(session.conn.cid), device.name
            write = self._writes.get(cursor)
            if write is None:
                write = self._writes[cursor] = Write(number, self._endpoint.scheduler.create_future())
                self._endpoint.scheduler.spawn(self._write(*cursor, write))
            write.number = max(write.number, number)

    def _wants(self, session: ServerSession, wants: Any, stamp: Any) -> None:
        """A device that has enough for the moment says so, and says when it takes more."""
        device = session.inbox
        if device is None or not isinstance(wants, bool):
            session.violation("whether a device takes kept messages is true or false")
            return
        device.wants = wants
        if wants:
            self._keeper.look_at(_box(session.conn.cid))

    async def _write(self, box: str, device: str, write: Write) -> None:
        """Move a cursor, and once more if the device has seen more meanwhile."""
        written = 0
        try:
            while written < write.number:
                written = write.number
                await self._store.seen(box, device, written)
        except WseError as exc:  # the device gets these messages again when it connects anew
            self._endpoint.report(WseError(exc.code, {"box": box}, "a cursor cannot be moved"), None, exc)
        finally:
            del self._writes[box, device]
            wake(write.done)


def _box(cid: ClientId) -> str:
    return box_of(USER, cid)
