"""Iterate over a stream in a thread other than that of the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from wse.core.session.asking import Stream

T = TypeVar("T")

END: Final = object()
"""Stands for the end of an iterator."""


class Loop(Protocol):
    """What has an event loop in another thread."""

    @property
    def _is_running(self) -> bool:
        """Whether the loop runs."""
        ...

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result."""
        ...

    def _post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback on the loop, and do not wait for it; nothing happens if the loop does not run."""


class BlockingStream(Generic[T]):
    """The items that a procedure of the peer yields, in order: a plain iterator, returned by `stream` of a
    `BlockingClient` and of `server.threadsafe`.

    The call is made on entering, or for the first item. Leaving the block, or the loop without a block, closes the
    generator at the peer. So does the garbage collector.
    """

    def __init__(self, loop: Loop, stream: Stream[T]) -> None:
        self._loop = loop
        self._stream = stream

    def __enter__(self) -> Self:
        self._loop._wait(self._stream.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        item: T = self._loop._wait(next_of(self._stream))
        if item is END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Take no more items, and let the generator at the peer be closed."""
        if self._loop._is_running:
            self._loop._wait(self._stream.aclose())

    def __del__(self) -> None:
        stream: Stream[T] | None = getattr(self, "_stream", None)
        if stream is not None:
            self._loop._post(_give_up, stream)  # the stream's own end would come in this thread


async def next_of(items: AsyncIterator[Any]) -> Any:
    """The next item, or `END`."""
    return await anext(items, END)


def _give_up(stream: Stream[Any]) -> None:
    if stream._asked is not None:
        stream._asked.give_up()
