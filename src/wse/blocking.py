"""Iterate over a stream in a thread other than that of the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar

from wse.threads import LoopEndedError

if TYPE_CHECKING:
    from wse.core.session.asking import Stream
    from wse.errors import WseError

T = TypeVar("T")

END: Final = object()
"""Stands for the end of an iterator."""


class Runner(Protocol):
    """An event loop in another thread."""

    @property
    def is_current(self) -> bool:
        """Whether its thread asks."""
        ...

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result.

        Raises:
            LoopEndedError: The loop does not run.
        """
        ...

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback on the loop, and do not wait for it; nothing happens if the loop does not run."""
        ...


class Host(Protocol):
    """A client or server whose event loop runs in another thread."""

    def _find_thread(self) -> Runner:
        """The loop that runs now.

        Raises:
            WseError: There is none, or its own thread asks.
        """
        ...

    def _ended(self) -> WseError:
        """What is raised when the loop has ended."""
        ...

    def _wrong_thread(self) -> WseError:
        """What is raised in the thread of the loop."""
        ...


class BlockingStream(Generic[T]):
    """The items that a procedure of the peer yields, in order: a plain iterator, returned by `stream` of a
    `BlockingClient` and of `server.threadsafe`.

    The call is made on entering, or for the first item. Leaving the block, or the loop without a block, closes the
    generator at the peer. So does the garbage collector.
    """

    def __init__(self, host: Host, stream: Stream[T]) -> None:
        self._host = host
        self._stream = stream
        self._runner: Runner | None = None  # the one in which the call was made

    def __enter__(self) -> Self:
        self._wait(self._stream.__aenter__)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        item: T = self._wait(partial(next_of, self._stream))
        if item is END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Take no more items, and let the generator at the peer be closed."""
        if self._runner is not None:
            with suppress(LoopEndedError):
                self._run(self._runner, self._stream.aclose)

    def __del__(self) -> None:
        runner: Runner | None = getattr(self, "_runner", None)
        if runner is not None:
            runner.post(_give_up, self._stream)  # the stream's own end would come in this thread

    def _wait(self, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if self._runner is None:
            self._runner = self._host._find_thread()
        try:
            return self._run(self._runner, step)
        except LoopEndedError:
            raise self._host._ended() from None

    def _run(self, runner: Runner, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if runner.is_current:
            raise self._host._wrong_thread()
        return runner.run(step())


async def next_of(items: AsyncIterator[Any]) -> Any:
    """The next item, or `END`."""
    return await anext(items, END)


def _give_up(stream: Stream[Any]) -> None:
    if stream._asked is not None:
        stream._asked.give_up()
