"""The members of a room on this node that are told of states: a snapshot when they enter, then what has changed.

What many get is encoded once. A member whose socket does not take more is left behind: it is noted what has changed,
and when the socket takes more, the member gets the present states of that. So nothing waits for it in memory, and it
never gets a state that is no longer shown.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Final

from wse.core.hub.fanout import deliver
from wse.core.packed import encode
from wse.errors import WseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.presence.board import Key, State
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageType, RoomName

EXTENSION: Final = "rooms"
"""The extension that a client must know to be told."""

FRAME: Final = 32 * 1024
"""Bytes of states, in MessagePack, that are told in one message."""

OVERHEAD: Final = 64
"""Bytes beside a state that an entry has: the user and the device."""


class Shown(typing.Protocol):
    """A board, as those that are told see it."""

    name: RoomName
    states: dict[Key, State]


class Watchers:
    """The members that are told.

    Args:
        endpoint: Counters, and the way to report.
        board: The states.
    """

    __slots__ = ("_behind", "_board", "_conns", "_endpoint", "_snapshots")

    def __init__(self, endpoint: Endpoint, board: Shown) -> None:
        self._endpoint = endpoint
        self._board = board
        self._conns: dict[str, WseConnection] = {}
        self._behind: dict[str, dict[Key, None] | None] = {}  # what members lack; `None` for everything
        self._snapshots: dict[Protocol, list[Packed]] = {}

    def add(self, conn: WseConnection) -> None:
        """Send a snapshot to a member, and the changes that follow, if its client knows the extension."""
        session = conn._session
        if EXTENSION not in session.agreement.names:
            return
        self._conns[conn.conn_id] = conn
        if not session._direct:
            self._leave_behind(conn, None)
            return
        protocol = session.protocol
        snapshot = self._snapshots.get(protocol)
        if snapshot is None:
            keys = list(self._board.states)
            snapshot = self._snapshots[protocol] = self._whole(protocol, keys)
        for packed in snapshot:
            self._write(session, packed)

    def remove(self, conn: WseConnection) -> None:
        """A member has left. If its connection goes on, its client is told that it sees the room no more."""
        if self._conns.pop(conn.conn_id, None) is not None:
            self._behind.pop(conn.conn_id, None)
            session = conn._session
            types = session.protocol.extensions
            if session.valid and types is not None:
                session.write(types.presence, [self._board.name, None])

    def changed(self) -> None:
        """A snapshot that was made before is out of date."""
        if self._snapshots:
            self._snapshots.clear()

    def tell(self, keys: Mapping[Key, None]) -> None:
        """Tell the states of these devices."""
        conns = self._conns
        ready: list[WseConnection] = []
        slow: list[WseConnection] = []
        behind = self._behind
        for conn in conns.values():
            (ready if conn._session._direct and conn.conn_id not in behind else slow).append(conn)
        by_protocol: dict[Protocol, list[WseConnection]] = {}
        if len(self._endpoint.protocols) == 1:
            by_protocol[self._endpoint.protocols[0]] = ready
        else:
            for conn in ready:
                by_protocol.setdefault(conn._session.protocol, []).append(conn)
        for conn in slow:
            self._leave_behind(conn, keys)
        for protocol, group in by_protocol.items():
            if group and protocol.extensions is not None:
                self._deliver(group, protocol, protocol.extensions.presence, list(keys))

    def _deliver(self, conns: list[WseConnection], protocol: Protocol, type: MessageType, keys: list[Key]) -> None:
        while keys and conns:
            told = self._fill(keys)
            keys = keys[len(told) :]
            for packed in self._encoded(protocol, told, is_whole=False):
                deliver(self._endpoint, conns, type, {protocol: packed})
            for conn in [conn for conn in conns if keys and not conn._session._direct]:
                conns.remove(conn)
                self._leave_behind(conn, dict.fromkeys(keys))

    # Members that are behind.

    def _leave_behind(self, conn: WseConnection, keys: Mapping[Key, None] | None) -> None:
        """Note what a member lacks, until it takes more."""
        if conn.conn_id not in self._behind:
            self._behind[conn.conn_id] = None if keys is None else dict(keys)
            self._endpoint.scheduler.spawn(self._catch_up(conn))
            return
        lacks = self._behind[conn.conn_id]
        if keys is None or (lacks is not None and len(lacks) > 2 * len(self._board.states) + 1000):
            self._behind[conn.conn_id] = None  # most of it has gone: a snapshot is smaller
        elif lacks is not None:
            lacks.update(keys)

    async def _catch_up(self, conn: WseConnection) -> None:
        """Tell a member what it lacks, at the pace at which its socket takes it."""
        session, conn_id = conn._session, conn.conn_id
        while self._conns.get(conn_id) is conn and conn_id in self._behind and not session.ended:
            await session.drain()
            if self._conns.get(conn_id) is not conn or conn_id not in self._behind or session.ended:
                break
            lacks = self._behind[conn_id]
            is_whole = lacks is None
            keys = list(self._board.states) if lacks is None else list(lacks)
            told = self._fill(keys)
            rest = keys[len(told) :]
            if rest:
                self._behind[conn_id] = dict.fromkeys(rest)
            else:
                del self._behind[conn_id]
            self._tell_one(session, told, is_whole=is_whole)

    def _tell_one(self, session: ServerSession, keys: list[Key], *, is_whole: bool) -> None:
        packed = self._encode(session.protocol, keys, is_whole=is_whole)
        if packed is not None and session.takes(packed.data):
            self._write(session, packed)
        elif packed is not None and len(keys) <= 1:
            session.skip(packed.data, {"room": self._board.name})
        elif len(keys) > 1:
            middle = len(keys) // 2
            self._tell_one(session, keys[:middle], is_whole=is_whole)
            self._tell_one(session, keys[middle:], is_whole=False)

    # Messages.

    def _write(self, session: ServerSession, packed: Packed) -> None:
        counters = self._endpoint.counters
        counters.messages_out += 1
        counters.bytes_out += len(packed.data)
        session.write_packed(packed)

    def _fill(self, keys: list[Key]) -> list[Key]:
        """The first of these devices, as many as one message tells of; at least one."""
        states, size = self._board.states, 0
        for count, key in enumerate(keys):
            state = states.get(key)
            size += OVERHEAD + (0 if state is None else len(state.data))
            if size > FRAME and count:
                return keys[:count]
        return keys

    def _whole(self, protocol: Protocol, keys: list[Key]) -> list[Packed]:
        """The messages that tell everything. The first one replaces what was told before."""
        told = self._fill(keys)
        frames = self._encoded(protocol, told, is_whole=True)
        while keys := keys[len(told) :]:
            told = self._fill(keys)
            frames += self._encoded(protocol, told, is_whole=False)
        return frames

    def _encoded(self, protocol: Protocol, keys: list[Key], *, is_whole: bool) -> list[Packed]:
        """The message, or smaller ones without what the protocol cannot carry."""
        packed = self._encode(protocol, keys, is_whole=is_whole)
        if packed is not None:
            return [packed]
        middle = len(keys) // 2
        if not middle:
            return self._encoded(protocol, [], is_whole=True) if is_whole else []
        first = self._encoded(protocol, keys[:middle], is_whole=is_whole)
        return first + self._encoded(protocol, keys[middle:], is_whole=False)

    def _encode(self, protocol: Protocol, keys: list[Key], *, is_whole: bool) -> Packed | None:
        """One message; `None` if the protocol cannot carry it, which is reported for a single state."""
        assert protocol.extensions is not None  # or its clients could not know the extension
        states = self._board.states
        entries = [(*key, None if (state := states.get(key)) is None else state.value) for key in keys]
        payload: tuple[Any, ...] = (self._board.name, entries, True) if is_whole else (self._board.name, entries)
        try:
            return encode(protocol, protocol.extensions.presence, payload)
        except WseError as exc:
            if len(keys) <= 1:
                self._endpoint.report(exc)
            return None
