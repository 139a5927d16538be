"""The calls of this side that take more than one answer: streams, uploads and progress (WIRE.md section 7)."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from wse.core.session.flow import Inflow, Outflow, iterator_of
from wse.core.session.signals import run_handler
from wse.errors import ErrorCode, WseError
from wse.validation.checks import check_for

if TYPE_CHECKING:
    import asyncio

    from wse.core.session.session import Session
    from wse.types import MessageType
    from wse.validation.checks import Check

T = TypeVar("T")

Items = AsyncIterable[Any] | Iterable[Any]
"""What an upload is made of."""


class Asked:
    """What a call that waits for its answer does with the messages that come before.

    Attributes:
        name: The procedure.
        future: The answer.
        on_progress: Takes progress.
        inflow: The items that the procedure yields.
        outflow: The items that it takes.
    """

    __slots__ = ("future", "inflow", "name", "on_progress", "outflow", "sender")

    def __init__(self, name: MessageType, future: asyncio.Future[Any]) -> None:
        self.name = name
        self.future = future
        self.on_progress: Callable[[Any], Any] | None = None
        self.inflow: Inflow | None = None
        self.outflow: Outflow | None = None
        self.sender: asyncio.Task[None] | None = None


class Asking:
    """The calls of a session that are answered with more than a result.

    Args:
        session: The connection.

    Attributes:
        calls: The calls, by their stamps.
    """

    __slots__ = ("_session", "_types", "calls")

    def __init__(self, session: Session) -> None:
        types = session.protocol.extensions
        assert types is not None  # else nothing could be negotiated
        self._session = session
        self._types = types
        self.calls: dict[Any, Asked] = {}

    def start(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        *,
        window: int | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> tuple[int, Asked]:
        """Send a call; it is forgotten when its future is done.

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
        session = self._session
        options: dict[str, Any] = {}
        if window is not None:
            options["n"] = window
        if on_progress is not None:
            options["p"] = 1
        items = None
        if upload is not None:
            options["up"] = 1
            items = iterator_of(upload)
        stamp, future = session.start_call(name, payload, timeout, options)
        self.calls[stamp] = asked = Asked(name, future)
        asked.on_progress = on_progress
        if window is not None:
            asked.inflow = Inflow(session.endpoint.scheduler, window)
            asked.inflow.grant = partial(session.write_stamped, self._types.more, stamp=stamp)
        future.add_done_callback(partial(self._settled, stamp))
        if items is not None:
            asked.outflow = Outflow(session, self._types.put, stamp, name)
            scheduler = session.endpoint.scheduler
            asked.sender = scheduler.start(self._send_items(stamp, asked, asked.outflow, items))
            scheduler.adopt(asked.sender)
        return stamp, asked

    def give_up(self, stamp: int) -> None:
        """The answer is no longer wanted."""
        asked = self.calls.get(stamp)
        if asked is not None and not asked.future.done():
            self._session.forget_call(stamp)
            asked.future.cancel()

    def _settled(self, stamp: int, future: asyncio.Future[Any]) -> None:
        asked = self.calls.pop(stamp)
        if asked.outflow is not None:
            asked.outflow.is_stopped = True
        if asked.sender is not None:
            asked.sender.cancel()
        if asked.inflow is not None:
            asked.inflow.end(None if future.cancelled() else future.exception())

    async def _send_items(self, stamp: int, asked: Asked, outflow: Outflow, items: Any) -> None:
        try:
            await outflow.send_all(items)
        except Exception as exc:
            if asked.future.done():
                return
            self._session.forget_call(stamp)
            asked.future.set_exception(exc)
        else:
            if not outflow.is_stopped:
                self._session.write_stamped(self._types.end, None, stamp)

    # Messages of the peer; those with an unknown stamp belong to a call that has been given up.

    def item(self, item: Any, stamp: Any, size: int) -> None:
        """The procedure has yielded an item (`~wse:item`)."""
        asked = self._find(stamp)
        if asked is None or asked.inflow is None or asked.inflow.is_over:
            return
        if not asked.inflow.put(item, size):
            error = self._session.exceeded("stream_window")
            error.details["rp"] = asked.name
            asked.inflow.end(error)
            self.give_up(stamp)

    def wanted(self, count: Any, stamp: Any) -> None:
        """The procedure takes more of an upload (`~wse:want`)."""
        asked = self._find(stamp)
        if asked is not None and asked.outflow is not None:
            asked.outflow.grant(count)

    def progress(self, value: Any, stamp: Any) -> None:
        """The procedure tells how far it is (`~wse:progress`)."""
        asked = self._find(stamp)
        if asked is not None and asked.on_progress is not None and not asked.future.done():
            session = self._session
            run_handler(session, asked.on_progress, (value,), session._listener_failed, self._types.progress)

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
        "_asking",
        "_check",
        "_deadline",
        "_find",
        "_name",
        "_payload",
        "_stamp",
        "_timeout",
        "_upload",
        "_window",
    )

    def __init__(
        self,
        find: Callable[[], Awaitable[Session]],
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
        self._asking: Asking | None = None
        self._asked: Asked | None = None
        self._stamp = 0

    async def _start(self) -> Asked:
        session = await self._find()
        asking = session.asking
        self._stamp, asked = asking.start(
            self._name,
            self._payload,
            self._deadline or 0,
            window=session.window(self._window),
            upload=self._upload,
        )
        self._asking, self._asked = asking, asked
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
            await self._wait(inflow)
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
            self._leave()
            raise

    async def _wait(self, inflow: Inflow) -> None:
        if not self._timeout or self._asking is None:
            await inflow.wait()
            return
        timer = self._asking._session.endpoint.scheduler.call_later(self._timeout, self._too_late, inflow)
        try:
            await inflow.wait()
        finally:
            timer.cancel()

    def _too_late(self, inflow: Inflow) -> None:
        inflow.end(WseError(ErrorCode.RP_TIMEOUT, {"rp": self._name, "timeout": self._timeout}))
        self._leave()

    async def aclose(self) -> None:
        """Take no more items, and let the generator at the other side be closed."""
        self._leave()
        if self._asked is not None and self._asked.inflow is not None:
            self._asked.inflow.drop()

    def _leave(self) -> None:
        if self._asking is not None:
            self._asking.give_up(self._stamp)

    def __del__(self) -> None:
        asked, asking = getattr(self, "_asked", None), getattr(self, "_asking", None)
        if asked is not None and asking is not None and not asked.future.done():
            with suppress(RuntimeError):  # the loop is closed
                asking._session.endpoint.scheduler.call_soon(asking.give_up, self._stamp)


async def call_with(
    session: Session,
    name: MessageType,
    payload: Any,
    timeout: float | None,
    on_progress: Callable[[Any], Any] | None,
    upload: Items | None,
) -> Any:
    """Call a procedure that tells its progress, or takes items.

    Raises:
        WseError: As `Session.call`; `UNSUPPORTED`, if the peer does not know the extension.
        Exception: The one of the upload.
    """
    asking = session.asking
    stamp, asked = asking.start(name, payload, timeout, on_progress=on_progress, upload=upload)
    try:
        return await asked.future
    except BaseException:
        session.forget_call(stamp)
        raise
