"""What is kept for rooms: what members get that enter late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wse.core.hub.kept.feed import PAGE, Reader
from wse.core.hub.kept.form import Kept, box_of
from wse.core.hub.network import ROOM
from wse.core.names import decode_name, encode_name
from wse.core.session.ledger import MAX_NUMBER
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio

    from wse.core.hub.connection import WseConnection
    from wse.core.hub.kept.keeper import Keeper
    from wse.core.hub.rooms import Rooms
    from wse.types import MessageType, RoomName


class KeptMessage(NamedTuple):
    """A message that is kept for a room: see `Room.history`.

    Attributes:
        n: Its number among the messages that have been kept for the room, which count from 1.
        at: When it was kept, in Unix seconds.
        type: Its type.
        payload: Its payload.
    """

    n: int
    at: float
    type: MessageType
    payload: Any


class Member(Reader):
    """A member of a room that gets what has been kept.

    Args:
        conn: The connection.
        position: The number of the last message that it does not get.
        target: The number of the newest message when it entered.
        there: Done when it has got that one.
        epoch: The epoch of the position; empty if that is not known.
    """

    __slots__ = ("_target", "_there")

    def __init__(
        self, conn: WseConnection, position: int, target: int, there: asyncio.Future[None], epoch: str = ""
    ) -> None:
        super().__init__(conn, position, epoch)
        self._target = target
        self._there = there
        self.came()

    def came(self) -> None:
        if self.position >= self._target:
            wake(self._there)

    def gone(self) -> None:
        wake(self._there)

    def lost(self) -> None:
        super().lost()
        wake(self._there)


class Histories:
    """What is kept for the rooms of a server.

    Args:
        keeper: The boxes.
        rooms: The rooms.
    """

    def __init__(self, keeper: Keeper, rooms: Rooms) -> None:
        self._keeper = keeper
        self._rooms = rooms
        self._boxes: dict[tuple[RoomName, str], str] = {}  # of members that read one

    async def keep(self, name: RoomName, type: MessageType, payload: Any, key: str | None, ttl: float | None) -> int:
        """See `Room.keep`."""
        return await self._keeper.keep(ROOM, name, type, payload, key, ttl)

    async def read(self, name: RoomName, after: int | None, last: int | None) -> list[KeptMessage]:
        """See `Room.history`."""
        box, store = box_of(ROOM, name), self._keeper.store
        position = _position(after, last, 0 if last is None else await self._newest(box))
        found: list[KeptMessage] = []
        while True:
            page = await store.read(box, position, PAGE)
            for record in page.records:
                message = self._keeper.decode(box, record)
                if message is not None:
                    found.append(KeptMessage(message.number, message.at, message.type, message.payload))
            if len(page.records) < PAGE:
                return found
            position = page.records[-1].number

    async def enter(self, name: RoomName, conn: WseConnection, after: int | None, last: int | None) -> None:
        """Add a connection to the room, and return when it has got what was kept; see `Room.add`."""
        box, keeper = box_of(ROOM, name), self._keeper
        newest = await self._newest(box)
        position = _position(after, last, newest)
        if position > newest:  # the engine has lost the box, and counts anew
            position = 0
        there = keeper.endpoint.scheduler.create_future()
        member = Member(conn, position, newest, there)
        self._rooms.add(name, conn)
        if not conn._session.valid:
            return
        self._read(name, member)
        await self._rooms.subscribed()
        keeper.look_at(box)
        await there

    def places(self, conn: WseConnection) -> dict[str, tuple[int, str]]:
        """How far a connection has read in its rooms, by their encoded names."""
        places: dict[str, tuple[int, str]] = {}
        for name in self._rooms.of(conn):
            box = self._boxes.get((name, conn.conn_id))
            reader = None if box is None else self._keeper.reader(box, conn)
            if reader is not None:
                places[encode_name(name)] = reader.position, reader.epoch
        return places

    def go_on(self, conn: WseConnection, places: dict[str, tuple[int, str]]) -> None:
        """Let a connection that has come from another node read on in its rooms."""
        there = self._keeper.endpoint.scheduler.create_future()
        for encoded, (position, epoch) in places.items():
            name = decode_name(encoded)
            if name in self._rooms.of(conn):
                self._read(name, Member(conn, position, 0, there, epoch))
                self._keeper.look_at(box_of(ROOM, name))

    def _read(self, name: RoomName, member: Member) -> None:
        box = self._boxes[name, member.conn.conn_id] = box_of(ROOM, name)
        self._keeper.add(box, member, Kept.plain)

    def leave(self, name: RoomName, conn: WseConnection) -> None:
        """A connection has left a room."""
        box = self._boxes.pop((name, conn.conn_id), None)
        if box is not None:
            self._keeper.remove(box, conn)

    async def _newest(self, box: str) -> int:
        (newest,) = await self._keeper.store.last([box])
        return newest


def _position(after: int | None, last: int | None, newest: int) -> int:
    """The number after which a reader begins.

    Raises:
        TypeError: Neither or both are given, or the one is no integer.
        ValueError: It is negative.
    """
    for name, value in (("after, the number of a message,", after), ("last, how many messages,", last)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, as {value} is")
    if after is not None and last is None:
        return min(after, MAX_NUMBER)
    if last is not None and after is None:
        return max(0, newest - last)
    raise TypeError("give either after, the number of a message, or last, how many messages")
