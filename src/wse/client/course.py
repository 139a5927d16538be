"""What an application has decided about a client's connection."""

from __future__ import annotations

import asyncio
from typing import Any


class Course:
    """The consequences of one `connect`, `jump` or `close` of the application, until the next one.

    A listener may call one of them while it runs. So the code after an emission first checks whether the course is
    still the same.

    Args:
        waiter: Resolved for the caller that waits in `connect` or `jump`.

    Attributes:
        task: The attempt that is being made or waited for.
    """

    __slots__ = ("_waiter", "task")

    def __init__(self, waiter: asyncio.Future[Any] | None) -> None:
        self._waiter = waiter
        self.task: asyncio.Task[None] | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether a caller waits for the outcome."""
        return self._waiter is not None and not self._waiter.done()

    async def outcome(self) -> Any:
        """Wait for the welcome."""
        assert self._waiter is not None
        try:
            return await self._waiter
        finally:
            if self._waiter.done() and not self._waiter.cancelled():
                self._waiter.exception()  # retrieved also for a caller that is cancelled, or asyncio complains

    def succeed(self, welcome: Any) -> None:
        """Hand the caller the welcome."""
        assert self._waiter is not None
        self._waiter.set_result(welcome)

    def fail(self, exc: Exception) -> None:
        """Hand the caller the reason why there is no connection."""
        assert self._waiter is not None
        self._waiter.set_exception(exc)
