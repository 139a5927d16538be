"""The signals of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.session.endpoint import error_listener_failed
from wse.core.session.signals import Signal
from wse.errors import WseError
from wse.types import MessageType

if TYPE_CHECKING:
    from wse.core.hub.connection import WseConnection
    from wse.core.hub.hub import Hub


class ServerSignals:
    """The events of a server: `server.when`.

    Attributes:
        joined: `(identity, meta)`: a user has connected with a first device.
        left: `(identity, code, reason)`: a user's last device has disconnected.
        connected: `(conn)`: a device has connected.
        disconnected: `(conn, code, reason)`: a device has disconnected, and its session has ended.
        detached: `(conn, code, reason)`: a device has lost its connection, and its session waits for its return.
        resumed: `(conn)`: the device is connected again with its session. `detached` did not fire before if the device
            returned before the server noticed the loss.
        ignored: `(conn, type, payload)`: a message without a listener has arrived.
        undelivered: `(cid, type, payload)`: nobody gets a message that was sent with `fallback=True`. It fires once, on
            the node that has sent it.
        error: `(err, conn)`: something has failed. `err` is a `WseError`, with the original exception as `__cause__`;
            `conn` may be None. Without a listener, errors are logged.
    """

    __slots__ = (
        "connected",
        "detached",
        "disconnected",
        "error",
        "ignored",
        "joined",
        "left",
        "resumed",
        "undelivered",
    )

    def __init__(self, hub: Hub) -> None:
        self.joined = hub.joined
        self.left = hub.left
        self.connected = hub.connected
        self.disconnected = hub.disconnected
        self.detached = hub.detached
        self.resumed = hub.resumed
        self.ignored = hub.ignored
        self.undelivered: Signal[Any, MessageType, Any] = hub.fallbacks.signal
        self.error: Signal[WseError, WseConnection | None] = Signal(
            "error", ("err", "conn"), hub.endpoint.scheduler, error_listener_failed
        )
