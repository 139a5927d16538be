"""A socket that its session has left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    __slots__ = ("_gone", "_timer", "link")

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
        self._gone = gone
        self._timer: Timer = scheduler.call_later(patience, link.abort)
        link.attach(self)
        link.close(code, reason)

    def receive(self, data: str | bytes | memoryview) -> None: ...

    def closed(self, code: int, reason: str) -> None:
        self._timer.cancel()
        self._gone(self)

    def writable(self, writable: bool) -> None: ...

    def violated(self, code: int, problem: str) -> None: ...

    def pong(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...
