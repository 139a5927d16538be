"""The presence of a room, as the application sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.session.states import check_ttl, decode_state, encode_state

if TYPE_CHECKING:
    from wse.core.hub.connection import WseConnection
    from wse.core.hub.presence.board import Board
    from wse.core.session.endpoint import Endpoint


class Presence:
    """What the members of a room show each other: `server.room(name, presence=True).presence`.

    Each device of a user may have a state, such as the place of its cursor. A client that enters the room gets all
    states, and then what changes.
    """

    __slots__ = ("_board", "_endpoint")

    def __init__(self, endpoint: Endpoint, board: Board) -> None:
        self._endpoint = endpoint
        self._board = board

    def set(self, conn: WseConnection, state: Any, ttl: float | None = None) -> None:
        """Set the state of a member of the room. It replaces the one before.

        It is shown until it is cleared, `ttl` is over, or the connection leaves the room or ends. A session that
        outlives its connection keeps it. Nothing happens for a connection that has ended.

        Args:
            conn: The connection, on this node.
            state: Any value but `None` that MessagePack can carry.
            ttl: Seconds for which it is shown, unless it is set again.

        Raises:
            ValueError: The connection is not in the room; the `ttl` is none.
            TypeError: The state is `None`, or cannot be encoded.
            WseError: `LIMIT_EXCEEDED`: the state is larger than `Limits.state_size`.
        """
        self._endpoint.check_thread()
        check_ttl(ttl)
        data = encode_state(state, self._endpoint.limits.state_size)
        if self._is_member(conn):
            self._board.set(conn, decode_state(data), data, ttl)

    def clear(self, conn: WseConnection) -> None:
        """Take away the state of a member. Nothing happens if it has none.

        Raises:
            ValueError: The connection is not in the room.
        """
        self._endpoint.check_thread()
        if self._is_member(conn):
            self._board.clear(conn)

    @property
    def members(self) -> dict[Any, dict[str, Any]]:
        """The users with a state, each with the states of its devices by `conn_id`.

        In a cluster, it covers the users of all nodes as long as this node has a member in the room.
        """
        members: dict[Any, dict[str, Any]] = {}
        for (user, device), state in self._board.states.items():
            members.setdefault(user, {})[device] = state.value
        return members

    def _is_member(self, conn: WseConnection) -> bool:
        if conn.conn_id in self._board.members:
            return True
        if conn._session.valid:
            raise ValueError(f"{conn!r} is not in the room {self._board.name!r}: add it first")
        return False

    def __repr__(self) -> str:
        return f"<Presence of {self._board.name} with {len(self._board.states)} states>"
