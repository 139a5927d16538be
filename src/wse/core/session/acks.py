"""The acks of all sessions of an endpoint that are due, with one timer for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.core.session.ledger import Ledger

SWEEP_EVERY: Final = 2.0
"""Seconds after which a message is confirmed that no other one has followed."""


class Acks:
    """The ledgers that have something to confirm.

    Args:
        scheduler: Timers.
    """

    __slots__ = ("_due", "_scheduler", "_timer")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._due: set[Ledger] = set()
        self._timer: Timer | None = None

    def add(self, ledger: Ledger) -> None:
        """Send an ack with the next sweep."""
        self._due.add(ledger)
        if self._timer is None:
            self._timer = self._scheduler.call_later(SWEEP_EVERY, self._sweep)

    def remove(self, ledger: Ledger) -> None:
        """Nothing is to be confirmed; harmless if nothing was. The timer runs on: another one would cost more."""
        self._due.discard(ledger)

    def forget_loop(self) -> None:
        """The event loop has been closed: its timers do not run."""
        self._due.clear()
        self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        due, self._due = self._due, set()
        for ledger in due:
            ledger.send_ack()
