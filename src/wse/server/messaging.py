"""The part of a server that names users, rooms and everyone, wherever in the cluster they are connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from wse.core.cluster.cluster import Cluster
from wse.core.cluster.node import ClusterNode
from wse.core.hub.network import DeviceInfo
from wse.core.hub.rooms import Room
from wse.errors import CloseReason
from wse.types import ClientId, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import Exclude
    from wse.core.hub.hub import Hub


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

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect all devices of a user; `left` fires once. Nothing happens if the user is not connected.

        Args:
            cid: The user.
            reason: Sent to the clients; at most 123 bytes of UTF-8 (RFC 6455, 5.5).
            code: A close code that an endpoint may send (RFC 6455, 7.4).

        Raises:
            ValueError: A code or reason that a close frame cannot carry.
        """
        self._hub.drop_client(cid, reason, code)

    def room(self, name: RoomName) -> Room:
        """A room; it need not be made, and exists while it has members."""
        return Room(self._hub.rooms, name)

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
        return await self._hub.network.devices(cid)

    async def online(self) -> int:
        """How many users are connected.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        return await self._hub.network.online()

    async def users(self) -> AsyncIterator[Any]:
        """All users that are connected, in no order; who comes or goes meanwhile may be missing or there.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        async for user in self._hub.network.users():
            yield user

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that this server is a node of; None without a broker."""
        network = self._hub.network
        return Cluster(network) if isinstance(network, ClusterNode) else None
