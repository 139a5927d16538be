"""The calls of this side that take more than one answer: streams, uploads and progress (WIRE.md section 7)."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from wse.core.session.flow import Inflow, Outflow, SessionOutflow, iterator_of
from wse.errors import ErrorCode, WseError
from wse.validation.checks import check_for

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.scheduling import Scheduler
    from wse.core.session.flow import Sink
    from wse.core.session.session import Session
    from wse.types import MessageType
    from wse.validation.checks import Check

T = TypeVar("T")

Items = AsyncIterable[Any] | Iterable[Any]
"""What an upload is made of."""

StartCall = Callable[[Any, Any, "float | None", "dict[str, Any] | None"], "tuple[int, asyncio.Future[Any]]"]
"""Sends a call: procedure, argument, timeout and options; see `Session.start_call`."""


class Asked:
    """A call that waits for its answer, and what it does with the messages that come before.

    Attributes:
        stamp: Its stamp.
        name: The procedure.
        future: The answer.
        on_progress: Takes progress.
        inflow: Takes the items that the procedure yields.
        outflow: The items that it takes.
        sender: Sends them.
    """

    __slots__ = ("_asking", "future", "inflow", "name", "on_progress", "outflow", "sender", "stamp")

    def __init__(self, asking: Asking, stamp: int, name: MessageType, future: asyncio.Future[Any]) -> None:
        self._asking = asking
        self.stamp = stamp
        self.name = name
        self.future = future
        self.on_progress: Callable[[Any], Any] | None = None
        self.inflow: Sink | None = None
        self.outflow: Outflow | None = None
        self.sender: asyncio.Task[None] | None = None

    @property
    def scheduler(self) -> Scheduler:
        """Timers."""
        return self._asking.scheduler

    def give_up(self) -> None:
        """The answer is no longer wanted."""
        self._asking.give_up(self)

    async def answer(self) -> Any:
        """The answer.

        Raises:
            WseError: As `Session.call`.
            Exception: The one of the upload.
        """
        try:
            return await self.future
        except BaseException:
            self._asking.forget(self.stamp)
            raise


class Askable(typing.Protocol):
    """A side whose procedures can be called with options: the peer of a session, or a device of another node."""

    def ask(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        *,
        window: int | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Asked:
        """Send a call that is answered with more than a result; it is forgotten when its future is done.

        Args:
            name: The procedure.
            payload: Its argument.
            timeout: As for `Session.start_call`.
            window: Items of a stream that may be on their way; `None` for no stream.
            on_progress: Takes progress.
            upload: The items to send.

        Raises:
            WseError: As `Session.start_call`.
            TypeError: The upload cannot be iterated over.
        """
        ...


class Asking(ABC):
    """The calls that are answered with more than a result, of one kind of callee.

    Args:
        scheduler: Tasks and futures.

    Attributes:
        calls: The calls, by their stamps.
    """

    __slots__ = ("calls", "scheduler")

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.calls: dict[Any, Asked] = {}

    def begin(
        self,
        start_call: StartCall,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        sink: Sink | None,
        on_progress: Callable[[Any], Any] | None,
        upload: Items | None,
    ) -> Asked:
        """Send a call; see `Askable.ask`."""
        options: dict[str, Any] = {}
        if sink is not None:
            options["n"] = sink.window
        if on_progress is not None:
            options["p"] = 1
        items = None
        if upload is not None:
            options["up"] = 1
            items = iterator_of(upload)
        stamp, future = start_call(name, payload, timeout, options)
        self.calls[stamp] = asked = Asked(self, stamp, name, future)
        asked.on_progress = on_progress
        asked.inflow = sink
        if sink is not None:
            sink.grant = partial(self.grant, stamp)
        future.add_done_callback(partial(self._settled, asked))
        if items is not None:
            asked.outflow = self.outflow(stamp, name)
            asked.sender = self.scheduler.start(self._send_items(asked, asked.outflow, items))
            self.scheduler.adopt(asked.sender)
        return asked

    def give_up(self, asked: Asked) -> None:
        """The answer is no longer wanted."""
        if not asked.future.done():
            self.forget(asked.stamp)
            asked.future.cancel()

    def _settled(self, asked: Asked, future: asyncio.Future[Any]) -> None:
        del self.calls[asked.stamp]
        if asked.outflow is not None:
            asked.outflow.is_stopped = True
        if asked.sender is not None:
            asked.sender.cancel()
        if asked.inflow is not None:
            asked.inflow.end(None if future.cancelled() else future.exception())

    async def _send_items(self, asked: Asked, outflow: Outflow, items: Any) -> None:
        try:
            await outflow.send_all(items)
        except Exception as exc:
            if asked.future.done():
                return
            self.forget(asked.stamp)
            asked.future.set_exception(exc)
        else:
            if not outflow.is_stopped:
                self.complete(asked)

    # The way to the callee, which each kind has.

    @abstractmethod
    def forget(self, stamp: int) -> None:
        """See `Session.forget_call`."""

    @abstractmethod
    def grant(self, stamp: int, count: int) -> None:
        """Take more items of a stream."""

    @abstractmethod
    def outflow(self, stamp: int, name: MessageType) -> Outflow:
        """The way for the items of an upload."""

    @abstractmethod
    def complete(self, asked: Asked) -> None:
        """All items of the upload have been sent."""


class SessionAsking(Asking):
    """The calls of a session that are answered with more than a result.

    Args:
        session: The connection.
    """

    __slots__ = ("_session", "_types")

    def __init__(self, session: Session) -> None:
        super().__init__(session.endpoint.scheduler)
        types = session.protocol.extensions
        assert types is not None  # else nothing could be negotiated
        self._session = session
        self._types = types

    def forget(self, stamp: int) -> None:
        self._session.forget_call(stamp)

    def grant(self, stamp: int, count: int) -> None:
        self._session.write_stamped(self._types.more, count, stamp)

    def outflow(self, stamp: int, name: MessageType) -> Outflow:
        return SessionOutflow(self._session, self._types.put, stamp, name)

    def complete(self, asked: Asked) -> None:
        self._session.write_stamped(self._types.end, None, asked.stamp)

    # Messages of the peer; those with an unknown stamp belong to a call that has been given up.

    def item(self, item: Any, stamp: Any, size: int) -> None:
        """The procedure has yielded an item (`~wse:item`)."""
        asked = self._find(stamp)
        if asked is None or asked.inflow is None or asked.inflow.is_over or asked.future.done():
            return
        if not asked.inflow.put(item, size):
            error = self._session.exceeded("stream_window")
            error.details["rp"] = asked.name
            asked.inflow.end(error)
            self.give_up(asked)

    def wanted(self, count: Any, stamp: Any) -> None:
        """The procedure takes more of an upload (`~wse:want`)."""
        asked = self._find(stamp)
        if asked is not None and asked.outflow is not None:
            asked.outflow.grant(count)

    def progress(self, value: Any, stamp: Any) -> None:
        """The procedure tells how far it is (`~wse:progress`)."""
        asked = self._find(stamp)
        if asked is not None and asked.on_progress is not None and not asked.future.done():
            self._session.run_listener(asked.on_progress, (value,), self._types.progress)

    def _find(self, stamp: Any) -> Asked | None:
        try:
            return self.calls.get(stamp)
        except TypeError:
            return None


class Stream(Generic[T]):
    """The items that a procedure of the peer yields, in order; returned by `stream`.

        async with client.stream("tail", {"file": "x"}) as lines:
            async for line in lines:
                ...

    The call is made on entering, or for the first item. Leaving the block, or the loop without a block, cancels it: the
    generator at the other side is closed. So does the garbage collector.
    """

    __slots__ = (
        "_asked",
        "_check",
        "_deadline",
        "_find",
        "_name",
        "_payload",
        "_timeout",
        "_upload",
        "_window",
    )

    def __init__(
        self,
        find: Callable[[], Awaitable[Askable]],
        name: MessageType,
        payload: Any,
        *,
        window: int,
        timeout: float | None,
        deadline: float | None,
        upload: Items | None,
        item: Any = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be 1 or more items, not {window}")
        for seconds in (timeout, deadline):
            if seconds is not None and seconds < 0:
                raise ValueError(f"a timeout must be 0 (none) or more seconds, not {seconds}")
        self._find = find
        self._name = name
        self._payload = payload
        self._window = window
        self._timeout = timeout
        self._deadline = deadline
        self._upload = upload
        self._check = None if item is None else check_for(item)
        self._asked: Asked | None = None

    async def _start(self) -> Asked:
        callee = await self._find()
        self._asked = asked = callee.ask(
            self._name, self._payload, self._deadline or 0, window=self._window, upload=self._upload
        )
        self._upload = self._payload = None
        return asked

    async def __aenter__(self) -> Self:
        if self._asked is None:
            await self._start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        asked = self._asked or await self._start()
        inflow = cast("Inflow", asked.inflow)
        if not inflow:
            await self._wait(asked, inflow)
            if not inflow:
                if inflow.error is not None:
                    raise inflow.error
                raise StopAsyncIteration
        item = inflow.take()
        return cast("T", item if self._check is None else self._checked(item, self._check))

    def _checked(self, item: Any, check: Check) -> Any:
        try:
            return check.received(item, rp=self._name)
        except WseError:
            if self._asked is not None:
                self._asked.give_up()
            raise

    async def _wait(self, asked: Asked, inflow: Inflow) -> None:
        if not self._timeout:
            await inflow.wait()
            return
        timer = asked.scheduler.call_later(self._timeout, self._too_late, asked, inflow)
        try:
            await inflow.wait()
        finally:
            timer.cancel()

    def _too_late(self, asked: Asked, inflow: Inflow) -> None:
        details = {"rp": self._name, "timeout": self._timeout, "at": "caller"}
        inflow.end(WseError(ErrorCode.RP_TIMEOUT, details))
        asked.give_up()

    async def aclose(self) -> None:
        """Take no more items, and let the generator at the other side be closed."""
        self.leave()

    def leave(self) -> None:
        """The same; runs in the event loop."""
        asked = self._asked
        if asked is not None:
            asked.give_up()
            cast("Inflow", asked.inflow).drop()

    def __del__(self) -> None:
        asked = getattr(self, "_asked", None)
        if asked is not None and not asked.future.done():
            with suppress(RuntimeError):  # the loop is closed
                asked.scheduler.call_soon(asked.give_up)
