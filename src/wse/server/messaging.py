"""The part of a server that addresses users, rooms and everyone in the cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from wse.core.cluster.cluster import Cluster
from wse.core.cluster.node import ClusterNode
from wse.core.hub.network import USER, DeviceInfo
from wse.core.hub.rooms import Room, keeps_nothing
from wse.core.session.asking import Stream
from wse.core.session.current_call import shorter
from wse.errors import CloseReason, WseError
from wse.types import ClientId, MessageKey, MessageType, RoomName
from wse.validation.checks import all_received, received

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import Exclude
    from wse.core.hub.hub import Hub
    from wse.core.session.asking import Items

R = TypeVar("R")


class Messaging:
    """Messages and calls to users, rooms and everyone, and who is there."""

    _hub: Hub

    def broadcast(
        self, type: MessageType, payload: Any = None, *, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """Send a message to every connection; it is encoded once.

        Args:
            type: The message's type.
            payload: The message's content.
            exclude: A connection, or a user (by `cid` or identity), that does not receive the message.
            key: As for `WseConnection.send`.

        Raises:
            WseError: `NOT_STARTED`: the server has not been started, or has been closed; as `WseConnection.send`.
        """
        self._hub.broadcast(type, payload, exclude, key)

    def send(
        self,
        cid: ClientId,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: Exclude = None,
        key: MessageKey | None = None,
        fallback: bool = False,
    ) -> None:
        """Send a message to all devices of a user; nothing happens if the user is not connected.

        Args:
            cid: The user.
            type: The message's type.
            payload: The message's content.
            exclude: A connection that does not receive the message, such as the sender's.
            key: As for `WseConnection.send`.
            fallback: Fire `when.undelivered` on this server if nobody gets the message: if the user has no device on
                any node, or if the sessions of all devices that were sent it end before they have confirmed it. A
                device without such a session (`resume`) counts as one that gets it. In a cluster, the register is
                asked.

        Raises:
            WseError: `NOT_STARTED`: the server has not been started, or has been closed; as `WseConnection.send`.
        """
        if fallback:
            self._hub.fallbacks.send(cid, type, payload, exclude, key)
        else:
            self._hub.send(cid, type, payload, exclude, key)

    async def keep(
        self, cid: ClientId, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """Keep a message for a user, and send it to the user's devices.

        When this returns, the message is stored. A client with an inbox (`WseClient(inbox=...)`) gets what its device
        has not seen, in order, whenever it connects. Other clients get the message if they are connected.

        Args:
            cid: The user, a string or an integer.
            type: The message's type.
            payload: The message's content.
            key: A repeat with the same key within 5 minutes is the same message: it is stored once.
            ttl: Seconds for which it is kept, if that is less than `Inbox.ttl`.

        Returns:
            Its number among the messages that have been kept for the user, which count from 1.

        Raises:
            WseError: `NOT_STARTED`; `BROKER_UNAVAILABLE`: the store cannot be reached, and it is unknown whether it has
                the message; `MSG_PROCESSING_ERROR` and `PROTOCOL_VIOLATION`, as `send`; `LIMIT_EXCEEDED`, if the
                message is larger than `Inbox.message`; `UNSUPPORTED`: the server has no inboxes, see
                `WseServer(inbox=...)`.
            TypeError, ValueError: The `cid` or the `ttl` is none.
        """
        if self._hub.kept is None:
            raise keeps_nothing()
        return await self._hub.kept.keep(USER, cid, type, payload, key, ttl)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """Disconnect all devices of a user; `left` fires once. Nothing happens if the user is not connected.

        Args:
            cid: The user.
            reason: Sent to the clients; at most 123 bytes of UTF-8 (RFC 6455, 5.5).
            code: A close code that an endpoint may send (RFC 6455, 7.4).

        Raises:
            WseError: `NOT_STARTED`.
            ValueError: A code or reason that a close frame cannot carry.
        """
        self._hub.drop_client(cid, reason, code)

    def room(self, name: RoomName, *, presence: bool = False) -> Room:
        """Return the room of that name. You need not create it; a room exists while it has members.

        Args:
            name: The name; a string or an integer if the room has presence.
            presence: Let the members show each other states (`Room.presence`). The room has that from then on, also
                when it is asked for without this argument. In a cluster, ask for it on every node.

        Raises:
            TypeError: A room with presence has a name that clients cannot be told.
        """
        if presence:
            self._hub.endpoint.check_thread()
            if not isinstance(name, str | int):
                raise TypeError(f"the name of a room with presence is a string or an integer, not {name!r:.100}")
            self._hub.rooms.make_board(name)
        return Room(self._hub.rooms, name)

    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        result: type[R],
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> list[R | WseError]: ...
    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        result: Any = None,
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> list[Any]: ...
    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["first", "any"] = "first",
        result: type[R],
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> R: ...
    @overload
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        result: Any = None,
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any: ...
    async def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        result: Any = None,
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Call a procedure on a user's devices.

        Args:
            cid: The user.
            name: The procedure, as the clients registered it.
            payload: The procedure's argument.
            mode: `"first"` calls all devices and returns the first result; later answers are ignored. `"all"` returns a
                list of the answers of all devices, the oldest device first, with a `WseError` where one failed.
                `"any"` calls exactly one device, the newest. Devices that have not received their welcome, or that
                disconnect before they are called, do not count.
            result: As for `WseConnection.call`, for the result of each device.
            timeout: Seconds to wait for an answer; `None` means the server's `timeout`, 0 for ever.
            wait: Seconds to wait for a user who is not connected, such as one whose page is just being reloaded. The
                timeout begins after that.
            on_progress: Called with each value that a procedure tells as its progress, plain or async.
            upload: Items to send to the procedure, an iterable or async iterable; only with `"any"`.
            deadline: Seconds for the call and those that the procedure makes for it. Of `timeout` and this, the shorter
                one counts.

        If the task that awaits this is cancelled, or the timeout passes, the procedures are told. With `"first"`, so
        are those of the other devices when the first has succeeded.

        Raises:
            WseError: `NOT_STARTED`; `CONNECTION_MISSING`, if the user is not connected; with `"first"`, the error of
                the last device if all have failed; with `"any"`, as `WseConnection.call`.
            ValueError: The mode is not one of these, or does not go with an upload, or `wait` is negative.
        """
        answer = await self._hub.call(cid, name, payload, mode, shorter(timeout, deadline), wait, on_progress, upload)
        return (all_received if mode == "all" else received)(result, answer, rp=name)

    @overload
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: type[R],
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[R]: ...
    @overload
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[Any]: ...
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[Any]:
        """Iterate over the items of a procedure of the user's newest device, which is a generator.

        In a cluster, the device may be connected to any node.

        Args:
            cid: The user.
            name: The procedure.
            payload: Its argument.
            item: As for `WseConnection.stream`.
            window: As for `WseConnection.stream`, like all that follow.
            timeout: Seconds to wait for each item.
            deadline: Seconds for all of them.
            upload: Items to send to the procedure meanwhile.

        Raises:
            WseError: As `WseConnection.stream`; `NOT_STARTED`; `CONNECTION_MISSING`, if the user is not connected;
                `BROKER_UNAVAILABLE`; `RP_DISCONNECT`, also when the device's node has died, or an item was lost between
                the nodes.
        """
        find = partial(self._hub.newest, cid, name)
        return Stream(find, name, payload, window=window, timeout=timeout, deadline=deadline, upload=upload, item=item)

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """Return the user's devices, the oldest first.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        self._hub.endpoint.check_thread()
        return await self._hub.network.devices(cid)

    async def online(self) -> int:
        """Return the number of connected users.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        self._hub.endpoint.check_thread()
        return await self._hub.network.online()

    async def users(self) -> AsyncIterator[Any]:
        """Iterate over the `cid`s of all connected users, in no particular order. A user that connects or leaves during
        the iteration may be included or not.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, in a cluster.
        """
        self._hub.endpoint.check_thread()
        async for user in self._hub.network.users():
            yield user

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that this server belongs to; `None` without a broker."""
        network = self._hub.network
        return Cluster(network) if isinstance(network, ClusterNode) else None
