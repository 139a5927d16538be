"""The two ends of a flow of items: the sender has credit, which the receiver grants as its application takes items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from wse.core.session.output import EASY_SIZE
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.scheduling import Scheduler
    from wse.core.session.session import Session
    from wse.types import MessageType

HELD: Final = 256 * 1024
"""Bytes of items that have not been taken, above which a receiver grants nothing."""

BURST: Final = 32
"""Items that are sent in a row before others have their turn."""

DEFAULT_WINDOW: Final = 256
"""Items for which a side takes credit if it does not say otherwise: the default of `Limits.stream_window`."""


def is_credit(value: Any) -> bool:
    """Whether a value of a peer is a number of items."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Sink(ABC):
    """Where the items of a stream go.

    Args:
        window: Items that may be on their way.

    Attributes:
        grant: Tells the sender that it may send so many more.
        is_over: Whether no more items come.
        window: Items that may be on their way.
    """

    __slots__ = ("grant", "is_over", "window")

    def __init__(self, window: int) -> None:
        self.grant: Callable[[int], None] = _grant_nothing
        self.is_over = False
        self.window = window

    @abstractmethod
    def put(self, item: Any, size: int) -> bool:
        """An item of that many bytes has come; returns whether the sender had credit for it."""

    @abstractmethod
    def end(self, error: BaseException | None = None) -> None:
        """No more items come."""


def _grant_nothing(count: int) -> None: ...


class Inflow(Sink):
    """The receiving end: items that have come, and the application has not taken.

    Of `window` items, some are on their way, some wait here, and some have been taken but not been granted anew. When
    half of the window has been taken, it is granted again.

    Args:
        scheduler: Futures.
        window: Items that may be on their way.

    Attributes:
        error: The error after the last item, once it is known.
    """

    __slots__ = ("_half", "_held", "_items", "_room", "_scheduler", "_taken", "_waiter", "error")

    def __init__(self, scheduler: Scheduler, window: int) -> None:
        super().__init__(window)
        self._scheduler = scheduler
        self._items: deque[tuple[Any, int]] = deque()
        self._held = 0
        self._taken = 0
        self._room = window
        self._half = max(1, window // 2)
        self._waiter: asyncio.Future[None] | None = None
        self.error: BaseException | None = None

    def put(self, item: Any, size: int) -> bool:
        if not self._room:
            return False
        self._room -= 1
        self._held += size
        self._items.append((item, size))
        if self._waiter is not None:
            wake(self._waiter)
        return True

    def end(self, error: BaseException | None = None) -> None:
        if not self.is_over:
            self.is_over = True
            self.error = error
            if self._waiter is not None:
                wake(self._waiter)

    def __len__(self) -> int:
        return len(self._items)

    def take(self) -> Any:
        """The next item; there must be one."""
        item, size = self._items.popleft()
        self._held -= size
        self._taken = taken = self._taken + 1
        if taken >= self._half and self._held <= HELD and not self.is_over:
            self._taken = 0
            self._room += taken
            self.grant(taken)
        return item

    def drop(self) -> None:
        """The application takes no more."""
        self._items.clear()
        self._held = 0

    async def wait(self) -> None:
        """Return when there is an item, or no more come.

        Raises:
            RuntimeError: Another task waits already.
        """
        if self._waiter is not None:
            raise RuntimeError("another task is waiting for the next item")
        while not self._items and not self.is_over:
            self._waiter = self._scheduler.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    # For a procedure that takes an upload.

    def __aiter__(self) -> Inflow:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            await self.wait()
            if not self._items:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
        return self.take()


class Plain:
    """The items of a plain iterator, for code that awaits them."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def __aiter__(self) -> Plain:
        return self

    async def __anext__(self) -> Any:
        for item in self._items:
            return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        close = getattr(self._items, "close", None)
        if close is not None:
            close()


def iterator_of(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    """An iterator over items.

    Raises:
        TypeError: They cannot be iterated over.
    """
    return aiter(items) if isinstance(items, AsyncIterable) else Plain(iter(items))


class Outflow(ABC):
    """The sending end.

    Args:
        scheduler: Futures.
        most: The largest credit.
        credit: Items that may be sent.

    Attributes:
        credit: The same, at present.
        is_stopped: Whether no more items are sent.
    """

    __slots__ = ("_most", "_scheduler", "_waiter", "credit", "is_stopped")

    def __init__(self, scheduler: Scheduler, most: int, credit: int = 0) -> None:
        self._scheduler = scheduler
        self._most = most
        self._waiter: asyncio.Future[None] | None = None
        self.credit = min(credit, most)
        self.is_stopped = False

    def grant(self, count: Any) -> None:
        """The receiver takes more; a count that makes no sense is ignored."""
        if is_credit(count):
            self.credit = min(self.credit + count, self._most)
            if self._waiter is not None:
                wake(self._waiter)

    async def send_all(self, items: AsyncIterator[Any]) -> None:
        """Send all items, as fast as the receiver takes them, and close the iterator.

        Raises:
            Exception: Any exception of the iterator; as `put`.
        """
        advance = items.__anext__
        in_a_row = 0
        try:
            while not self.is_stopped:
                if not self.credit:
                    await self._wait()
                    in_a_row = 0
                try:
                    item = await advance()
                except StopAsyncIteration:
                    return
                if self.is_stopped:  # the iterator has ignored its cancellation
                    return
                self.credit -= 1
                in_a_row += 1
                if not self.is_writable or in_a_row >= BURST:
                    await self.drain()
                    in_a_row = 0
                self.put(item)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def _wait(self) -> None:
        while not self.credit:
            self._waiter = self._scheduler.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    # The way to the receiver, which each kind has.

    @property
    @abstractmethod
    def is_writable(self) -> bool:
        """Whether an item may be written now."""

    @abstractmethod
    async def drain(self) -> None:
        """Return when an item may be written, in another turn of the loop."""

    @abstractmethod
    def put(self, item: Any) -> None:
        """Write an item.

        Raises:
            Exception: It cannot be encoded; a `WseError` with `LIMIT_EXCEEDED` if it is larger than the peer takes.
        """


class SessionOutflow(Outflow):
    """The sending end, over a session.

    Args:
        session: The session.
        kind: The type of the messages that carry items.
        stamp: The call to which they belong.
        name: The procedure.
        credit: Items that may be sent.
    """

    __slots__ = ("_kind", "_name", "_session", "_stamp")

    def __init__(self, session: Session, kind: MessageType, stamp: Any, name: MessageType, credit: int = 0) -> None:
        super().__init__(session.endpoint.scheduler, session.endpoint.limits.stream_window, credit)
        self._session = session
        self._kind = kind
        self._stamp = stamp
        self._name = name

    @property
    def is_writable(self) -> bool:
        return self._session._writable

    async def drain(self) -> None:
        await self._session.drain()

    def put(self, item: Any) -> None:
        session = self._session
        data = session._encode((self._kind, item, self._stamp))
        if len(data) > EASY_SIZE or not session._direct:
            session.check_size(data, {"rp": self._name})
        session._write(data)
