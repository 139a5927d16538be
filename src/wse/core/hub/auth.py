"""The server's side of the `auth` extension (WIRE.md section 7): reasons of refusals, and sessions that expire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeAlias

from wse.core.session.extensions import Control, Extension
from wse.core.session.signals import run_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import MessageType

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.core.session.session import Session

ASK_BEFORE = 60.0
"""Seconds before the end of a session at which its client is asked for a fresh identity. If the session lasts less than
twice as long, the client is asked halfway through."""

CHECK_EVERY = 3600.0
"""Seconds after which a session looks at the clock again, which may have been set, or have stopped with the machine."""

_LATEST = 253_402_300_800.0  # the year 10000

ReauthHandler: TypeAlias = Callable[["WseConnection", Any], Any]


def unix_time(t: datetime | float) -> float:
    """A time as Unix seconds.

    Raises:
        TypeError: It is neither a `datetime` nor a number.
        ValueError: A `datetime` without a time zone, or a number that is not a time in seconds.
    """
    if isinstance(t, datetime):
        if t.utcoffset() is None:
            raise ValueError(f"a datetime needs a time zone, as datetime.now(timezone.utc) has; {t!r} has none")
        return t.timestamp()
    if isinstance(t, bool) or not isinstance(t, int | float):
        raise TypeError(f"a time is a datetime or a number of Unix seconds, not {t!r}")
    if not 0 <= t < _LATEST:
        raise ValueError(f"a time is in seconds since 1970, not {t!r}")
    return float(t)


def refuse(session: Session, reason: str | None, retry: bool) -> None:
    """Close a connection with `wse.not-authorized`, after the reason and `retry` for a client that offered `auth`.

    Raises:
        WseError: `MSG_PROCESSING_ERROR`, when the reason cannot be encoded.
    """
    types = session.protocol.extensions
    tells = reason is not None or retry
    if tells and types is not None and AuthExtension.name in session.agreement.names:
        session.write(types.refused, {"reason": reason, "retry": retry})
    session.close(1000, CloseReason.NOT_AUTHORIZED)


class Expiry:
    """The end of a session at a given time.

    Args:
        session: The session.
        scheduler: Timers.
        clock: The time of day, in Unix seconds.
        ask: Asks the client for a fresh identity; returns whether an answer may come.

    Attributes:
        at: When the session ends, in Unix seconds; `None` for never.
        is_asked: Whether the client has been asked for a fresh identity and has not answered.
    """

    __slots__ = ("_ask", "_ask_at", "_clock", "_scheduler", "_session", "_timer", "at", "is_asked")

    def __init__(
        self,
        session: ServerSession,
        scheduler: Scheduler,
        clock: Callable[[], float],
        ask: Callable[[ServerSession], bool],
    ) -> None:
        self._session = session
        self._scheduler = scheduler
        self._clock = clock
        self._ask = ask
        self._ask_at: float | None = None
        self._timer: Timer | None = None
        self.at: float | None = None
        self.is_asked = False

    def set(self, at: float | None) -> None:
        """Set or move the end; the client is asked again before it."""
        self.stop()
        self.at = at
        self.is_asked = False
        if at is not None:
            self._ask_at = at - min(ASK_BEFORE, (at - self._clock()) / 2)
            self._wait(self._clock())

    def stop(self) -> None:
        """Forget the end, because the session has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self.at is not None  # else there is no timer
        now = self._clock()
        if now >= self.at:
            self._session.cut(1012, CloseReason.SESSION_EXPIRED)
            return
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            self.is_asked = self._ask(self._session)
        self._wait(now)

    def _wait(self, now: float) -> None:
        due = self.at if self._ask_at is None else self._ask_at
        assert due is not None  # as above
        self._timer = self._scheduler.call_later(max(0.0, min(due - now, CHECK_EVERY)), self._look)


class AuthExtension(Extension):
    """`auth` at a server.

    Args:
        scheduler: Timers.
        clock: The time of day, in Unix seconds.

    Attributes:
        clock: The time of day, in Unix seconds.
        reauthenticate: The application's handler for fresh identities.
    """

    name = "auth"

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self.clock = clock
        self.reauthenticate: ReauthHandler | None = None

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.auth: self._identity_came}

    def has_passed(self, t: float) -> bool:
        """Whether a time in Unix seconds has passed."""
        return self.clock() >= t

    def expire(self, session: ServerSession, at: float | None) -> None:
        """Set when a session ends; nothing happens if it has ended."""
        if session.ended:
            return
        if session.expiry is None:
            if at is None:
                return
            session.expiry = Expiry(session, self._scheduler, self.clock, self._ask)
        session.expiry.set(at)

    def _ask(self, session: ServerSession) -> bool:
        types = session.protocol.extensions
        can = self.reauthenticate is not None and session.valid and self.name in session.agreement.names
        if can and types is not None:
            session.write(types.auth, None)
        return can

    def _identity_came(self, session: ServerSession, identity: Any, stamp: Any) -> None:
        expiry, handler = session.expiry, self.reauthenticate
        if expiry is None or handler is None or not expiry.is_asked:
            return  # the client was not asked
        expiry.is_asked = False
        run_handler(session, self._handle, (handler, session, identity), self._failed, session)

    def _handle(self, handler: ReauthHandler, session: ServerSession, identity: Any) -> Any:
        value = handler(session.conn, identity)
        if value is not None and isawaitable(value):
            return self._handle_later(value, session, identity)
        self._extend(session, identity, value)
        return None

    async def _handle_later(self, awaitable: Any, session: ServerSession, identity: Any) -> None:
        self._extend(session, identity, await awaitable)

    def _extend(self, session: ServerSession, identity: Any, until: Any) -> None:
        if until is not None:
            self.expire(session, unix_time(until))
            session.conn.identity = identity

    def _failed(self, exc: Exception, session: ServerSession) -> None:
        if isinstance(exc, WseError) and exc.code == ErrorCode.NOT_AUTHORIZED:
            reason = exc.details.get("reason")
            refuse(session, None if reason is None else str(reason), bool(exc.details.get("retry")))
        else:
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, session.context(), "the reauthenticate handler raised")
            session.endpoint.report(error, session, exc)
