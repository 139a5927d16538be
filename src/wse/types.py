"""Small types that all parts share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias, TypeVar

MessageType: TypeAlias = Hashable
"""The type of a message or the name of a procedure: a string, or another value with a custom protocol."""

MessageKey: TypeAlias = str | int
"""The subject of a message: while messages wait for a slow receiver, a newer one of the same type and key may take the
place of an older one (`Overflow.LATEST`)."""

ClientId: TypeAlias = Hashable
"""A user's id (`cid`), chosen by the application in `Handshake.accept`."""

RoomName: TypeAlias = Hashable
"""A room's name, chosen by the application."""

F = TypeVar("F", bound=Callable[..., Any])

MaybeAwaitable: TypeAlias = Awaitable[Any] | Any
"""The result of a handler, which is a plain function or a coroutine function."""


class ClientStatus(StrEnum):
    """The status of a `WseClient`."""

    IDLE = "IDLE"
    CONNECTING = "CONNECTING"
    READY = "READY"
    OFFLINE = "OFFLINE"
    RE_CONNECTING = "RE_CONNECTING"


class ReadyState(IntEnum):
    """The state of a connection's socket, with the numbers of the browser's `WebSocket.readyState`."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3
