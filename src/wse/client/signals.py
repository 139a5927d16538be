"""The signals of a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.session.endpoint import error_listener_failed
from wse.core.session.signals import Signal
from wse.errors import ErrorCode, WseError
from wse.types import ClientStatus

if TYPE_CHECKING:
    from wse.client.resumption import Loss
    from wse.core.session.endpoint import Endpoint


class ClientSignals:
    """The events of a client: `client.when`.

    Attributes:
        connected: `()`: the socket is open; the welcome is still to come.
        ready: `(welcome)`: the server has accepted the client. A listener that is added while the client is connected
            gets that welcome at once, and `wait` returns it.
        resumed: `(welcome)`: the client is connected again with its session, and nothing was lost. `ready` does not
            fire then, except for listeners that were added while the client was disconnected.
        lost: `(loss)`: the session has ended, and the server may not have received everything; see `Loss`. If the
            client is connected again with a new session, `ready` follows. It does not fire after the application's own
            `close`.
        closed: `(code, reason)`: the connection has ended.
        error: `(err)`: something has failed. `err` is a `WseError`, with the original exception as `__cause__`. Without
            a listener, errors are logged.
        updated: `(status)`: `client.status` has changed. A listener that is added later gets the present status.
        gave_up: `(err)`: the client has no connection and will not try again; `err` is the reason. It does not fire
            after the application's own `close`.
        inbox_lost: `(count)`: so many messages that were kept for this user are gone: there were more than the inbox
            keeps, or they were kept for too long.
        ignored: `(type, payload, stamp)`: a message without a listener has arrived.
    """

    __slots__ = (
        "closed",
        "connected",
        "error",
        "gave_up",
        "ignored",
        "inbox_lost",
        "lost",
        "ready",
        "resumed",
        "updated",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        def failed(exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
            details = {"signal": signal}
            endpoint.report(
                WseError(ErrorCode.MSG_PROCESSING_ERROR, details, f"a listener of {signal} raised"), None, exc
            )

        def signal(name: str, *takes: str, replay: bool = False, holds: bool = False) -> Signal[*tuple[Any, ...]]:
            return Signal(name, takes, endpoint.scheduler, failed, replay=replay, holds=holds)

        self.connected: Signal[()] = signal("connected")
        self.ready: Signal[Any] = signal("ready", "welcome", holds=True)
        self.resumed: Signal[Any] = signal("resumed", "welcome")
        self.lost: Signal[Loss] = signal("lost", "loss")
        self.closed: Signal[int, str] = signal("closed", "code", "reason")
        self.updated: Signal[ClientStatus] = signal("updated", "status", replay=True)
        self.gave_up: Signal[WseError] = signal("gave_up", "err")
        self.inbox_lost: Signal[int] = signal("inbox_lost", "count")
        self.ignored: Signal[Any, Any, Any] = signal("ignored", "type", "payload", "stamp")
        self.error: Signal[WseError] = Signal("error", ("err",), endpoint.scheduler, error_listener_failed)
