"""A socket that its session has left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.tasks import wake
from wse.types import ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.core.ports.transport import Link


class Leftover:
    """The `Receiver` of a socket whose session goes on without it. Nothing that still comes is heard.

    Args:
        link: The link, which is closed here.
        code: The code of the close.
        reason: Its reason.
        scheduler: Timers.
        patience: Seconds until a socket is cut that has not closed.
        gone: Called when it has closed.
    """

    __slots__ = ("_gone", "_scheduler", "_timer", "_waiters", "link", "ready_state")

    ended = True

    def __init__(
        self,
        link: Link,
        code: int,
        reason: str,
        scheduler: Scheduler,
        patience: float,
        gone: Callable[[Leftover], None],
    ) -> None:
        self.link = link
        self.ready_state = ReadyState.CLOSING
        self._gone = gone
        self._scheduler = scheduler
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: Timer = scheduler.call_later(patience, link.abort)
        link.attach(self)
        link.close(code, reason)

    def receive(self, data: str | bytes | memoryview) -> None: ...

    def closed(self, code: int, reason: str) -> None:
        self.ready_state = ReadyState.CLOSED
        self._timer.cancel()
        for waiter in self._waiters:
            wake(waiter)
        self._gone(self)

    async def wait_closed(self) -> None:
        """Return when the socket has closed."""
        if self.ready_state is not ReadyState.CLOSED:
            waiter = self._scheduler.create_future()
            self._waiters.append(waiter)
            await waiter

    def writable(self, writable: bool) -> None: ...

    def violated(self, code: int, problem: str) -> None: ...

    def pong(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...
