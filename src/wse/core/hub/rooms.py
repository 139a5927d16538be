"""Rooms: named sets of connections that messages can be sent to."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, overload

from wse.core.hub.connection import WseConnection, WseIdentity
from wse.core.hub.network import ROOM
from wse.core.hub.presence.board import Board
from wse.core.hub.presence.presence import Presence
from wse.core.session.states import decode_state
from wse.errors import ErrorCode, WseError
from wse.types import ClientId, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Hashable, Mapping

    from wse.core.hub.connection import Exclude
    from wse.core.hub.kept.histories import Histories, KeptMessage
    from wse.core.hub.network import Network
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.signals import Signal


class Host(typing.Protocol):
    """A hub, as its rooms see it."""

    endpoint: Endpoint
    network: Network

    def signal(self, name: str, *takes: str) -> Signal[*tuple[Any, ...]]:
        """A signal whose listeners' failures are reported."""
        ...

    def send_to(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        exclude: Exclude = None,
        key: MessageKey | None = None,
    ) -> None:
        """Send to valid connections of this node, and to those of that name on other nodes."""


class RoomSignals:
    """The signals of a room: `room.when`. Both fire on the node that holds the connection.

    Attributes:
        joined: `(conn)`: a connection has been added.
        left: `(conn)`: a connection has been removed, or has ended.
    """

    __slots__ = ("joined", "left")

    def __init__(self, hub: Host) -> None:
        self.joined: Signal[WseConnection] = hub.signal("joined", "conn")
        self.left: Signal[WseConnection] = hub.signal("left", "conn")


class Room:
    """A room: `server.room(name)`.

    A room exists while it has members. A connection may be in any number of rooms, and leaves them when it ends.

    Attributes:
        name: The room's name: any hashable value; in a cluster, a string or an integer.
    """

    __slots__ = ("_rooms", "name")

    def __init__(self, rooms: Rooms, name: RoomName) -> None:
        self._rooms = rooms
        self.name = name

    @overload
    def add(self, member: WseConnection | WseIdentity) -> None: ...
    @overload
    def add(self, member: WseConnection, *, last: int) -> Coroutine[Any, Any, None]: ...
    @overload
    def add(self, member: WseConnection, *, after: int) -> Coroutine[Any, Any, None]: ...
    def add(
        self, member: WseConnection | WseIdentity, *, after: int | None = None, last: int | None = None
    ) -> Coroutine[Any, Any, None] | None:
        """Add a connection, or all connections that a user has now, including those on other nodes of the cluster.

        Nothing happens for a connection that is in the room, is not yet accepted, or has ended.

        With `after` or `last`, `await room.add(conn, last=50)` adds a connection and sends it what is kept for the room
        (`keep`), and then what comes, with no gap and no duplicate. It returns when the connection has what had been
        kept until then. A connection that is in the room gets these messages again.

        Args:
            member: The connection or the user.
            after: The number of a kept message: the connection gets those that follow it.
            last: How many kept messages the connection gets at most.

        Raises:
            TypeError: It is neither a connection nor an identity; a user with `after` or `last`; both of these.
            WseError: With `after` or `last`: `BROKER_UNAVAILABLE`; `UNSUPPORTED`, if the server keeps nothing.
        """
        self._rooms.check_thread()
        if after is not None or last is not None:
            if not isinstance(member, WseConnection):
                raise TypeError("what is kept can be sent to one connection at a time, not to a user")
            return self._rooms.kept.enter(self.name, member, after, last)
        for conn in _connections(member):
            self._rooms.add(self.name, conn)
        if isinstance(member, WseIdentity):
            self._rooms.enter_elsewhere(self.name, member.cid, enter=True)
        return None

    def discard(self, member: WseConnection | WseIdentity) -> None:
        """Remove a connection, or all connections of a user. Connections that are not in the room are ignored.

        Raises:
            TypeError: It is neither a connection nor an identity.
        """
        self._rooms.check_thread()
        for conn in _connections(member):
            self._rooms.discard(self.name, conn)
        if isinstance(member, WseIdentity):
            self._rooms.enter_elsewhere(self.name, member.cid, enter=False)

    def send(
        self, type: MessageType, payload: Any = None, *, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send a message to every connection in the room, on all nodes of the cluster.

        Args:
            type: The message's type.
            payload: The payload of the message.
            exclude: A connection, or a user (by `cid` or identity), that does not receive the message.
            key: As for `WseConnection.send`.

        Raises:
            WseError: As `WseConnection.send`.
        """
        self._rooms.send(self.name, type, payload, exclude, key)

    async def keep(
        self, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """Keep a message for the room, and send it to every connection in the room.

        Connections that enter later may get it: see `add` and `history`. When this returns, the message is stored.

        Args:
            type: The message's type.
            payload: The message's content.
            key: A repeat with the same key within 5 minutes is the same message.
            ttl: Seconds for which it is kept, if that is less than `Inbox.ttl`.

        Returns:
            Its number among the messages that have been kept for the room, which count from 1.

        Raises:
            WseError, TypeError, ValueError: As `WseServer.keep`.
        """
        return await self._rooms.kept.keep(self.name, type, payload, key, ttl)

    async def history(self, *, after: int | None = None, last: int | None = None) -> list[KeptMessage]:
        """Return what is kept for the room, the oldest first. Who may read it is the application's decision.

        Args:
            after: The number of a message: those that follow it.
            last: The newest ones, at most so many.

        Raises:
            WseError: `BROKER_UNAVAILABLE`; `UNSUPPORTED`: the server keeps nothing.
            TypeError: Neither or both are given, or it is no integer.
            ValueError: It is negative.
        """
        self._rooms.check_thread()
        return await self._rooms.kept.read(self.name, after, last)

    async def members(self) -> frozenset[Any]:
        """Return the `cid`s of the users with a connection in the room.

        In a cluster, this asks every node. If a node does not answer within a second, its users are missing.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster: the broker cannot be reached, or a node answers with an error.
        """
        self._rooms.check_thread()
        return await self._rooms.members(self.name)

    @property
    def presence(self) -> Presence:
        """What the members of the room show each other.

        Raises:
            WseError: `UNSUPPORTED`: the room has no presence; `server.room(name, presence=True)` gives it one.
        """
        return self._rooms.presence(self.name)

    @property
    def when(self) -> RoomSignals:
        """The room's signals. Once used, the server keeps them as long as it lives, even while the room is empty."""
        return self._rooms.signals(self.name)

    def __repr__(self) -> str:
        return f"<Room {self.name}>"


class Hooks:
    """What is to be told when members come and go, of a room for which anything is.

    Attributes:
        signals: The application's.
        board: What the members show each other.
    """

    __slots__ = ("board", "signals")

    def __init__(self) -> None:
        self.signals: RoomSignals | None = None
        self.board: Board | None = None

    def joined(self, conn: WseConnection, silent: bool) -> None:
        if self.board is not None:
            self.board.enter(conn)
        if self.signals is not None and not silent:
            self.signals.joined._emit(conn)

    def left(self, conn: WseConnection, silent: bool) -> None:
        if self.board is not None:
            self.board.leave(conn)
        if self.signals is not None and not silent:
            self.signals.left._emit(conn)


class Rooms:
    """The rooms of a hub, with its own connections in them."""

    def __init__(self, hub: Host) -> None:
        self._hub = hub
        self._members: dict[RoomName, dict[str, WseConnection]] = {}
        self._rooms_of: dict[str, set[RoomName]] = {}  # by conn_id, only for connections in a room
        self._hooks: dict[RoomName, Hooks] = {}
        self.histories: Histories | None = None

    @property
    def kept(self) -> Histories:
        """What is kept for the rooms.

        Raises:
            WseError: `UNSUPPORTED`.
        """
        if self.histories is None:
            raise keeps_nothing()
        return self.histories

    async def subscribed(self) -> None:
        """Return when all messages to the rooms come here."""
        await self._hub.network.subscribed()

    def check_thread(self) -> None:
        """Reject a call from another thread; see `Endpoint.check_thread`."""
        self._hub.endpoint.check_thread()

    def signals(self, name: RoomName) -> RoomSignals:
        hooks = self._hooks_of(name)
        if hooks.signals is None:
            hooks.signals = RoomSignals(self._hub)
        return hooks.signals

    def _hooks_of(self, name: RoomName) -> Hooks:
        hooks = self._hooks.get(name)
        if hooks is None:
            hooks = self._hooks[name] = Hooks()
        return hooks

    def board(self, name: RoomName) -> Board | None:
        """What the members of a room show each other, if it has presence."""
        hooks = self._hooks.get(name)
        return None if hooks is None else hooks.board

    def make_board(self, name: RoomName) -> Board:
        """Give a room presence, unless it has it already."""
        hooks = self._hooks_of(name)
        if hooks.board is None:
            hooks.board = Board(self._hub, name)
            for conn in self.local(name):
                hooks.board.enter(conn)
        return hooks.board

    def states_of(self, conn: WseConnection) -> dict[RoomName, tuple[bytes | None, float | None]]:
        """What a connection shows in its rooms with presence, and for how many seconds."""
        boards = {name: board for name in self.of(conn) if (board := self.board(name)) is not None}
        return {name: board.state_of(conn) for name, board in boards.items()}

    def show(self, name: RoomName, conn: WseConnection, state: tuple[bytes | None, float | None]) -> None:
        """Show again what a connection has shown on another node."""
        board = self.make_board(name)
        data, ttl = state
        if data is not None and (ttl is None or ttl > 0) and conn.conn_id in board.members:
            board.set(conn, decode_state(data), data, ttl)

    def presence(self, name: RoomName) -> Presence:
        board = self.board(name)
        if board is None:
            problem = f"room {name!r} has no presence: server.room(name, presence=True) gives it one"
            raise WseError(ErrorCode.UNSUPPORTED, {"extension": "rooms"}, problem)
        return Presence(self._hub.endpoint, board)

    def local(self, name: RoomName) -> Collection[WseConnection]:
        """The connections of this node that are in the room."""
        members = self._members.get(name)
        return () if members is None else members.values()

    @property
    def by_name(self) -> Mapping[RoomName, Mapping[str, WseConnection]]:
        """The rooms with members on this node, and these by their `conn_id`."""
        return self._members

    def local_users(self, name: RoomName) -> frozenset[ClientId]:
        """The users with a connection of this node in the room."""
        return frozenset(conn.cid for conn in self.local(name))

    async def members(self, name: RoomName) -> frozenset[ClientId]:
        here = self.local_users(name)
        return here | await self._hub.network.members(name)

    def of(self, conn: WseConnection) -> Collection[RoomName]:
        """The rooms that a connection is in."""
        return self._rooms_of.get(conn.conn_id, ())

    def add(self, name: RoomName, conn: WseConnection, *, silent: bool = False) -> None:
        if not conn._session.valid:
            return
        members = self._members.get(name)
        if members is None:
            self._hub.network.want_room(name)
            members = self._members[name] = {}
        if conn.conn_id not in members:
            members[conn.conn_id] = conn
            self._rooms_of.setdefault(conn.conn_id, set()).add(name)
            if name in self._hooks:
                self._hooks[name].joined(conn, silent)

    def discard(self, name: RoomName, conn: WseConnection) -> None:
        rooms = self._rooms_of.get(conn.conn_id)
        if rooms is not None and name in rooms:
            rooms.remove(name)
            if not rooms:
                del self._rooms_of[conn.conn_id]
            self._take_out(name, conn)

    def forget(self, conn: WseConnection, *, silent: bool = False) -> None:
        """Remove a connection that has ended from all its rooms; silently, if it is in them on another node."""
        for name in self._rooms_of.pop(conn.conn_id, ()):
            self._take_out(name, conn, silent=silent)

    def send(
        self, name: RoomName, type: MessageType, payload: Any, exclude: Exclude, key: MessageKey | None = None
    ) -> None:
        self._hub.send_to(ROOM, name, self.local(name), type, payload, exclude, key)

    def enter_elsewhere(self, name: RoomName, cid: ClientId, *, enter: bool) -> None:
        """Add or remove a user on the other nodes as well."""
        self._hub.network.enter(name, cid, enter=enter)

    def _take_out(self, name: RoomName, conn: WseConnection, *, silent: bool = False) -> None:
        members = self._members[name]
        del members[conn.conn_id]
        if self.histories is not None:
            self.histories.leave(name, conn)
        if not members:
            del self._members[name]
            self._hub.network.unwant_room(name)
        if name in self._hooks:
            self._hooks[name].left(conn, silent)


def keeps_nothing() -> WseError:
    """The error of a server that keeps no messages."""
    return WseError(
        ErrorCode.UNSUPPORTED, {"extension": "inbox"}, "the server keeps no messages: set WseServer(inbox=True)"
    )


def _connections(member: WseConnection | WseIdentity) -> tuple[WseConnection, ...]:
    if isinstance(member, WseIdentity):
        return tuple(member.conns.values())
    if isinstance(member, WseConnection):
        return (member,)
    raise TypeError(
        f"a member of a room is a WseConnection or a WseIdentity, such as conn or conn.client, not {member!r:.100}"
    )
