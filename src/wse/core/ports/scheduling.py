"""Time, timers, futures and tasks, which the core gets from outside."""

from __future__ import annotations

import typing
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio


class Timer(typing.Protocol):
    """A scheduled callback."""

    def cancel(self) -> None:
        """Do not run it; harmless when it has run."""


class Scheduler(typing.Protocol):
    """Time, timers, futures and tasks. Everything happens on one thread.

    Attributes:
        thread: The id of that thread (`threading.get_ident`); `None` while nothing runs.
    """

    thread: int | None

    def time(self) -> float:
        """A monotonic clock, in seconds."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        """Run the callback in the next turn of the loop."""
        ...

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run the callback in a later turn of the loop; may be called in any thread."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run the callback after `delay` seconds."""
        ...

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the loop that everything runs on."""
        ...

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that handles its own exceptions: its first step at once where Python can do that. The caller
        holds the task.
        """
        ...

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it ends, and cancel it with all others of the endpoint."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine and adopt its task."""


def next_turn(scheduler: Scheduler) -> asyncio.Future[None]:
    """Done in the next turn of the loop, when what was written in this one has left."""
    turn = scheduler.create_future()
    scheduler.call_soon(wake, turn)
    return turn


async def sleep(scheduler: Scheduler, seconds: float) -> None:
    """Return after that time."""
    woken = scheduler.create_future()
    timer = scheduler.call_later(seconds, wake, woken)
    try:
        await woken
    finally:
        timer.cancel()
