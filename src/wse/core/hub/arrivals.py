"""Callers that wait for a user who has no connection at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.scheduling import Scheduler
    from wse.types import ClientId


class Arrivals:
    """The users who are waited for.

    Args:
        scheduler: Timers and futures.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiting: dict[ClientId, list[asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        """Whether anyone waits."""
        return bool(self._waiting)

    async def wait(self, cid: ClientId, seconds: float) -> None:
        """Return when the user has a new connection here, and at the latest after that time."""
        arrival = self._scheduler.create_future()
        waiting = self._waiting.setdefault(cid, [])
        waiting.append(arrival)
        timer = self._scheduler.call_later(seconds, wake, arrival)
        try:
            await arrival
        finally:
            timer.cancel()
            waiting.remove(arrival)
            if not waiting:
                del self._waiting[cid]

    def note(self, cid: ClientId) -> None:
        """The user has a new connection."""
        for arrival in self._waiting.get(cid, ()):
            wake(arrival)
