"""Start tasks, eagerly where Python can; tell whose end a cancellation is; wake waiters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any


def is_cancelled(exc: BaseException) -> bool:
    """Whether an exception is the cancellation of the task that is running, not of something that it awaited."""
    if not isinstance(exc, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def current_task() -> asyncio.Task[Any] | None:
    """The task that is running."""
    return asyncio.current_task()


def wake(waiter: asyncio.Future[None]) -> None:
    """Let the coroutine that awaits this future go on; harmless if it has been cancelled, or goes on already."""
    if not waiter.done():
        waiter.set_result(None)


# Coverage sees one of the two, by the version of Python that runs the tests.

if sys.version_info >= (3, 12):  # pragma: no cover

    def start_task(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """Run the first step at once: a handler that does not wait costs no turn of the loop."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:  # pragma: no cover

    def start_task(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
        """Python 3.11 has no eager tasks: the first step comes in the next turn of the loop."""
        return asyncio.Task(coroutine, loop=loop)
