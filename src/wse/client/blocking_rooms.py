"""The rooms of a blocking client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.client.blocking_signals import BlockingSignal

if TYPE_CHECKING:
    from wse.client.blocking import BlockingClient
    from wse.client.rooms import ClientPresence, ClientRoom
    from wse.types import RoomName


class BlockingPresence:
    """What the members of a room show each other, and what this device shows; as `ClientPresence`."""

    def __init__(self, client: BlockingClient, presence: ClientPresence) -> None:
        self._client = client
        self._presence = presence
        self.when = BlockingPresenceSignals(client, presence)

    def set(self, state: Any, ttl: float | None = None) -> None:
        """As `ClientPresence.set`."""
        self._client._do(self._presence.set, state, ttl)

    def clear(self) -> None:
        """As `ClientPresence.clear`."""
        self._client._do(self._presence.clear)

    @property
    def members(self) -> dict[Any, dict[str, Any]]:
        """As `ClientPresence.members`."""
        return self._client._do(lambda: self._presence.members)

    @property
    def device(self) -> str:
        """As `ClientPresence.device`."""
        return self._presence.device


class BlockingPresenceSignals:
    """As `PresenceSignals`."""

    def __init__(self, client: BlockingClient, presence: ClientPresence) -> None:
        self.changed: BlockingSignal[dict[Any, dict[str, Any]]] = BlockingSignal(client, presence.when.changed)


class BlockingClientRoom:
    """A room at a blocking client: `client.room(name)`; as `ClientRoom`.

    Attributes:
        name: The room's name, a string or an integer.
        presence: What its members show each other.
    """

    def __init__(self, client: BlockingClient, room: ClientRoom) -> None:
        self._client = client
        self._room = room
        self.name: RoomName = room.name
        self.presence = BlockingPresence(client, room.presence)

    def join(self, timeout: float | None = None) -> None:
        """As `ClientRoom.join`."""
        self._client._wait(self._room.join(timeout))

    def leave(self) -> None:
        """As `ClientRoom.leave`."""
        self._client._wait(self._room.leave())

    def __repr__(self) -> str:
        return f"<BlockingClientRoom {self.name}>"
