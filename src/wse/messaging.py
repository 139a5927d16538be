"""The part of a server that names users, rooms and everyone, wherever in the cluster they are connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from wse.core.envelope import decode_name, encode_name
from wse.core.rooms import Room, open_rooms
from wse.errors import CloseReason
from wse.types import ClientId, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wse.core.calls import Mode
    from wse.core.cluster import Cluster
    from wse.core.connection import Exclude
    from wse.core.hub import Hub


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of a user, on whichever node it is connected.

    Attributes:
        cid: The user's id.
        conn_id: The connection's id.
        node: The node that holds it; an empty string on a server without a cluster.
    """

    cid: ClientId
    conn_id: str
    node: str = ""


class Messaging:
    """Messages and calls to users, rooms and everyone, and who is there."""

    _hub: Hub

    def broadcast(self, type: MessageType, payload: Any = None, *, exclude: Exclude = None) -> None:
        """Send a message to every connection; it is encoded once.

        Args:
            type: The message's type.
            payload: What it carries.
            exclude: A connection, or a user by its `cid` or identity, that does not get it.

        Raises:
            WseError: As `WseConnection.send`.
        """
        self._hub.broadcast(type, payload, exclude)

    def send(self, cid: ClientId, type: MessageType, payload: Any = None, *, exclude: Exclude = None) -> None:
        """Send a message to all devices of a user; nothing happens if the user is not connected.

        Args:
            cid: The user.
            type: The message's type.
            payload: What it carries.
            exclude: A connection that does not get it: the one that the message is from, for example.

        Raises:
            WseError: As `WseConnection.send`.
        """
        self._hub.send(cid, type, payload, exclude)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.NO_REASON) -> None:
        """Disconnect all devices of a user; `left` fires once. Nothing happens if the user is not connected.

        Raises:
            ValueError: A reason longer than a close frame can carry.
        """
        self._hub.drop_client(cid, reason)

    def room(self, name: RoomName) -> Room:
        """A room; it need not be made, and exists while it has members."""
        return Room(open_rooms(self._hub), name)

    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        timeout: float | None = None,
    ) -> list[Any]: ...
    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any: ...
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any:
        """Call a procedure on a user's devices.

        Args:
            cid: The user.
            name: The procedure, as the clients registered it.
            payload: What it gets.
            mode: `"first"` asks all devices and returns the first result; answers that come later are ignored.
                `"all"` returns a list of what all devices answered, the oldest device first, with a `WseError` where
                one failed. `"any"` asks exactly one device, the newest. A device that has not got its welcome yet, or
                has gone before it was asked, is none of these.
            timeout: Seconds to wait for an answer: `None` for the server's `timeout`, 0 for ever.

        Raises:
            WseError: `CONNECTION_MISSING`, when the user is not connected; with `"first"`, what the last device
                answered when all have failed; with `"any"`, as `WseConnection.call`.
            ValueError: Another mode.
        """
        return await self._hub.call(cid, name, payload, mode, timeout)

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """The user's devices, the oldest first.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        cluster = self._hub.cluster
        if cluster is None:
            return [DeviceInfo(cid, session.conn.conn_id) for session in self._hub.sessions_of(cid)]
        devices = await cluster.broker.devices(encode_name(cid))
        return [DeviceInfo(cid, device.conn_id, device.node) for device in devices]

    async def online(self) -> int:
        """How many users are connected.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        cluster = self._hub.cluster
        return len(self._hub.identities) if cluster is None else await cluster.broker.online()

    async def users(self) -> AsyncIterator[ClientId]:
        """All users that are connected, in no order; who comes or goes meanwhile may be missing or there.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        cluster = self._hub.cluster
        if cluster is None:
            for cid in tuple(self._hub.identities):
                yield cid
        else:
            async for user in cluster.broker.users():
                yield decode_name(user)

    @property
    def cluster(self) -> Cluster | None:
        """This server as a node of its cluster; None without a broker."""
        return self._hub.cluster
