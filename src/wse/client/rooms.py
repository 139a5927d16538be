"""The client's side of the `rooms` extension (WIRE.md section 7): rooms that the client enters, and states in them.

The server tells what the members of a room show: everything when the client enters, then what changes. After a
reconnect with a new session, the client enters its rooms again, and shows its states again.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from wse.core.limits import Overflow
from wse.core.session.extensions import Control, Extension
from wse.core.session.signals import Signal
from wse.core.session.states import check_ttl, encode_state
from wse.errors import ErrorCode, WseError
from wse.types import RoomName

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.client.session import ClientSession
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageType

STATE_SIZE: Final = 4096
"""Bytes of a state, if the server does not say what it takes."""

AWAY: Final = frozenset((ErrorCode.RP_DISCONNECT, ErrorCode.CLIENT_NOT_READY))
"""Why a call fails if the connection ends meanwhile."""


class PresenceSignals:
    """The signals of the presence of a room: `client.room(name).presence.when`.

    Attributes:
        changed: `(changes)`: the states that have changed, by user and device; `None` for those that are gone.
            `members` has all states already.
    """

    __slots__ = ("changed",)

    def __init__(self, endpoint: Endpoint) -> None:
        def failed(exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
            details = {"signal": signal}
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, details, f"a listener of {signal} raised")
            endpoint.report(error, None, exc)

        self.changed: Signal[dict[Any, dict[str, Any]]] = Signal("changed", ("changes",), endpoint.scheduler, failed)


class ClientPresence:
    """What the members of a room show each other, and what this device shows: `client.room(name).presence`.

    Attributes:
        when: The signals.
    """

    __slots__ = ("_room", "_states", "when")

    def __init__(self, room: ClientRoom, endpoint: Endpoint) -> None:
        self._room = room
        self._states: dict[Any, dict[str, Any]] = {}
        self.when = PresenceSignals(endpoint)

    def set(self, state: Any, ttl: float | None = None) -> None:
        """Show a state to the members of the room. It replaces the one before.

        It is shown until it is cleared, `ttl` is over, or the client leaves the room or ends. While the client
        reconnects, the newest state is kept, and shown when the client is back in the room.

        Args:
            state: Any value but `None`, such as `{"cursor": [3, 9]}`.
            ttl: Seconds for which it is shown, unless it is set again; with 3, a "typing…" vanishes by itself.

        Raises:
            WseError: `CLIENT_NOT_READY`: the client is not in the room; `UNSUPPORTED`: the room has no presence;
                `LIMIT_EXCEEDED`: the state is larger than the server takes.
            TypeError: The state is `None`, or cannot be encoded.
            ValueError: The `ttl` is none.
        """
        check_ttl(ttl)
        self._room._show(state, ttl)

    def clear(self) -> None:
        """Take the state of this device away."""
        self._room._clear()

    @property
    def members(self) -> dict[Any, dict[str, Any]]:
        """The users with a state, each with the states of the user's devices. While the client reconnects, it is what
        was known before.
        """
        return {user: dict(devices) for user, devices in self._states.items()}

    @property
    def device(self) -> str:
        """The name of this device among those of its user in `members`; empty before the first connection."""
        return self._room._rooms.device

    def _take(self, entries: list[Any], *, is_whole: bool) -> None:
        """The server tells states.

        Raises:
            ValueError, TypeError: They make no sense.
        """
        told = [(_hashable(user), device, state) for user, device, state in entries]
        changes: dict[Any, dict[str, Any]] = {}
        if is_whole:
            new = {(user, device) for user, device, _ in told}
            for user, devices in self._states.items():
                told += [(user, device, None) for device in devices if (user, device) not in new]
        for user, device, state in told:
            devices = self._states.get(user, {})
            if devices.get(device) == state:
                continue
            changes.setdefault(user, {})[device] = state
            if state is not None:
                self._states.setdefault(user, {})[device] = state
            else:
                del devices[device]
                if not devices:
                    del self._states[user]
        if changes:
            self.when.changed._emit(changes)


class ClientRoom:
    """A room at a client: `client.room(name)`.

    Attributes:
        name: The room's name, a string or an integer.
        presence: What its members show each other.
    """

    __slots__ = ("_has_presence", "_is_in", "_is_wanted", "_joining", "_order", "_rooms", "_state", "name", "presence")

    def __init__(self, rooms: ClientRooms, endpoint: Endpoint, name: RoomName) -> None:
        self._rooms = rooms
        self.name = name
        self.presence = ClientPresence(self, endpoint)
        self._is_wanted = False  # to be entered again after a reconnect
        self._is_in = False
        self._has_presence = True
        self._joining = 0
        self._order = asyncio.Lock()  # of entering and leaving
        self._state: tuple[Any, float | None] | None = None  # what is shown, and until when

    async def join(self, timeout: float | None = None) -> None:
        """Enter the room: the client gets what is sent to it. The server's `room_guard` decides.

        When this returns, `presence.members` has the states of the others. After a reconnect, the client enters the
        room again by itself; if the server then refuses that, the error is reported on `when.error`.

        Args:
            timeout: Seconds to wait for the answer; `None` for the client's `timeout`, 0 for ever.

        Raises:
            WseError: The error that the guard raised; `NOT_AUTHORIZED`: the guard has refused, or there is none;
                `LIMIT_EXCEEDED`: the client is in too many rooms; `INVALID_PAYLOAD`: the server takes no such name;
                `UNSUPPORTED`: the server knows no rooms; `CLIENT_NOT_READY`, `RP_TIMEOUT`, `RP_DISCONNECT`.
        """
        self._joining += 1
        try:
            async with self._order:
                self._has_presence = await self._rooms.call("join", self.name, timeout) is not False
                self._is_wanted = self._is_in = True
        finally:
            self._joining -= 1
        self._show_again()

    async def leave(self) -> None:
        """Leave the room. Nothing happens if the client is not in it, or has no connection."""
        async with self._order:
            was_in, self._is_in, self._is_wanted, self._state = self._is_in, False, False, None
            try:
                if was_in:
                    await self._rooms.call("leave", self.name, None)
            except WseError as exc:
                if exc.code not in AWAY:
                    raise
            finally:
                if not self._is_in:  # the server may have added it meanwhile
                    self.presence._take([], is_whole=True)

    # Inside.

    def _show(self, state: Any, ttl: float | None) -> None:
        if not (self._is_in or self._is_wanted or self._joining):
            raise WseError(
                ErrorCode.CLIENT_NOT_READY, {"room": self.name}, "the client is not in the room: join it first"
            )
        if not self._has_presence:
            raise WseError(ErrorCode.UNSUPPORTED, {"room": self.name}, "the room has no presence")
        self._rooms.check_size(state)
        self._state = state, None if ttl is None else self._rooms.time() + ttl
        if self._is_in:
            self._rooms.send(self.name, state, ttl)

    def _show_again(self) -> None:
        if self._state is None:
            return
        state, until = self._state
        ttl = None if until is None else until - self._rooms.time()
        if ttl is None or ttl > 0:
            self._rooms.send(self.name, state, ttl)

    def _clear(self) -> None:
        had_state, self._state = self._state is not None, None
        if had_state and self._is_in:
            self._rooms.send(self.name, None, None)

    def _welcomed(self) -> bool:
        """The client has a new session; returns whether the room is to be entered again."""
        self._is_in = False
        if not self._is_wanted:
            self._out()
        return self._is_wanted

    def _told(self, entries: list[Any], *, is_whole: bool) -> None:
        if is_whole:
            self._is_in = True
        if self._is_in:
            self.presence._take(entries, is_whole=is_whole)

    def _out(self) -> None:
        """The client is not in the room, and does not enter it again by itself."""
        self._is_in = self._is_wanted = False
        self._state = None
        self.presence._take([], is_whole=True)

    def __repr__(self) -> str:
        return f"<ClientRoom {self.name}>"


class ClientRooms(Extension):
    """`rooms` at a client.

    Args:
        endpoint: The client's settings.
        ready_session: The session of a client that is connected; raises for any other.

    Attributes:
        device: The name of this device.
    """

    name = "rooms"

    def __init__(self, endpoint: Endpoint, ready_session: Callable[[], ClientSession]) -> None:
        self._endpoint = endpoint
        self._ready_session = ready_session
        self._rooms: dict[RoomName, ClientRoom] = {}
        self._session: ClientSession | None = None
        self._answer: dict[str, Any] = {}
        self._state_size = STATE_SIZE
        self.device = ""
        for protocol in endpoint.protocols:
            if protocol.extensions is not None:  # a slow server gets the newest state
                endpoint.overflow[protocol.extensions.set] = Overflow.LATEST

    def room(self, name: RoomName) -> ClientRoom:
        """The room of that name."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = ClientRoom(self, self._endpoint, name)
        return room

    # From connection to connection.

    def answered(self, session: ClientSession, params: Any) -> None:
        self._answer = params if isinstance(params, dict) else {}

    def welcomed(self, session: ClientSession, *, is_resumed: bool) -> None:
        """The client is connected."""
        self._session = session
        answer, self._answer = self._answer, {}
        if is_resumed:
            return  # the server knows everything, and the device has the name that it had
        device, size = answer.get("device"), answer.get("state")
        self.device = device if isinstance(device, str) else ""
        self._state_size = size if isinstance(size, int) else STATE_SIZE
        for room in list(self._rooms.values()):
            if room._welcomed():
                self._endpoint.scheduler.spawn(self._enter_again(room))

    async def _enter_again(self, room: ClientRoom) -> None:
        try:
            await room.join()
        except WseError as exc:
            if exc.code not in AWAY:  # else the next connection tries again
                room._out()
                self._endpoint.report(exc, self._session)

    def introduced(self) -> None:
        """The client is another user from now on, who has shown nothing."""
        for room in self._rooms.values():
            room._state = None

    def forget_loop(self) -> None:
        """The client is used in another event loop from now on: who waited in the old one does so no longer."""
        for room in self._rooms.values():
            room._order = asyncio.Lock()
            room._joining = 0

    def closed(self) -> None:
        """The client does not connect again by itself: it is in no room."""
        for room in list(self._rooms.values()):
            room._out()

    # Messages.

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.presence: self._came}

    def _came(self, session: ClientSession, message: Any, stamp: Any) -> None:
        try:
            name, entries, *rest = message
            room = self.room(name)
            if entries is None:
                room._out()
            elif isinstance(entries, list):
                room._told(entries, is_whole=bool(rest and rest[0]))
            else:
                raise TypeError(entries)
        except (TypeError, ValueError):
            session.violation("a message of presence has a room and the states of devices")

    async def call(self, what: str, name: RoomName, timeout: float | None) -> Any:
        """Ask the server to let the client into a room, or out of it.

        Raises:
            WseError: As `ClientRoom.join`.
        """
        session = self._ready_session()
        types = session.protocol.extensions
        if types is None or self.name not in session.agreement.names:
            raise WseError(ErrorCode.UNSUPPORTED, {"extension": self.name}, "the server knows no rooms")
        stamp, answer = session.request(getattr(types, what), name, timeout)
        try:
            return await answer
        finally:
            session.forget_call(stamp)  # nothing stays behind when the caller was cancelled

    def send(self, name: RoomName, state: Any, ttl: float | None) -> None:
        """Tell the server what this device shows, unless the client has no session."""
        session = self._session
        if session is not None and session.valid and self.name in session.agreement.names:
            types = session.protocol.extensions
            assert types is not None  # or there would be no extension
            session.tell(types.set, [name, state, ttl], typing.cast("str | int", name))

    def check_size(self, state: Any) -> None:
        """Reject a state that the server does not take.

        Raises:
            TypeError: It is `None`, or cannot be encoded.
            WseError: `LIMIT_EXCEEDED`.
        """
        encode_state(state, self._state_size)

    def time(self) -> float:
        """The time of the client's clock."""
        return self._endpoint.scheduler.time()


def _hashable(user: Any) -> Any:
    """A user as a key: JSON makes a list of a tuple."""
    user = tuple(user) if isinstance(user, list) else user
    hash(user)
    return user
