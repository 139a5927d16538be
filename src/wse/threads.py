"""Between event loops and other threads: wait for what a loop does, a loop in a thread, and threads for handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from queue import SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")

LOOK_AGAIN: Final = 1.0
"""Seconds after which a waiting thread looks whether the loop is still there."""


class LoopEndedError(Exception):
    """The event loop has ended, so nothing runs on it."""


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop of another thread, and return its result. If the waiting thread is interrupted, as by
    Ctrl-C, the coroutine is cancelled.

    Raises:
        LoopEndedError: The loop has ended.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError as exc:
        coroutine.close()
        raise LoopEndedError from exc
    return _result(future, loop)


def _result(future: Future[T], loop: asyncio.AbstractEventLoop) -> T:
    try:
        while not future.done():
            wait((future,), LOOK_AGAIN)
            if not future.done() and loop.is_closed():
                raise LoopEndedError
        return future.result()
    except CancelledError as exc:
        raise LoopEndedError from exc
    finally:
        future.cancel()


class LoopThread:
    """A daemon thread with an event loop.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        self._stop = self.loop.create_future()
        self._stopping = False
        self._lock = threading.RLock()  # a signal handler may come in between
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it runs and has not been told to stop; in a process that was forked it does not run."""
        return not self._stopping and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether it is the thread that asks."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result; see `run_on`. The caller must be in another thread.

        Raises:
            LoopEndedError: The thread does not run.
        """
        with self._lock:  # so that what comes before the stop is run
            if not self.is_alive:
                coroutine.close()
                raise LoopEndedError
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return _result(future, self.loop)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback on the loop, and do not wait for it; nothing happens if the thread does not run."""
        with self._lock:
            if self.is_alive:
                self.loop.call_soon_threadsafe(callback, *args)

    def stop(self) -> None:
        """Cancel all tasks and end the thread; returns when it has ended, unless it is the thread that asks."""
        with self._lock:
            if self.is_alive:
                self._stopping = True
                self.loop.call_soon_threadsafe(self._stop.set_result, None)
        if not self.is_current:
            self._thread.join()

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stop


_Job = tuple["Future[Any]", Callable[[], Any]]


class Workers:
    """Daemon threads that run functions, which begin in the order in which they come.

    The threads start when they are needed. Those of `concurrent.futures` would do, but Python does not exit while one
    of them is blocked.

    Args:
        name: The name of the threads.
        most: The number of threads.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._here = threading.local()

    @property
    def are_current(self) -> bool:
        """Whether one of them asks."""
        return hasattr(self._here, "jobs")

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            self._jobs.put((future, function))
            if self._idle:
                self._idle -= 1
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, args=(self._jobs,), name=self._name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end when they have run what was submitted; others start when they are needed."""
        with self._lock:
            for _ in range(self._threads):
                self._jobs.put(None)
            self._jobs = SimpleQueue()
            self._threads = self._idle = 0

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        self._here.jobs = jobs
        while (job := jobs.get()) is not None:
            future, function = job
            if future.set_running_or_notify_cancel():
                try:
                    result = function()
                except BaseException as exc:
                    future.set_exception(exc)
                else:
                    future.set_result(result)
                    del result
            del job, future, function  # else it would keep them while it waits
            with self._lock:
                if jobs is self._jobs:
                    self._idle += 1
