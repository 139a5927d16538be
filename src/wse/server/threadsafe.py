"""The methods of a server for other threads than that of its event loop: `server.threadsafe`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, overload

from wse.blocking import BlockingStream
from wse.core.hub.network import DeviceInfo
from wse.errors import CloseReason, ErrorCode, WseError, text_of
from wse.threads import LoopEndedError, run_on
from wse.types import ClientId, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    import asyncio

    from wse.core.hub.calls import Mode
    from wse.core.hub.connection import Exclude, WseConnection, WseIdentity
    from wse.core.hub.kept.histories import KeptMessage
    from wse.core.session.asking import Items, Stream
    from wse.core.stats import Stats
    from wse.scheduler import AsyncioScheduler
    from wse.server.server import WseServer

T = TypeVar("T")


class Threadsafe:
    """A server's methods for other threads: `def` routes and views, threads of your own, signal handlers.

    Each method passes the call to the server's event loop, waits until the loop has made it, and returns its result or
    raises its error. So do not call them while the event loop itself waits for this thread.

    In the thread of the loop, as in a signal handler of the main thread, `send`, `broadcast`, `drop_client`, and
    `send`, `add` and `discard` of a room return at once. The loop makes the call soon, and an error is reported on
    `when.error`. The other methods cannot wait there, and raise `WRONG_THREAD`.

    All methods that do something raise `NOT_STARTED` if the server has not been started, or has been closed.
    """

    def __init__(self, server: WseServer, scheduler: AsyncioScheduler) -> None:
        self._server = server
        self._scheduler = scheduler

    def send(
        self,
        cid: ClientId,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: Exclude = None,
        key: MessageKey | None = None,
        fallback: bool = False,
    ) -> None:
        """As `WseServer.send`."""
        self._tell(partial(self._server.send, cid, type, payload, exclude=exclude, key=key, fallback=fallback))

    def keep(
        self, cid: ClientId, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """As `WseServer.keep`."""
        number: int = self.run(self._server.keep, cid, type, payload, key=key, ttl=ttl)
        return number

    def broadcast(
        self, type: MessageType, payload: Any = None, *, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """As `WseServer.broadcast`."""
        self._tell(partial(self._server.broadcast, type, payload, exclude=exclude, key=key))

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """As `WseServer.drop_client`."""
        self._tell(partial(self._server.drop_client, cid, reason, code))

    def room(self, name: RoomName) -> ThreadsafeRoom:
        """Return the room of that name."""
        return ThreadsafeRoom(self, name)

    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        result: Any = None,
        timeout: float | None = None,
        wait: float = 0.0,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any:
        """As `WseServer.call`. `on_progress` is called, and a plain `upload` read, in the event loop."""
        return self.run(
            self._server.call,
            cid,
            name,
            payload,
            mode=mode,
            result=result,
            timeout=timeout,
            wait=wait,
            on_progress=on_progress,
            deadline=deadline,
            upload=upload,
        )

    @overload
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: type[T],
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> BlockingStream[T]: ...
    @overload
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> BlockingStream[Any]: ...
    def stream(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> BlockingStream[Any]:
        """As `WseServer.stream`, as a plain iterator. A plain `upload` is read in the event loop."""
        stream: Stream[Any] = self._server.stream(
            cid, name, payload, item=item, window=window, timeout=timeout, deadline=deadline, upload=upload
        )
        return BlockingStream(self, stream)

    def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """As `WseServer.devices`."""
        devices: list[DeviceInfo] = self.run(self._server.devices, cid)
        return devices

    def stats(self) -> Stats:
        """As `WseServer.stats`."""
        stats: Stats = self.run(self._server.stats)
        return stats

    def online(self) -> int:
        """As `WseServer.online`."""
        number: int = self.run(self._server.online)
        return number

    def users(self) -> list[Any]:
        """Return the `cid`s of all connected users, as a list."""
        users: list[Any] = self.run(self._all_users)
        return users

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, plain or async, in the server's event loop, and return its result: for the methods of a
        connection, as in `run(conn.send, "news", text)`, and for functions of your own.

        Raises:
            WseError: `NOT_STARTED`; `WRONG_THREAD`, in the thread of the loop.
            Exception: Any exception of the function.
        """
        return self._wait(_called(partial(function, *args, **kwargs)))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            thread = self._find_thread()
        except WseError:
            coroutine.close()
            raise
        try:
            return thread.run(coroutine)
        except LoopEndedError:
            raise self._ended() from None

    def _find_thread(self) -> ServerLoop:
        thread = ServerLoop(self._server, self._find_loop(), self._scheduler)
        if thread.is_current:
            raise self._wrong_thread()
        return thread

    def _ended(self) -> WseError:
        return WseError(ErrorCode.NOT_STARTED)

    def _wrong_thread(self) -> WseError:
        problem = "the event loop would wait for itself; in its thread, call or await the server's own methods"
        return WseError(ErrorCode.WRONG_THREAD, {"use": "server"}, problem)

    def _tell(self, function: Callable[[], None]) -> None:
        loop = self._find_loop()
        if get_ident() == self._scheduler.thread:
            loop.call_soon_threadsafe(self._attempt, function)
        else:
            self.run(function)

    def _attempt(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as exc:
            error = exc if isinstance(exc, WseError) else WseError(ErrorCode.MSG_PROCESSING_ERROR, {}, text_of(exc))
            self._server._endpoint.report(error, None, None if error is exc else exc)

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._scheduler.loop
        if loop is None or not self._server._hub.started:
            raise WseError(ErrorCode.NOT_STARTED)
        return loop

    async def _all_users(self) -> list[Any]:
        return [user async for user in self._server.users()]


async def _called(function: Callable[[], Any]) -> Any:
    result = function()
    return await result if isawaitable(result) else result


class ServerLoop:
    """The event loop that a server runs in, until the server is closed.

    Args:
        server: The server.
        loop: The loop.
        scheduler: Knows the thread of the loop.
    """

    def __init__(self, server: WseServer, loop: asyncio.AbstractEventLoop, scheduler: AsyncioScheduler) -> None:
        self._server = server
        self._loop = loop
        self._scheduler = scheduler

    @property
    def is_current(self) -> bool:
        """Whether its thread asks."""
        return self._is_running and get_ident() == self._scheduler.thread

    @property
    def _is_running(self) -> bool:
        return self._scheduler.loop is self._loop and self._server._hub.started and not self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result.

        Raises:
            LoopEndedError: The server does not run in it any longer.
        """
        if not self._is_running:
            coroutine.close()
            raise LoopEndedError
        return run_on(self._loop, coroutine)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback on the loop soon, if it runs."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *args)


class ThreadsafeRoom:
    """A room of a server, for other threads.

    Attributes:
        name: The name of the room.
    """

    def __init__(self, threadsafe: Threadsafe, name: RoomName) -> None:
        self._threadsafe = threadsafe
        self._room = threadsafe._server.room(name)
        self.name = name

    @overload
    def add(self, member: WseConnection | WseIdentity) -> None: ...
    @overload
    def add(self, member: WseConnection, *, last: int) -> None: ...
    @overload
    def add(self, member: WseConnection, *, after: int) -> None: ...
    def add(self, member: WseConnection | WseIdentity, *, after: int | None = None, last: int | None = None) -> None:
        """As `Room.add`."""
        if after is None and last is None:
            self._threadsafe._tell(partial(self._room.add, member))
        else:
            self._threadsafe.run(self._room.add, member, after=after, last=last)

    def discard(self, member: WseConnection | WseIdentity) -> None:
        """As `Room.discard`."""
        self._threadsafe._tell(partial(self._room.discard, member))

    def send(
        self, type: MessageType, payload: Any = None, *, exclude: Exclude = None, key: MessageKey | None = None
    ) -> None:
        """As `Room.send`."""
        self._threadsafe._tell(partial(self._room.send, type, payload, exclude=exclude, key=key))

    def keep(self, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None) -> int:
        """As `Room.keep`."""
        number: int = self._threadsafe.run(self._room.keep, type, payload, key=key, ttl=ttl)
        return number

    def history(self, *, after: int | None = None, last: int | None = None) -> list[KeptMessage]:
        """As `Room.history`."""
        kept: list[KeptMessage] = self._threadsafe.run(self._room.history, after=after, last=last)
        return kept

    def members(self) -> frozenset[Any]:
        """As `Room.members`."""
        members: frozenset[Any] = self._threadsafe.run(self._room.members)
        return members
