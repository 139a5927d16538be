"""Detects dead peers and measures round-trip times.

One timer checks all connections of an endpoint: a timer for each would cost memory and time, and one check of each
every few seconds costs next to nothing. So the times are exact to a quarter of the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wse.core.heartbeat import Heartbeat
    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.core.ports.transport import Pinger
    from wse.core.session.session import Session

_CHECKS = 4
"""How often connections are checked within the shorter of the two times."""


class Keepalive:
    """The heartbeat of an endpoint's connections.

    Args:
        scheduler: Time and timers.
        heartbeat: When to ping a peer, and when to give it up.
        sessions: All sessions whose socket is open.
    """

    __slots__ = ("_heartbeat", "_period", "_scheduler", "_sessions", "_timer")

    def __init__(self, scheduler: Scheduler, heartbeat: Heartbeat, sessions: Callable[[], Iterable[Session]]) -> None:
        self._scheduler = scheduler
        self._heartbeat = heartbeat
        self._sessions = sessions
        self._period = min(heartbeat.interval, heartbeat.timeout) / _CHECKS
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to check the connections, and go on while there is one; harmless if that has begun."""
        if self._timer is None and self._period:
            self._timer = self._scheduler.call_later(self._period, self._check_all)

    def stop(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_all(self) -> None:
        self._timer = None
        now = self._scheduler.time()
        beating = False
        for session in tuple(self._sessions()):
            pinger = session.pinger
            if pinger is not None:
                beating = True
                self._check(session, pinger, now)
        if beating:
            self.start()

    def _check(self, session: Session, pinger: Pinger, now: float) -> None:
        if pinger.heard:
            pinger.heard = False
            session.silent_since = now
            session.pinged_at = None
        elif session.pinged_at is not None:
            # A large message may arrive slowly, and sets `heard` only when it is whole; the kernel knows of its bytes.
            if now - session.pinged_at >= self._heartbeat.timeout and pinger.silence() >= self._heartbeat.timeout:
                session.lost()
        elif now - session.silent_since >= self._heartbeat.interval - self._period / 2:
            session.pinged_at = now
            pinger.ping()
