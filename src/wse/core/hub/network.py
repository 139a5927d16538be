"""All nodes of a cluster, as the hub of one of them sees them."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wse.types import ClientId, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Hashable, Sequence

    from wse.core.hub.calls import Callee
    from wse.core.hub.connection import ServerSession, WseConnection, WseIdentity
    from wse.core.hub.fallback import Watch
    from wse.core.hub.handshake import Returning
    from wse.core.hub.moving import Luggage
    from wse.core.hub.presence.board import Board, Entry
    from wse.core.hub.tickets import Claim, Refusal
    from wse.core.packed import Packed
    from wse.core.ports.store import Record

EVERYONE, USER, ROOM = "all", "u.", "r."
"""The kinds of receivers that a message can have."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of a user, on any node of the cluster.

    Attributes:
        cid: The user's id.
        conn_id: The connection's id.
        node: The id of the node that it is connected to; an empty string on a server without a cluster.
        away: Whether its connection is broken, and its session waits for its client to come back.
    """

    cid: Any
    conn_id: str
    node: str = ""
    away: bool = False


class Fetched(typing.Protocol):
    """A session that has come from another node."""

    luggage: Luggage

    def settle(self, conn: WseConnection) -> None:
        """Make the connection a part of this node: its rooms, its place among the user's devices, and the messages that
        have come for it meanwhile.
        """

    def catch_up(self, conn: WseConnection) -> None:
        """Do with the connection what was to be done meanwhile."""


class Network(typing.Protocol):
    """All nodes, as one of their hubs sees them."""

    reaches_others: bool
    """Whether a user without a connection here may have one on another node."""

    @property
    def healthy(self) -> bool:
        """Whether this node receives from the others, and they from it."""
        ...

    async def open(self) -> None:
        """Join the other nodes, if that has not happened.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """

    async def close(self) -> None:
        """Leave the other nodes, after all connections have ended; harmless if it is not open."""

    # A device comes and goes.

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        """Make a connection the user's, and welcome it, now or when all nodes know."""

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, grace: float | None) -> None:
        """Note that a connection of a user has ended.

        Args:
            conn: The connection.
            identity: Its user.
            code: Of the close.
            reason: The same.
            grace: If it was the user's last one here: seconds that the user has to return before `left` fires.
        """

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None:
        """Close the user's devices here that have no welcome yet."""

    # Sessions that move from node to node.

    @property
    def name(self) -> str:
        """The name of this node in the ids of sessions; empty if there are no other nodes."""
        ...

    @property
    def has_others(self) -> bool:
        """Whether there are other nodes at the moment, which can take over sessions."""
        ...

    def announce_end(self) -> None:
        """Tell the other nodes that this one closes, and takes over no sessions."""

    async def fetch(
        self, holder: str, claim: Claim, cid: ClientId, protocol: str, is_wanted: Callable[[], bool]
    ) -> Fetched | Refusal:
        """Fetch a session from the node that has had it last, or from the one that has it now.

        Args:
            holder: The node.
            claim: What the client claims.
            cid: The user, as whom the client was accepted.
            protocol: The name of the message protocol that it speaks.
            is_wanted: Whether the client is still there.
        """
        ...

    async def find(self, holder: str, claim: Claim) -> Returning | None:
        """The user of a session that another node has, if the client knows its key."""
        ...

    def mark(self, conn: WseConnection) -> None:
        """Note that a connection has become detached, or attached again."""

    def moved(self, conn: WseConnection, to: str) -> None:
        """Note that a connection goes on at another node."""

    # Messages.

    def send(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
        key: MessageKey | None,
    ) -> None:
        """Send to these connections, and on other nodes to all of that kind and name except the excluded.

        Raises:
            WseError: As `WseConnection.send`.
        """

    def kept(self, kind: str, name: Hashable, record: Record) -> None:
        """Tell the other nodes of a message that this one has put into the store.

        Args:
            kind: As for `send`.
            name: The user or the room.
            record: The message.
        """

    def watch(self, watch: Watch) -> None:
        """Find out whether anybody on another node gets all that the user has been sent until now, and call
        `Fallbacks.settle`.
        """

    def drop(self, cid: ClientId, reason: str, code: int) -> None:
        """Disconnect the user's devices of other nodes."""

    # Rooms.

    async def subscribed(self) -> None:
        """Return when this node gets all messages that it has asked for.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """

    def want_room(self, name: RoomName) -> None:
        """Note that the first connection of this node has entered the room."""

    def unwant_room(self, name: RoomName) -> None:
        """Note that the last connection of this node has left the room."""

    def enter(self, name: RoomName, cid: ClientId, *, enter: bool) -> None:
        """Add the user's devices of other nodes to the room, or remove them."""

    async def members(self, name: RoomName) -> frozenset[ClientId]:
        """The users in the room on other nodes, as far as those answer in time."""
        ...

    # Presence in rooms.

    def open_board(self, board: Board) -> None:
        """The first connection of this node has entered a room with presence: get the states of the other nodes."""

    def close_board(self, board: Board) -> None:
        """The last connection of this node has left the room."""

    def post(self, board: Board, entries: list[Entry]) -> None:
        """Tell the other nodes of changes in this node's part."""

    async def gathered(self, board: Board) -> None:
        """Return when the states of the other nodes have come, as far as those answer in time."""

    # Presence.

    async def callees(self, cid: ClientId) -> list[Callee]:
        """The user's devices anywhere, the oldest first."""
        ...

    async def locate(self, callees: Sequence[Callee]) -> list[Callee]:
        """Those that are there, ready to be called with options.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        ...

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """The same, as values for the application."""
        ...

    async def online(self) -> int:
        """How many users have a device anywhere."""
        ...

    def users(self) -> AsyncIterator[ClientId]:
        """The users that have a device anywhere."""
        ...
