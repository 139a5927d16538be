"""Clients that enter rooms by themselves, and show states there: the extension `rooms` (WIRE.md section 7)."""

from __future__ import annotations

import typing
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from wse.core.hub.presence.watchers import EXTENSION
from wse.core.names import encode_name
from wse.core.session.extensions import Extension
from wse.core.session.signals import HANDLER_ERRORS
from wse.core.session.states import check_ttl, encode_state
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wse.core.hub.connection import ServerSession
    from wse.core.hub.network import Network
    from wse.core.hub.rooms import Rooms
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.extensions import Control
    from wse.types import MessageType, RoomName

MOST_OF_A_NAME: Final = 200
"""Characters of the name of a room that a client enters."""


class Host(typing.Protocol):
    """A hub, as this extension sees it."""

    endpoint: Endpoint
    network: Network
    rooms: Rooms


class Entering:
    """A client that waits for the guard of a room; it lives as long as the calls that wait.

    Attributes:
        has_left: Whether the client has left the room meanwhile, so that the verdict comes too late.
    """

    __slots__ = ("__weakref__", "has_left")

    def __init__(self) -> None:
        self.has_left = False


class RoomsExtension(Extension):
    """`rooms`: clients enter and leave rooms, and are told of states.

    Args:
        hub: The rooms.

    Attributes:
        guard: Decides who may enter, `fn(conn, name)`; without it, nobody may.
    """

    name = EXTENSION

    def __init__(self, hub: Host) -> None:
        self._hub = hub
        self.guard: Callable[[Any, RoomName], Any] | None = None
        self._entering: WeakValueDictionary[tuple[str, RoomName], Entering] = WeakValueDictionary()

    def answer(self, session: ServerSession) -> Any:
        limits = self._hub.endpoint.limits
        return {"device": session.conn.conn_id, "state": limits.state_size}

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.join: self._join, types.leave: self._leave, types.set: self._set}

    # Calls.

    def _join(self, session: ServerSession, name: Any, stamp: Any) -> None:
        if not stamp:
            session.violation("a client enters a room by a call")
            return
        type_ = _types(session).join
        try:
            self._check(session, name)
        except WseError as exc:
            session._answer_error(exc, type_, name, stamp)
            return
        assert self.guard is not None  # as has been checked
        try:
            result = session.invoke(self.guard, name)
            if isawaitable(result) or self._hub.network.reaches_others:
                result = self._enter_later(session, name, result, self._waiting(session, name))
            else:
                result = self._enter(session, name, result)
        except HANDLER_ERRORS as exc:
            session._procedure_failed(exc, type_, name, stamp)
            return
        if isawaitable(result):
            session._answer_when_done(result, type_, name, stamp)
        else:
            session._answer(result, type_, name, stamp)

    def _check(self, session: ServerSession, name: Any) -> None:
        """Refuse to ask the guard.

        Raises:
            WseError: `INVALID_PAYLOAD`; `NOT_AUTHORIZED`: there is no guard; `LIMIT_EXCEEDED`.
        """
        if not is_name(name):
            problem = f"a room's name is an integer, or a string of 1 to {MOST_OF_A_NAME} characters"
            raise WseError(ErrorCode.INVALID_PAYLOAD, {}, problem)
        if self.guard is None:
            raise WseError(ErrorCode.NOT_AUTHORIZED, {"room": name}, "the server has no room guard")
        most, rooms = self._hub.endpoint.limits.rooms, self._hub.rooms.of(session.conn)
        if most is not None and len(rooms) >= most and name not in rooms:
            raise session.exceeded("rooms")

    def _enter(self, session: ServerSession, name: RoomName, verdict: Any) -> bool:
        """Let a client in, unless the guard has said no; returns whether the room has presence.

        Raises:
            WseError: `NOT_AUTHORIZED`; as `_check`, since others may have been entered meanwhile.
        """
        if verdict is False:
            raise WseError(ErrorCode.NOT_AUTHORIZED, {"room": name}, "the room guard has refused the client")
        self._check(session, name)
        rooms, conn = self._hub.rooms, session.conn
        board = rooms.board(name)
        if board is not None and conn.conn_id in board.members:
            board.watchers.add(conn)  # it has forgotten what it has seen
        rooms.add(name, conn)
        self._check_inside(session, name)
        return board is not None

    def _check_inside(self, session: ServerSession, name: RoomName) -> None:
        """Refuse a client that the application has removed again, which has been told that already.

        Raises:
            WseError: `NOT_AUTHORIZED`.
        """
        if session.valid and name not in self._hub.rooms.of(session.conn):
            raise WseError(ErrorCode.NOT_AUTHORIZED, {"room": name}, "the server has removed the client again")

    def _waiting(self, session: ServerSession, name: RoomName) -> Entering:
        return self._entering.setdefault((session.conn.conn_id, name), Entering())

    async def _enter_later(self, session: ServerSession, name: RoomName, awaitable: Any, entering: Entering) -> bool:
        verdict = await awaitable if isawaitable(awaitable) else awaitable
        if entering.has_left:
            raise WseError(ErrorCode.NOT_AUTHORIZED, {"room": name}, "the client has left the room meanwhile")
        has_presence = self._enter(session, name, verdict)
        board = self._hub.rooms.board(name)
        if board is not None:
            await self._hub.network.gathered(board)
            self._check_inside(session, name)
        return has_presence

    def _leave(self, session: ServerSession, name: Any, stamp: Any) -> None:
        if not stamp or not is_name(name):
            session.violation("a client leaves a room by a call with its name")
            return
        entering = self._entering.pop((session.conn.conn_id, name), None)
        if entering is not None:
            entering.has_left = True
        self._hub.rooms.discard(name, session.conn)
        session._answer(None, _types(session).leave, name, stamp)

    # Messages.

    def _set(self, session: ServerSession, payload: Any, stamp: Any) -> None:
        try:
            name, state, ttl = payload
            check_ttl(ttl)
            if stamp or not is_name(name):
                raise ValueError(name)
            data = None if state is None else encode_state(state, self._hub.endpoint.limits.state_size)
        except (TypeError, ValueError):
            session.violation("a client sets a state by a message of the room, the state and its ttl")
            return
        except WseError:
            session.exceeded("state_size")
            return
        conn, board = session.conn, self._hub.rooms.board(name)
        if name not in self._hub.rooms.of(conn):
            session.write(_types(session).presence, [name, None])  # it has been removed, and does not know yet
        elif board is not None and data is None:
            board.clear(conn)
        elif board is not None and data is not None:
            board.set(conn, state, data, ttl)


def is_name(name: Any) -> bool:
    """Whether a client may enter a room with this name."""
    if isinstance(name, str):
        try:
            return 0 < len(name) <= MOST_OF_A_NAME and bool(encode_name(name))
        except ValueError:
            return False
    return isinstance(name, int) and not isinstance(name, bool) and -(2**63) <= name < 2**64


def _types(session: ServerSession) -> ExtensionTypes:
    types = session.protocol.extensions
    assert types is not None  # or its client could not know the extension
    return types
