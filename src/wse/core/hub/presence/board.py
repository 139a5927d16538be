"""The states of the members of one room, as this node knows them.

A node holds the states of its own connections, and is told those of the other nodes. The *part* of a node are the
states that it holds. Each is of one device of a user. Changes are collected for a short time and told together: to the
members of this node, and to the other nodes.
"""

from __future__ import annotations

import typing
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from wse.core.hub.presence.watchers import Watchers
from wse.core.session.states import decode_state
from wse.types import ClientId, RoomName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wse.core.hub.connection import WseConnection
    from wse.core.hub.network import Network
    from wse.core.ports.scheduling import Timer
    from wse.core.session.endpoint import Endpoint

INTERVAL: Final = 0.05
"""Seconds between two reports of changes. The first change after a pause is told in the next turn of the event loop."""

OWN: Final = ""
"""Stands for this node among the nodes that hold parts."""

Key: TypeAlias = tuple[ClientId, str]
"""A user, and a device of the user."""


class State(NamedTuple):
    """What a device shows.

    Attributes:
        origin: The node that holds it.
        value: The state, of plain values.
        data: The same in MessagePack.
    """

    origin: str
    value: Any
    data: bytes


class Entry(NamedTuple):
    """A device and its state, on the way between nodes; no data if the device shows nothing."""

    user: ClientId
    device: str
    data: bytes | None


class Host(typing.Protocol):
    """A hub, as its boards see it."""

    endpoint: Endpoint
    network: Network


class Board:
    """The states of one room.

    Args:
        host: The hub.
        name: The room.

    Attributes:
        name: The room.
        states: What its members see.
        watchers: The members of this node that are told.
        members: The connections of this node that are in the room, and may have a state.
    """

    __slots__ = (
        "_changed",
        "_expiry",
        "_host",
        "_next_report",
        "_own_changed",
        "_parts",
        "_report",
        "_scheduler",
        "_until",
        "members",
        "name",
        "states",
        "watchers",
    )

    def __init__(self, host: Host, name: RoomName) -> None:
        self._host = host
        self._scheduler = host.endpoint.scheduler
        self.name = name
        self.states: dict[Key, State] = {}
        self.members: dict[str, WseConnection] = {}
        self.watchers = Watchers(host.endpoint, self)
        self._parts: dict[str, dict[Key, State]] = {}
        self._until: dict[Key, float] = {}  # when states of this node expire
        self._expiry: tuple[float, Timer] | None = None
        self._changed: dict[Key, None] = {}
        self._own_changed: dict[Key, None] = {}
        self._report: Timer | None = None
        self._next_report = -inf

    # Members of this node.

    def enter(self, conn: WseConnection) -> None:
        """A connection of this node has entered the room."""
        self.members[conn.conn_id] = conn
        if len(self.members) == 1:
            self._host.network.open_board(self)
        self.watchers.add(conn)

    def leave(self, conn: WseConnection) -> None:
        """A connection of this node has left the room, or has ended."""
        del self.members[conn.conn_id]
        self.watchers.remove(conn)
        self.clear(conn)
        if not self.members:
            self.report()
            self._host.network.close_board(self)
            for origin in [origin for origin in self._parts if origin != OWN]:
                self.forget(origin)

    def set(self, conn: WseConnection, value: Any, data: bytes, ttl: float | None) -> None:
        """Set the state of a member of this node.

        Args:
            conn: The connection.
            value: The state, not `None`.
            data: The same, as `encode_state` returns it.
            ttl: Seconds for which it is shown; `None` as long as the connection is in the room.
        """
        key = conn.cid, conn.conn_id
        if self._put(key, State(OWN, value, data)):
            self._own_changed[key] = None
        if ttl is None:
            self._until.pop(key, None)
        else:
            until = self._until[key] = self._scheduler.time() + ttl
            if self._expiry is None or until < self._expiry[0]:
                self._expire_at(until)

    def clear(self, conn: WseConnection) -> None:
        """Take away the state of a member of this node."""
        self._clear((conn.cid, conn.conn_id))

    def state_of(self, conn: WseConnection) -> tuple[bytes | None, float | None]:
        """The state of a member of this node, if it has one, and the seconds for which it is still shown."""
        key = conn.cid, conn.conn_id
        state = self._parts.get(OWN, {}).get(key)
        until = self._until.get(key)
        return None if state is None else state.data, None if until is None else until - self._scheduler.time()

    @property
    def own(self) -> list[Entry]:
        """The part of this node."""
        return [Entry(*key, state.data) for key, state in self._parts.get(OWN, {}).items()]

    def _clear(self, key: Key) -> None:
        if key in self._parts.get(OWN, {}):
            self._until.pop(key, None)
            self._take_away(OWN, key)
            self._own_changed[key] = None

    # The parts of other nodes.

    def take(self, origin: str, entries: Iterable[Entry]) -> None:
        """Another node tells of changes in its part."""
        for user, device, data in entries:
            if data is None:
                self._take_away(origin, (user, device))
            else:
                self._put((user, device), State(origin, decode_state(data), data))

    def replace(self, origin: str, entries: list[Entry]) -> None:
        """Another node tells its whole part."""
        here = {(entry.user, entry.device) for entry in entries}
        for key in [key for key in self._parts.get(origin, ()) if key not in here]:
            self._take_away(origin, key)
        self.take(origin, entries)

    def forget(self, origin: str) -> None:
        """Another node has no part any longer."""
        self.replace(origin, [])

    # Changes.

    def _put(self, key: Key, state: State) -> bool:
        """Set the state of a device; returns whether anybody can see a difference."""
        part = self._parts.get(state.origin)
        if part is None:
            part = self._parts[state.origin] = {}
        known = part.get(key)
        part[key] = state
        differs = known is None or known.data != state.data or self.states[key] is not known
        self.states[key] = state
        if differs:
            self._note(key)
        return differs

    def _take_away(self, origin: str, key: Key) -> None:
        part = self._parts.get(origin)
        gone = None if part is None else part.pop(key, None)
        if part is None or gone is None:
            return
        if not part:
            del self._parts[origin]
        if self.states.get(key) is gone:  # else its session has come to another node, which shows it
            del self.states[key]
            for other in self._parts.values():
                if key in other:
                    self.states[key] = other[key]
            self._note(key)

    def _note(self, key: Key) -> None:
        self._changed[key] = None
        self.watchers.changed()
        if self._report is None:
            wait = self._next_report - self._scheduler.time()
            later, soon = self._scheduler.call_later, self._scheduler.call_soon
            self._report = later(wait, self.report) if wait > 0 else soon(self.report)

    def report(self) -> None:
        """Tell the changes to the members of this node and to the other nodes."""
        if self._report is not None:
            self._report.cancel()
            self._report = None
            self._next_report = self._scheduler.time() + INTERVAL
        changed, self._changed = self._changed, {}
        if changed:
            self.watchers.tell(changed)
        changed, self._own_changed = self._own_changed, {}
        if changed:
            part = self._parts.get(OWN, {})
            self._host.network.post(self, [Entry(*key, part[key].data if key in part else None) for key in changed])

    # Expiry.

    def _expire_at(self, time: float) -> None:
        if self._expiry is not None:
            self._expiry[1].cancel()
        self._expiry = time, self._scheduler.call_later(time - self._scheduler.time(), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._scheduler.time()
        for key in [key for key, until in self._until.items() if until <= now]:
            self._clear(key)
        if self._until:
            self._expire_at(min(self._until.values()))
