"""Runs a handler whose arguments are dependencies: makes them, calls the handler, and cleans up behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from wse.threads import Workers

if TYPE_CHECKING:
    from types import TracebackType

    from wse.typed.dependencies import Plan, Step
    from wse.validation.checks import Check


_WORKERS: Final = Workers("wse-handlers", 40)
"""The threads of handlers that block; as many as Starlette has for its own."""


async def in_thread(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function in a thread, in the context of the caller."""
    return await asyncio.wrap_future(_WORKERS.submit(partial(copy_context().run, fn, *args, **kwargs)))


class Target(NamedTuple):
    """The handler at the end of a plan.

    Attributes:
        fn: The handler.
        args: Where its positional arguments are.
        kwargs: Where its other arguments are, by name.
        check: The check of its result or of its items.
        yields: Whether it is a stream.
        is_async: Whether anything is awaited.
        in_thread: Whether it runs in a thread, although its dependencies do not.
    """

    fn: Callable[..., Any]
    args: tuple[int, ...]
    kwargs: tuple[tuple[str, int], ...]
    check: Check | None
    yields: bool
    is_async: bool
    in_thread: bool

    def call(self, values: list[Any]) -> Any:
        """Call the handler."""
        args = [values[slot] for slot in self.args]
        kwargs = {name: values[slot] for name, slot in self.kwargs}
        return in_thread(self.fn, *args, **kwargs) if self.in_thread else self.fn(*args, **kwargs)

    def own(self, value: Any) -> Any:
        """A result or an item, as it is to be sent.

        Raises:
            InvalidResultError: It is not what the handler has declared.
        """
        return value if self.check is None else self.check.own(value)


def run_plan(plan: Plan, target: Target) -> Callable[..., Any]:
    """The function that runs a plan and its handler for each call."""
    steps = tuple(_entered(step) if step.is_generator else step for step in plan.steps)
    room = [None] * (plan.size - plan.given)
    if target.yields:
        return _stream_async(steps, room, target) if target.is_async else _stream(steps, room, target)
    return _call_async(steps, room, target) if target.is_async else _call(steps, room, target)


def _entered(step: Step) -> Step:
    """The step, as one that makes a context manager of its generator."""
    return step._replace(fn=(asynccontextmanager if step.is_async else contextmanager)(step.fn))


class _Stack(ExitStack):
    """Contexts that see an exception of the handler, and do not make a result of it: it goes on."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> Literal[False]:
        super().__exit__(kind, exc, traceback)
        return False


class _AsyncStack(AsyncExitStack):
    """The same for async ones."""

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> Literal[False]:
        await super().__aexit__(kind, exc, traceback)
        return False


def _call(steps: tuple[Step, ...], room: list[Any], target: Target) -> Callable[..., Any]:
    async def later(coming: Awaitable[Any], stack: ExitStack) -> Any:
        with stack:
            return target.own(await coming)

    def handle(*args: Any) -> Any:
        values = [*args, *room]
        with _Stack() as stack:
            _make(steps, values, stack)
            result = target.call(values)
            if isawaitable(result):  # it is async, and does not look like it
                return later(result, stack.pop_all())
            return target.own(result)

    return handle


def _call_async(steps: tuple[Step, ...], room: list[Any], target: Target) -> Callable[..., Any]:
    async def handle(*args: Any) -> Any:
        values = [*args, *room]
        async with _AsyncStack() as stack:
            await _make_async(steps, values, stack)
            result = target.call(values)
            return target.own(await result if isawaitable(result) else result)

    return handle


def _stream(steps: tuple[Step, ...], room: list[Any], target: Target) -> Callable[..., Any]:
    def handle(*args: Any) -> Iterator[Any]:
        values = [*args, *room]
        with _Stack() as stack:
            _make(steps, values, stack)
            items = target.call(values)
            stack.callback(items.close)
            for item in items:
                yield target.own(item)

    return handle


def _stream_async(steps: tuple[Step, ...], room: list[Any], target: Target) -> Callable[..., Any]:
    async def handle(*args: Any) -> AsyncIterator[Any]:
        values = [*args, *room]
        async with _AsyncStack() as stack:
            await _make_async(steps, values, stack)
            items = target.call(values)
            if hasattr(items, "__aiter__"):
                stack.push_async_callback(items.aclose)
                async for item in items:
                    yield target.own(item)
            else:
                stack.callback(items.close)
                for item in items:
                    yield target.own(item)

    return handle


def _make(steps: tuple[Step, ...], values: list[Any], stack: ExitStack) -> None:
    for step in steps:
        value = step.call(values)
        values[step.slot] = stack.enter_context(value) if step.is_generator else value


async def _make_async(steps: tuple[Step, ...], values: list[Any], stack: AsyncExitStack) -> None:
    for step in steps:
        value = step.call(values)
        if step.is_generator:
            value = await stack.enter_async_context(value) if step.is_async else stack.enter_context(value)
        elif step.is_async:
            value = await value
        values[step.slot] = value


def own_items(fn: Callable[..., Any], check: Check, count: int) -> Callable[..., Any]:
    """A stream, whose items are looked at before they are sent.

    Args:
        fn: The stream.
        check: The check of an item.
        count: The number of its arguments.
    """
    target = Target(fn, tuple(range(count)), (), check, yields=True, is_async=True, in_thread=False)
    return _stream_async((), [], target)
