"""The status of a client, and what moves it, as one table (WIRE.md section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from wse.types import ClientStatus


class Event(Enum):
    """What moves the status."""

    CONNECT = auto()
    """The application connects a client that has no connection."""
    WELCOME = auto()
    """The server has accepted the client."""
    LOSS = auto()
    """There is no connection; another attempt follows."""
    RETRY = auto()
    """Another attempt is under way."""
    END = auto()
    """There is no connection, and no attempt follows."""


TRANSITIONS: Final[Mapping[ClientStatus, Mapping[Event, ClientStatus]]] = {
    ClientStatus.IDLE: {Event.CONNECT: ClientStatus.CONNECTING},
    ClientStatus.CONNECTING: {Event.WELCOME: ClientStatus.READY, Event.END: ClientStatus.OFFLINE},
    ClientStatus.READY: {Event.LOSS: ClientStatus.OFFLINE, Event.END: ClientStatus.OFFLINE},
    ClientStatus.OFFLINE: {Event.CONNECT: ClientStatus.CONNECTING, Event.RETRY: ClientStatus.RE_CONNECTING},
    ClientStatus.RE_CONNECTING: {Event.WELCOME: ClientStatus.READY, Event.END: ClientStatus.OFFLINE},
}
"""The next status. Any other event leaves it as it is, so attempts that fail do not show."""

BUSY: Final = frozenset((ClientStatus.CONNECTING, ClientStatus.READY, ClientStatus.RE_CONNECTING))
"""The client has a connection, or tries to get one."""
