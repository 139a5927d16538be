"""The client's side of the `inbox` extension (WIRE.md section 7): messages that the server keeps.

The server numbers what it keeps for the user. This side hands each message to its listeners once, in order, and reports
how far they have come: the end of the unbroken row of messages whose listeners have returned without an exception. It
never reports a message that lies beyond one that has failed, so that one comes again when the program is restarted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from wse.core.inbox import MOST_OF_A_NAME
from wse.core.session.extensions import Control, Extension
from wse.core.session.ledger import is_count
from wse.core.session.signals import HANDLER_ERRORS, settle
from wse.errors import ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    from wse.client.session import ClientSession
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.ports.scheduling import Timer
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageType

REPORT_EVERY: Final = 64
"""Messages after which it is reported how far the listeners have come."""

REPORT_AFTER: Final = 2.0
"""Seconds after which it is reported at the latest."""

TURNS: Final = 4
"""Turns of the event loop in which code that has awaited the connection can add its listeners."""

MOST_AT_A_TIME: Final = 100
"""Async listeners of kept messages that run at a time. More messages wait for them."""

ENOUGH: Final = 256
"""Messages that wait, after which the server is asked for no more until half of them have been handled."""


class Kept(NamedTuple):
    """Where a message stands in the inbox: `client.kept`, inside its listeners.

    Attributes:
        n: Its number among the messages that have been kept for the user, which count from 1.
        at: When it was kept, in Unix seconds by the server's clock.
        epoch: A name for this row of numbers: a store that has lost the inbox begins another one.
    """

    n: int
    at: float
    epoch: str = ""


class Unseen:
    """A message whose listeners have not all returned, and how many have not."""

    __slots__ = ("left", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.left = 1


current: ContextVar[Kept | None] = ContextVar("wse_kept", default=None)


class InboxExtension(Extension):
    """`inbox` at a client.

    Args:
        endpoint: The client's listeners.
        device: The name of this device among those of its user.
        after: The last message that the application has, or its number, if it knows better than the server.
        lost: Called with the number of messages that are no longer kept.

    Raises:
        ValueError: The name is none, or too long; `after` is no message.
    """

    name = "inbox"

    def __init__(self, endpoint: Endpoint, device: str, after: int | Kept | None, lost: Callable[[int], None]) -> None:
        self._endpoint = endpoint
        self._device = device
        self._lost = lost
        if not isinstance(device, str) or not 0 < len(device) <= MOST_OF_A_NAME:
            raise ValueError(f"inbox is the name of this device, of 1 to {MOST_OF_A_NAME} characters, not {device!r}")
        number, self._epoch = (after.n, after.epoch) if isinstance(after, Kept) else (after, "")
        if number is not None and not is_count(number):
            raise ValueError(f"after is the number of a message, or a Kept, not {after!r}")
        self._after: int | None = number
        self._offered: int | None = number
        self._has_enough = False
        self._forgotten = 0  # messages that are gone, of which the application has not been told
        self._waiting: deque[tuple[ClientSession, list[Any]]] = deque()
        self._running = 0  # async listeners
        self._tasks: set[asyncio.Task[Any] | None] = set()  # which run them
        self._is_closing = False
        self._idle: asyncio.Future[None] | None = None  # done when no listener runs
        self._open: dict[int, Unseen] = {}
        self._reported = 0
        self._begun = False
        self._session: ClientSession | None = None
        self._timer: Timer | None = None

    def offer(self) -> Any:
        self._offered = self._after
        offer: dict[str, Any] = {"device": self._device}
        if self._after is not None:
            offer["after"] = self._after
            if self._epoch:
                offer["epoch"] = self._epoch
        return offer

    def answered(self, session: ClientSession, params: Any) -> None:
        first = params.get("from") if isinstance(params, dict) else None
        if not is_count(first):
            return  # a session that goes on, or a server that does not know now
        epoch = params.get("epoch")
        if not isinstance(epoch, str):
            epoch = ""
        is_another = bool(self._epoch) and epoch != self._epoch
        self._epoch = epoch
        if is_another:
            self._restart(first - 1)
        elif self._after is None or self._offered is None:
            self._after = max(first - 1, self._after or 0)
        elif first > self._offered:
            self._after = max(first - 1, self._after)  # messages that waited may have been handled meanwhile
        else:  # the server has lost the inbox, and counts anew
            self._restart(first - 1)
        lost = params.get("lost")
        self._forgotten = lost if is_count(lost) else 0

    def _restart(self, after: int | None) -> None:
        self._after = after
        self._reported = 0
        self._open.clear()
        self._waiting.clear()

    def introduced(self) -> None:
        """The client is another user from now on. The numbers of one user mean nothing to the next one."""
        self.report()
        if self._begun:
            self._begun = False
            self._epoch = ""
            self._restart(None)

    def welcomed(self, session: ClientSession) -> None:
        """The client is ready. The application is told what is gone when it has had time to listen."""
        self._begun = True
        self._is_closing = False
        if session is not self._session:  # what was reported may have been lost with the old one
            self._session = session
            self._reported = 0
            self._has_enough = False
        self._take_waiting()
        self._note()
        if self.name not in session.agreement.names:
            error = WseError(ErrorCode.UNSUPPORTED, {"extension": self.name}, "the server has no inboxes")
            self._endpoint.report(error, session)
        if self._forgotten:
            self._tell_after(TURNS)

    def _tell_after(self, turns: int) -> None:
        if turns:
            self._endpoint.scheduler.call_soon(self._tell_after, turns - 1)
        else:
            self._tell()

    def _tell(self) -> None:
        lost, self._forgotten = self._forgotten, 0
        if lost:
            self._lost(lost)

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.kept: self._came}

    # Messages.

    def _came(self, session: ClientSession, message: Any, stamp: Any) -> None:
        if not isinstance(message, list) or len(message) != 4 or not is_count(message[0]):
            session.violation("a kept message is an array of its number, type, payload and time")
            return
        if self._running < MOST_AT_A_TIME and not self._waiting and not self._is_closing:
            self._handle(session, message)
        else:
            self._waiting.append((session, message))
            # Another node that has taken the session over does not know that this was said.
            if len(self._waiting) >= ENOUGH and (not self._has_enough or not len(self._waiting) % ENOUGH):
                self._want(wants=False)

    def _handle(self, session: ClientSession, message: list[Any]) -> None:
        number, type_, payload, at = message
        self._tell()
        if self._after is not None:
            if number <= self._after:
                return  # it has come before
            if number > self._after + 1:
                self._lost(number - self._after - 1)
        self._after = number
        try:
            listeners = self._endpoint.channel._by_type.get(type_)
        except TypeError:
            session.violation("a message's type must be hashable")
            return
        self._endpoint.counters.messages_in += 1
        if listeners is None:
            session._ignored(type_, payload, None)
        else:
            unseen = self._open[number] = Unseen(number)
            token = current.set(Kept(number, at if isinstance(at, int | float) else 0.0, self._epoch))
            try:
                for fn in listeners.fns:
                    unseen.left += 1
                    self._call(session, fn, unseen, type_, payload)
            finally:
                current.reset(token)
            self._returned(unseen)
        self._note()

    def _call(
        self, session: ClientSession, fn: Callable[[Any], Any], message: Unseen, type_: MessageType, payload: Any
    ) -> None:
        try:
            result = fn(payload)
        except HANDLER_ERRORS as exc:
            session._listener_failed(exc, type_)
            return
        if result is not None and isawaitable(result):
            self._running += 1
            self._endpoint.scheduler.spawn(self._settle(session, result, message, type_))
        else:
            self._returned(message)

    async def _settle(self, session: ClientSession, awaitable: Any, message: Unseen, type_: MessageType) -> None:
        failed: list[BaseException] = []
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await settle(awaitable, failed.append)
        finally:
            self._running -= 1
            self._tasks.discard(task)
            if not self._running and self._idle is not None:
                wake(self._idle)
        if failed:
            session._listener_failed(failed[0], type_)
        else:
            self._returned(message)
            self._note()
        self._take_waiting()
        if self._has_enough and len(self._waiting) <= ENOUGH // 2:
            self._want(wants=True)

    def _take_waiting(self) -> None:
        while self._waiting and self._running < MOST_AT_A_TIME and not self._is_closing:
            self._handle(*self._waiting.popleft())

    def _returned(self, message: Unseen) -> None:
        """A listener has returned without an exception."""
        message.left -= 1
        if not message.left and self._open.get(message.number) is message:  # else it was of the inbox before
            del self._open[message.number]

    def _want(self, *, wants: bool) -> None:
        """Tell the server whether to send more."""
        session = self._session
        if session is None or not session.valid or not self._epoch:  # an older server sends none
            return
        types = session.protocol.extensions
        assert types is not None  # or there would have been no answer
        self._has_enough = not wants
        session.write(types.kept, wants)

    # How far the listeners have come.

    @property
    def seen(self) -> int:
        """The end of the unbroken row of messages whose listeners have returned."""
        return next(iter(self._open)) - 1 if self._open else self._after or 0

    def _note(self) -> None:
        ahead = self.seen - self._reported
        if ahead >= REPORT_EVERY:
            self.report()
        elif ahead > 0 and self._timer is None:
            self._timer = self._endpoint.scheduler.call_later(REPORT_AFTER, self.report)

    async def settle(self, within: float) -> None:
        """Take no more messages, and return when the listeners that run have ended, so that what they have handled is
        reported; or when so many seconds are over. A listener that closes the client does not wait for itself.
        """
        if not self._running or within <= 0 or self._reporting_session() is None:
            return
        if asyncio.current_task() in self._tasks:
            return
        self._is_closing = True
        idle = self._idle
        if idle is None or idle.done():
            idle = self._idle = self._endpoint.scheduler.create_future()
        timer = self._endpoint.scheduler.call_later(within, wake, idle)
        try:
            await asyncio.shield(idle)  # others may wait for it as well
        finally:
            timer.cancel()

    def report(self) -> None:
        """Tell the server how far the listeners have come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session, seen = self._reporting_session(), self.seen
        if session is not None and seen > self._reported:
            types = session.protocol.extensions
            assert types is not None  # or there would be no extension
            self._reported = seen
            session.write(types.seen, seen)

    def _reporting_session(self) -> ClientSession | None:
        """The session, if the server takes reports over it now."""
        session = self._session
        return session if session is not None and session.valid and self.name in session.agreement.names else None
