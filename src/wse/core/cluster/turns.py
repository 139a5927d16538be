"""A bound on how much goes on at a time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.scheduling import Scheduler


class Turns:
    """Lets so many in at a time; the others wait, the first come the first served.

    Args:
        scheduler: Makes futures.
        most: How many.
    """

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        self._scheduler = scheduler
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when it is the caller's turn. It must call `give` in the end."""
        if self._free:
            self._free -= 1
            return
        turn = self._scheduler.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give()  # it was its turn when it was cancelled
            raise

    def give(self) -> None:
        """It is the next one's turn."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
