"""What an application has for as long as its server serves: pools, background tasks."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager


def as_manager(fn: Callable[..., Any], server: Any) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """A function that makes the context manager of a lifespan.

    Args:
        fn: An async generator function, or a function that returns an async context manager; it takes the server, or
            nothing.
        server: The server.

    Raises:
        TypeError: It is neither, or takes something else.
    """
    if not callable(fn) or inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn):
        raise TypeError(f"a lifespan is an async generator function, which yields once, not {fn!r}")
    make = asynccontextmanager(fn) if inspect.isasyncgenfunction(fn) else fn
    signature = inspect.signature(fn)
    for args in ((server,), ()):
        with suppress(TypeError):
            signature.bind(*args)
            return lambda: make(*args)
    raise TypeError(f"a lifespan takes (server) or nothing, but {fn!r} takes {signature}")


class Lifespans:
    """The context managers of a server: they are entered when it starts, and left when it has closed.

    One task does both, as task groups demand.

    Args:
        report: Called with what goes wrong once all have been entered.
    """

    def __init__(self, report: Callable[[WseError, None, BaseException], None]) -> None:
        self._report = report
        self._managers: list[Callable[[], AbstractAsyncContextManager[Any]]] = []
        self._task: asyncio.Task[None] | None = None
        self._entered: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()

    def add(self, manager: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        """Have one more, inside of the others."""
        self._managers.append(manager)

    async def enter(self) -> None:
        """Enter all, the first one first; returns when they have been entered, by whichever caller.

        Raises:
            Exception: That of the one that failed; those before it have been left.
        """
        if self._entered is None and self._managers:
            self._stop = asyncio.Event()
            self._entered = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._entered, self._stop), name="wse-lifespan")
        if self._entered is not None:
            await asyncio.shield(self._entered)

    async def leave(self) -> None:
        """Leave all, the last one first; nothing happens if they have not been entered."""
        task, entered = self._task, self._entered
        self.forget()
        if task is None or entered is None:
            return
        if entered.done():
            self._stop.set()
        else:
            task.cancel()
        await asyncio.wait((task,))

    def forget(self) -> None:
        """They belong to an event loop that has ended."""
        self._task = self._entered = None

    async def _run(self, entered: asyncio.Future[None], stop: asyncio.Event) -> None:
        try:
            async with AsyncExitStack() as stack:
                for make in self._managers:
                    await stack.enter_async_context(make())
                entered.set_result(None)
                await stop.wait()
        except BaseException as exc:
            if entered.done() and not isinstance(exc, asyncio.CancelledError):
                error = WseError(ErrorCode.LIFESPAN_FAILED, None, f"{type(exc).__name__} in a lifespan")
                self._report(error, None, exc)
            elif not entered.done():
                entered.set_exception(exc if isinstance(exc, Exception) else RuntimeError("the start was given up"))
                entered.exception()  # it may be that nobody waits for it
            if self._entered is entered:
                self.forget()
            if not isinstance(exc, Exception):
                raise
