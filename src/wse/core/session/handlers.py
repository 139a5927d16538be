"""The async handlers of one connection, counted while they run, and cancelled when they outlive it for too long."""

from __future__ import annotations

from inspect import getcoroutinelocals
from pathlib import Path
from types import CoroutineType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable

    from wse.core.ports.scheduling import Scheduler

_WSE = str(Path(__file__).parent.parent.parent)


class Handlers:
    """The async handlers that have not ended.

    Args:
        scheduler: Runs them.
        linger: Seconds that they may go on after the connection has ended; `None` lets them run.
        overdue: Called with each task that is about to be cancelled.

    Attributes:
        tasks: Their tasks.
    """

    __slots__ = ("_linger", "_overdue", "_scheduler", "tasks")

    def __init__(
        self, scheduler: Scheduler, linger: float | None, overdue: Callable[[asyncio.Task[Any]], None]
    ) -> None:
        self._scheduler = scheduler
        self._linger = linger
        self._overdue = overdue
        self.tasks: set[asyncio.Task[Any]] = set()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
        """Run a handler; returns its task, or `None` if it has ended already."""
        task = self._scheduler.start(coroutine)
        if task.done():
            return None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def add(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Count these tasks until they end."""
        for task in tuple(tasks):
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def let_linger(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Give these tasks some time to end, because their connection has ended."""
        for task in tasks:
            self._scheduler.adopt(task)
            task.add_done_callback(self.tasks.discard)  # one that is cancelled before its first step discards nothing
        if self._linger is None:
            return
        timer = self._scheduler.call_later(self._linger, self._cancel)

        def ended(_: object) -> None:
            if not self.tasks:
                timer.cancel()  # the timer keeps the whole connection in memory

        for task in tasks:
            task.add_done_callback(ended)

    def _cancel(self) -> None:
        for task in tuple(self.tasks):
            self._overdue(task)
            task.cancel()


def discard(awaitable: Any) -> None:
    """Close the coroutine of an async handler that is not going to run, and the one that it awaits."""
    while isinstance(awaitable, CoroutineType):
        inner = awaited_by(awaitable)
        awaitable.close()
        awaitable = inner


def awaited_by(awaitable: Any) -> Any:
    """What a coroutine of ours awaits for somebody else; `None` if it is not such a coroutine."""
    if isinstance(awaitable, CoroutineType) and awaitable.cr_code.co_filename.startswith(_WSE):
        return getcoroutinelocals(awaitable).get("awaitable")
    return None
