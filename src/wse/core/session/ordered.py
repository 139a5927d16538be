"""Async handlers that run one after the other: the next begins when the one before has ended."""

from __future__ import annotations

from collections import deque
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.scheduling import Scheduler


class Order:
    """The order of one side's ordered handlers: those of one connection run one after the other.

    Args:
        scheduler: Futures.
    """

    __slots__ = ("_scheduler", "_waiting")

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiting: dict[tuple[Any, ...], deque[asyncio.Future[None]]] = {}  # while a handler runs

    def ordered(self, fn: Callable[..., Any]) -> Ordered:
        """A handler that waits for those that were called before it on the same connection."""
        return Ordered(self, fn)

    async def run(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a handler in its turn."""
        conn = args[:-1]
        waiting = self._waiting.get(conn)
        if waiting is None:
            self._waiting[conn] = deque()
        else:
            await self._wait(conn, waiting)
        try:
            result = fn(*args)
            return await result if isawaitable(result) else result
        finally:
            self._next(conn)

    async def _wait(self, conn: tuple[Any, ...], waiting: deque[asyncio.Future[None]]) -> None:
        turn = self._scheduler.create_future()
        waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # its turn has come, and it was cancelled
                self._next(conn)
            raise

    def _next(self, conn: tuple[Any, ...]) -> None:
        waiting = self._waiting[conn]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                wake(turn)
                return
        del self._waiting[conn]

    def __len__(self) -> int:
        return len(self._waiting)


class Ordered:
    """A handler that is called in its turn."""

    __slots__ = ("_order", "fn")

    def __init__(self, order: Order, fn: Callable[..., Any]) -> None:
        self._order = order
        self.fn = fn

    def __call__(self, *args: Any) -> Any:
        return self._order.run(self.fn, args)
