"""Handlers that run in threads, so that they may block and call the client that calls them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from contextvars import copy_context
from functools import partial, update_wrapper, wraps
from inspect import isawaitable
from typing import Any, Final

from wse.blocking import END
from wse.core.session.signals import is_generator
from wse.threads import Workers
from wse.typed.hints import is_async, is_async_generator

MAX_CALLS: Final = 32
"""Procedures that run at the same time; further calls of the server wait."""


class HandlerThreads:
    """The threads that run the handlers of a client: one for messages and events, in their order, others for calls."""

    def __init__(self) -> None:
        self._events = Workers("wse-client-events", 1)
        self._calls = Workers("wse-client-calls", MAX_CALLS)

    def listener(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A listener that runs in the thread for messages and events; an async one stays as it is."""
        return fn if _is_async(fn) or not callable(fn) else Threaded(fn, self._events)

    def procedure(
        self, fn: Callable[..., Any], items: Callable[[AsyncIterator[Any]], Iterator[Any]] | None = None
    ) -> Callable[..., Any]:
        """A procedure, or another function with a result, that runs in a thread; an async one stays as it is.

        Args:
            fn: The function.
            items: Makes a plain iterator of the upload that it takes as its last argument.
        """
        if _is_async(fn) or not callable(fn):  # the check of handlers says what is wrong
            return fn
        if is_generator(fn):
            return _generator(fn, items)
        return Threaded(fn if items is None else _taking(fn, items), self._calls)

    def one_by_one(self, fn: Callable[..., Any]) -> tuple[Callable[..., Any], Workers | None]:
        """A function that runs in a thread of its own, which is to be closed; an async one stays as it is."""
        if _is_async(fn) or not callable(fn):
            return fn, None
        workers = Workers("wse-client-progress", 1)
        return Threaded(fn, workers), workers

    @property
    def are_current(self) -> bool:
        """Whether one of them asks."""
        return self._events.are_current or self._calls.are_current

    def close(self) -> None:
        """Let the threads end when their handlers have ended."""
        self._events.close()
        self._calls.close()


class Threaded:
    """A handler whose calls run in a thread. It equals the handler that the application has given."""

    def __init__(self, fn: Callable[..., Any], workers: Workers) -> None:
        update_wrapper(self, fn)
        self.fn = fn
        self._workers = workers

    def __call__(self, *args: Any) -> Any:
        return self._run(args)

    async def _run(self, args: tuple[Any, ...]) -> Any:
        job = partial(copy_context().run, _called, self.fn, *args)
        result = await asyncio.wrap_future(self._workers.submit(job))
        return await result if isawaitable(result) else result

    def __eq__(self, other: object) -> bool:
        return other == self.fn if not isinstance(other, Threaded) else other.fn == self.fn

    def __hash__(self) -> int:
        return hash(self.fn)

    def __repr__(self) -> str:
        return repr(self.fn)


def _taking(fn: Callable[..., Any], items: Callable[[AsyncIterator[Any]], Iterator[Any]]) -> Callable[..., Any]:
    @wraps(fn)
    def taking(payload: Any, upload: AsyncIterator[Any]) -> Any:
        return fn(payload, items(upload))

    return taking


def _generator(
    fn: Callable[..., Any], items: Callable[[AsyncIterator[Any]], Iterator[Any]] | None
) -> Callable[..., Any]:
    taking = fn if items is None else _taking(fn, items)

    @wraps(fn)
    async def generator(*args: Any) -> AsyncIterator[Any]:
        async with aclosing(in_thread(taking(*args))) as yielded:
            async for item in yielded:
                yield item

    return generator


def _called(fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread. What would end the task that waits, or its loop, is an error like any other.

    Raises:
        Exception: That of the function.
    """
    try:
        return fn(*args)
    except BaseException as exc:
        if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
            raise
        raise RuntimeError(f"a handler raised {exc!r}") from exc


def _is_async(fn: Any) -> bool:
    """Whether a call of the function gives a coroutine, or an async generator."""
    return is_async(fn) or is_async_generator(fn)


async def in_thread(items: Iterator[Any]) -> AsyncGenerator[Any, None]:
    """Iterate in a thread, which the iterator may block."""
    workers = Workers("wse-client-items", 1)
    context = copy_context()

    async def do(*step: Any) -> Any:
        return await asyncio.wrap_future(workers.submit(partial(context.run, _called, *step)))

    try:
        while (item := await do(next, items, END)) is not END:
            yield item
    finally:
        close = getattr(items, "close", None)
        try:
            if close is not None:
                await do(close)  # after the step that may still run
        finally:
            workers.close()


def uploaded(items: AsyncIterable[Any] | Iterable[Any] | None) -> AsyncIterable[Any] | Iterable[Any] | None:
    """The items of an upload, which an iterator may take its time for."""
    return in_thread(items) if isinstance(items, Iterator) else items
