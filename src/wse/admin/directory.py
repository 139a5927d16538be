"""What one node knows of its users, rooms and devices.

Every answer looks at a bounded number of users or rooms, however many there are, and says where to go on.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from wse.admin.journal import shown
from wse.core.names import decode_name, encode_name
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sized

    from wse.core.hub.connection import WseConnection, WseIdentity
    from wse.core.hub.hub import Hub

SLICE: Final = 2000
"""Names that are looked at in one turn of the event loop: about a millisecond."""

MOST_DEVICES: Final = 100
"""Devices of one user that are shown."""

MOST_ROOMS: Final = 20
"""Rooms of one device that are shown."""

_BY_DEVICE: Final = "c"
"""Begins the reference of a user with a `cid` that is neither a string nor an integer, by a device."""


def reference(name: Hashable) -> str | None:
    """A name as the page sends it back; `None` for one that cannot be the name of a room in a cluster."""
    try:
        return encode_name(name)
    except (TypeError, ValueError):
        return None


def named(ref: str) -> str | int:
    """The name of a reference.

    Raises:
        WseError: `INVALID_PAYLOAD`.
    """
    try:
        return decode_name(ref)
    except ValueError as exc:
        raise WseError(ErrorCode.INVALID_PAYLOAD, {}, "this refers to no user or room") from exc


class Directory:
    """The users, rooms and devices of this node.

    Args:
        hub: The server's connections.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def users(self, search: str, start: int, most: int) -> dict[str, Any]:
        """Users whose `cid` begins with a text, in the order of their arrival. The user whose `cid` it is comes first,
        and so does the one whose device it is, by its `conn_id`.

        Args:
            search: The text; empty for all users.
            start: How many users to pass over: 0, or `next` of the answer before.
            most: Users in the answer, at most.

        Returns:
            `rows`, and `next`: where to go on, or `None` at the end.
        """

        def row(cid: Hashable, user: WseIdentity) -> dict[str, Any]:
            ref = reference(cid) or _BY_DEVICE + user._devices[0].conn_id
            return {"name": shown(cid), "ref": ref, "devices": len(user._devices)}

        conn = self._hub.connections.get(search)
        return _part(self._hub.identities, search, start, most, row, [] if conn is None else [conn.cid])

    def user_of(self, ref: str) -> Hashable:
        """The `cid` of the user with this reference; `None` for one who was known by a device that has left.

        Raises:
            WseError: `INVALID_PAYLOAD`.
        """
        if not ref.startswith(_BY_DEVICE):
            return named(ref)
        conn = self._hub.connections.get(ref.removeprefix(_BY_DEVICE))
        return None if conn is None else conn.cid

    def rooms(self, search: str, start: int, most: int) -> dict[str, Any]:
        """Rooms with members on this node, in the same way."""

        def row(name: Hashable, members: Sized) -> dict[str, Any]:
            return {"name": shown(name), "ref": reference(name), "members": len(members)}

        return _part(self._hub.rooms.by_name, search, start, most, row)

    def devices(self, cid: Hashable) -> list[dict[str, Any]]:
        """The user's devices, the oldest first."""
        identity = self._hub.identities.get(cid)
        return [] if identity is None else [self._device(conn) for conn in identity._devices[:MOST_DEVICES]]

    def drop(self, conn_id: str) -> bool:
        """Disconnect a device; returns whether it is here."""
        conn = self._hub.connections.get(conn_id)
        if conn is None:
            return False
        conn.drop()
        return True

    def _device(self, conn: WseConnection) -> dict[str, Any]:
        rooms = self._hub.rooms.of(conn)
        return {
            "conn_id": conn.conn_id,
            "address": shown(conn.remote_addr),
            "attached": conn.attached,
            "rtt": conn.rtt,
            "queued": conn.queued,
            "protocol": conn.protocol.name,
            "rooms": [shown(name) for name in islice(rooms, MOST_ROOMS)],
            "more_rooms": max(0, len(rooms) - MOST_ROOMS),
        }


def _part(
    names: Mapping[Any, Any],
    search: str,
    start: int,
    most: int,
    row: Callable[[Any, Any], dict[str, Any]],
    found: Iterable[Hashable] = (),
) -> dict[str, Any]:
    exact = [search, *found] if search else []
    with suppress(ValueError):
        exact.append(int(search))
    rows = [row(name, names[name]) for name in dict.fromkeys(exact) if name in names] if start == 0 else []
    most += len(rows)
    position = min(start, len(names))
    end = position + SLICE
    for name, value in islice(names.items(), position, end):
        if len(rows) >= most:
            return {"rows": rows, "next": position}
        position += 1
        if name not in exact and (not search or str(name).startswith(search)):
            rows.append(row(name, value))
    return {"rows": rows, "next": position if position == end else None}
