"""The call that an async procedure is answering: its deadline, its cancellation and its progress.

A procedure runs in a context of its own, in which `current_call` finds its call. Calls that the procedure makes
inherit the deadline, if the caller has set one: what is left of it bounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import msgspec

from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio

    from wse.core.session.serving import Serving
    from wse.types import MessageType


SHORTEST: Final = 0.001
"""Seconds: the precision of inherited timeouts. 0 would be for ever."""


class CurrentCall(msgspec.Struct, eq=False):
    """The call that an async procedure is answering; see `current_call`.

    Attributes:
        deadline: The time at which the caller gives up, on the clock of the event loop; `None` if it waits for ever, or
            does not tell.
    """

    _serving: Serving | None  # until the call is over
    _stamp: Any
    deadline: float | None
    _task: asyncio.Task[Any] | None = None  # that answers it, after the first step
    _is_cancelled: bool = False
    _inherited: float | None = None  # the deadline for calls that the procedure makes
    _takes_progress: bool = False

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted: the caller has given up or is gone, or the deadline has passed. The
        procedure may stop. With `register(name, cancel=True)` it is cancelled anyway.
        """
        return self._is_cancelled or self.remaining == 0

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 after it; `None` without one, and when the call is over."""
        if self.deadline is None or self._serving is None:
            return None
        return max(0.0, self.deadline - self._serving.time())

    def progress(self, value: Any) -> None:
        """Tell the caller how far the procedure is. Nothing is sent if the caller has not asked for it (`on_progress`),
        or no longer waits. To a slow caller, only the newest value is sent.

        Raises:
            WseError: `MSG_PROCESSING_ERROR` for a value that cannot be encoded; `LIMIT_EXCEEDED` for one that is larger
                than the caller takes.
        """
        if self._takes_progress and not self._is_cancelled and self._serving is not None:
            self._serving.send_progress(self._stamp, value)

    def __repr__(self) -> str:
        return f"<CurrentCall {'cancelled' if self.cancelled else 'running'}>"


WITHOUT: Final = CurrentCall(None, None, None)
"""Stands for each call of a peer that neither cancels calls nor sets deadlines."""

current: Final[ContextVar[CurrentCall]] = ContextVar("wse.current_call")
set_current: Final = current.set
"""The method, bound once: from 3.12 on, Python binds a method of an imported name anew in each call."""

bounded: Final[set[CurrentCall]] = set()
"""The calls that are being answered and whose deadline is inherited. Mostly there are none, and a look into the context
costs more than all else that a call does for its extension."""

_shielded: Final[ContextVar[bool]] = ContextVar("wse.shielded", default=False)


def current_call() -> CurrentCall:
    """Return the call that is being answered: call this inside an async procedure, or in what it awaits.

    Elsewhere, and for a caller that does not know the extension `calls`, this is a call without a deadline that nobody
    cancels and whose progress nobody hears.
    """
    call = current.get(WITHOUT)
    return WITHOUT if call._serving is None else call


@contextmanager
def shield_deadline() -> Iterator[None]:
    """Calls inside the block do not inherit the deadline of the procedure that makes them."""
    token = _shielded.set(True)
    try:
        yield
    finally:
        _shielded.reset(token)


def inherited(timeout: float | None, default: float, name: MessageType) -> float | None:
    """The timeout of a call that is about to be made: its own, or what is left to the procedure that makes it.

    Args:
        timeout: Its own, in seconds; `None` for the default, 0 for none.
        default: The default.
        name: The procedure that is called.

    Raises:
        WseError: `RP_TIMEOUT`: nothing is left.
    """
    call = current.get(WITHOUT)
    if call._inherited is None or call._serving is None or _shielded.get():
        return timeout
    left = call._inherited - call._serving.time()
    own = default if timeout is None else timeout
    if own and own <= left:
        return timeout
    if left < SHORTEST:
        details = {"rp": name, "timeout": 0, "at": "caller"}
        raise WseError(ErrorCode.RP_TIMEOUT, details, "the deadline of the procedure that calls has passed")
    return round(left, 3)


def shorter(timeout: float | None, deadline: float | None) -> float | None:
    """The seconds that a call may take, of its timeout and its deadline; 0 and `None` as for a timeout."""
    if deadline is None:
        return timeout
    if not timeout or not deadline:
        return timeout or deadline
    return min(timeout, deadline)
