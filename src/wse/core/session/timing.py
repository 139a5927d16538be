"""How long things take, if metrics are on; without them, none of this is on any path."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from wse.core.session.ordered import Ordered
from wse.core.stats import Histogram

if TYPE_CHECKING:
    from wse.core.session.rpc import Procedures
    from wse.types import MessageType

TIMED: Final = 100
"""Calls of one procedure that are timed between two calls of `Instruments.arm`. To time a call costs a seventh of what
the fastest call costs; so of a thousand in this time, a tenth is timed, and the others run as if metrics were off."""


class Instruments:
    """The histograms of one server or client.

    Args:
        procedures: The procedures whose calls are timed.
        clock: Returns a time in seconds.

    Attributes:
        calls: Seconds until a call was answered, by procedure.
        broadcast: Seconds until a broadcast was handed to all sockets and to the broker.
        rtt: Seconds from a ping to its pong.
        lag: Seconds by which the event loop ran a timer too late.
        clock: The clock.
    """

    __slots__ = ("_procedures", "_timed", "broadcast", "calls", "clock", "lag", "rtt")

    def __init__(self, procedures: Procedures, clock: Callable[[], float]) -> None:
        self._procedures = procedures
        procedures.stand_ins = self
        self._timed: dict[MessageType, _Timed] = {}
        self.clock = clock
        self.calls: dict[MessageType, Histogram] = {}
        self.broadcast = Histogram()
        self.rtt = Histogram()
        self.lag = Histogram()

    def arm(self) -> None:
        """Time the next `TIMED` calls of each procedure."""
        by_name = self._procedures.by_name
        for name, fn in by_name.items():
            timed = self._timed.get(name)
            if timed is None or not timed.stands_for(fn):  # it is new, or another one of that name
                histogram = self.calls.setdefault(name, Histogram())
                timed = self._timed[name] = _Timed(self, name, fn, histogram)
            timed.left = TIMED
            by_name[name] = timed  # a key that is there: the dict's size does not change

    def disarm(self) -> None:
        """Time no call from now on."""
        for name, timed in self._timed.items():
            self.leave(name, timed)
        self._timed.clear()

    def leave(self, name: MessageType, timed: _Timed) -> None:
        """Give a procedure its own function back."""
        if timed.stands_for(self._procedures.by_name.get(name)):
            self._procedures.by_name[name] = timed.fn


class _Timed:
    """A procedure whose calls are timed.

    Attributes:
        fn: Its function.
        left: Calls until the function takes its own place again.
    """

    __slots__ = ("_clock", "_histogram", "_instruments", "_name", "fn", "left")

    def __init__(
        self, instruments: Instruments, name: MessageType, fn: Callable[..., Any], histogram: Histogram
    ) -> None:
        self._instruments = instruments
        self._clock = instruments.clock
        self._name = name
        self._histogram = histogram
        self.fn = fn
        self.left = TIMED

    def __getattr__(self, name: str) -> Any:
        """What is known of the procedure, such as the class that it takes."""
        return getattr(self.fn.fn if isinstance(self.fn, Ordered) else self.fn, name)

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        if self.left <= 0:
            self._instruments.leave(self._name, self)
        start = self._clock()
        result = None
        try:
            result = self.fn(*args)
        finally:
            if result is None or not isawaitable(result):
                self._histogram.observe(self._clock() - start)
        return self._until_done(result, start) if result is not None and isawaitable(result) else result

    def stands_for(self, fn: Callable[..., Any] | None) -> bool:
        """Whether that is the procedure, timed or not."""
        return fn is self or fn is self.fn

    async def _until_done(self, awaitable: Any, start: float) -> Any:
        try:
            return await awaitable
        finally:
            self._histogram.observe(self._clock() - start)
