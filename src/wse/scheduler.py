"""Time, futures and tasks from asyncio, for the core."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from threading import get_ident
from time import monotonic
from typing import Any

from wse.core.ports.scheduling import Timer
from wse.tasks import start_task


class Clock(typing.Protocol):
    """A time of its own, for tests that do not wait."""

    def time(self) -> float:
        """The time, in seconds."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run the callback when `delay` seconds have passed."""
        ...


class AsyncioScheduler:
    """A `wse.core.ports.scheduling.Scheduler` on the running event loop.

    It binds to the loop when it is first used, so that a server or client can be made before there is a loop, and
    anew with `bind`, so that it can be started again in another.

    Attributes:
        time: The clock: a function that returns seconds.
        thread: The id of the loop's thread; `None` before the first use, and after `release`.
    """

    __slots__ = ("_clock", "_hurried", "_loop", "_tasks", "_waiters", "thread", "time")

    def __init__(self) -> None:
        self.time: Any = monotonic  # pyright does not take a function in an attribute for the port's method
        self._clock: Clock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiters: set[asyncio.Future[Any]] = set()
        self._hurried = False
        self.thread: int | None = None

    def bind(self) -> asyncio.AbstractEventLoop:
        """Use the event loop that is running now; tasks of another one are forgotten, as they will not run again."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._tasks.clear()
            self._waiters.clear()
        self._loop = loop
        self._hurried = False
        self.thread = get_ident()
        return loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that it is bound to."""
        return self._loop

    def release(self) -> None:
        """Belong to no thread until the next `bind`: what is called now does nothing in the loop."""
        self.thread = None

    def use(self, clock: Clock) -> None:
        """Take time and timers from a clock, instead of the event loop."""
        self._clock = clock
        self.time = clock.time

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        return (self._loop or self.bind()).call_soon(callback, *args)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        if self._clock is not None:
            return self._clock.call_later(delay, callback, *args)
        return (self._loop or self.bind()).call_later(delay, callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return (self._loop or self.bind()).create_future()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return start_task(coroutine, self._loop or self.bind())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        if not task.done():  # pragma: no branch - at once it is done only where tasks start eagerly, from 3.12 on
            # The loop itself holds only weak references to tasks.
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.adopt(self.start(coroutine))

    @property
    def running(self) -> int:
        """The number of its tasks that have not ended."""
        return len(self._tasks)

    async def settle(self, tasks: Iterable[asyncio.Task[Any]], timeout: float) -> None:
        """Return when these tasks and its own have ended, after `timeout` seconds, or at a `hurry`."""
        tasks = {*tasks, *self._tasks} - {asyncio.current_task()}
        if tasks:
            await self.wait(asyncio.wait(tasks), timeout)

    async def wait(self, coroutine: Coroutine[Any, Any, Any], timeout: float) -> None:
        """Return when it has ended, after `timeout` seconds, or at a `hurry`."""
        if timeout <= 0 or self._hurried:
            coroutine.close()
            return
        waiter = asyncio.ensure_future(coroutine)
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self._waiters.discard(waiter)
            waiter.cancel()

    async def pause(self, seconds: float) -> None:
        """Return after that time, or at a `hurry`."""
        await self.wait(asyncio.sleep(seconds), seconds)

    def hurry(self) -> None:
        """End every `wait`, `settle` and `pause`, and let later ones return at once, until the next `bind`."""
        self._hurried = True
        for waiter in self._waiters:
            waiter.cancel()

    async def cancel_all(self) -> None:
        """Cancel its tasks, except the current one, and wait for their end."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
