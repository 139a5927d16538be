"""The publisher for programs without asyncio: tasks, scripts, synchronous web applications, threads."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from wse.errors import CloseReason
from wse.protocols.choice import as_protocols
from wse.publisher.publisher import Publisher, broker_of
from wse.types import ClientId, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wse.core.hub.calls import Mode
    from wse.core.hub.network import DeviceInfo
    from wse.core.inbox import Inbox
    from wse.core.ports.protocol import Protocol


class BlockingPublisher:
    """A `Publisher` for code without asyncio, such as Celery tasks and Django views.

    Its methods return when the broker has taken the message. It connects at the first call, in a thread of its own, and
    again after a fork. If it cannot connect, all calls that wait for the connection fail, and the next call tries
    again. One object may serve any number of threads for as long as the process lives; `close`, or leaving the context,
    ends it.

    Args:
        broker: The URL of the cluster's broker.
        protocol: As for `Publisher`.
        inbox: As for `Publisher`.

    Raises:
        ValueError: As `Publisher`.
    """

    def __init__(
        self, broker: str, *, protocol: Protocol | Iterable[Protocol] | None = None, inbox: Inbox | None = None
    ) -> None:
        self._url = broker
        self._inbox = inbox
        self._protocols = as_protocols(protocol)
        broker_of(broker)  # for its imports: after a fork during an import, the import lock would be held for ever
        # By process. A forked process has a lock of its own, as the parent's may be held by a thread that the child
        # does not have. It keeps the parent's event loop, because closing that would disturb the shared selector.
        self._locks: dict[int, threading.Lock] = {}
        self._threads: dict[int, PublisherThread] = {}

    def send(self, cid: ClientId, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """As `Publisher.send`."""
        self._do(lambda publisher: publisher.send(cid, type, payload, key=key))

    def keep(
        self, cid: ClientId, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int:
        """As `Publisher.keep`."""
        number: int = self._do(lambda publisher: publisher.keep(cid, type, payload, key=key, ttl=ttl))
        return number

    def broadcast(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: ClientId | None = None,
        key: MessageKey | None = None,
    ) -> None:
        """As `Publisher.broadcast`."""
        self._do(lambda publisher: publisher.broadcast(type, payload, exclude=exclude, key=key))

    def room(self, name: RoomName) -> BlockingRoom:
        """Return the room of that name, to send to it."""
        return BlockingRoom(self, name)

    def drop_client(self, cid: ClientId, reason: str = CloseReason.BY_SERVER, code: int = 1000) -> None:
        """As `Publisher.drop_client`."""
        self._do(lambda publisher: publisher.drop_client(cid, reason, code))

    @overload
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Literal["all"],
        timeout: float | None = None,
    ) -> list[Any]: ...
    @overload
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any: ...
    def call(
        self,
        cid: ClientId,
        name: MessageType,
        payload: Any = None,
        *,
        mode: Mode = "first",
        timeout: float | None = None,
    ) -> Any:
        """As `Publisher.call`."""
        return self._do(lambda publisher: publisher.call(cid, name, payload, mode=mode, timeout=timeout))

    def devices(self, cid: ClientId) -> list[DeviceInfo]:
        """As `Publisher.devices`."""
        devices: list[DeviceInfo] = self._do(lambda publisher: publisher.devices(cid))
        return devices

    def online(self) -> int:
        """As `Publisher.online`."""
        number: int = self._do(lambda publisher: publisher.online())
        return number

    def close(self) -> None:
        """Disconnect after the calls of other threads have ended; the next call connects again.

        Does nothing if it is not connected.
        """
        with self._lock:
            thread = self._threads.pop(os.getpid(), None)
        if thread is not None:
            thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _do(self, step: Callable[[Publisher], Any]) -> Any:
        with self._lock:
            thread = self._threads.get(os.getpid())
            if thread is None:
                thread = PublisherThread(
                    Publisher(self._url, protocol=self._protocols, inbox=self._inbox), self._forget
                )
                self._threads[os.getpid()] = thread
            call = thread.call(step)
        try:
            return call.result()
        except BaseException:
            call.cancel()  # the wait may have been interrupted
            raise

    @property
    def _lock(self) -> threading.Lock:
        """The lock of this process; its holder never waits for anything else."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _forget(self, thread: PublisherThread) -> None:
        with self._lock:
            if self._threads.get(os.getpid()) is thread:
                del self._threads[os.getpid()]


class PublisherThread:
    """A thread with an event loop, and a publisher that it opens at once.

    It ends when it is closed, or when the publisher cannot be opened. All calls that were made before end first.

    Args:
        publisher: The publisher, for this thread's use only.
        ends: Called in the thread before it ends; no calls may be made from then on.
    """

    def __init__(self, publisher: Publisher, ends: Callable[[PublisherThread], None]) -> None:
        self._publisher = publisher
        self._ends = ends
        self._calls: set[Future[Any]] = set()  # in progress
        self._closed: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._opening = self._loop.create_task(publisher.open())
        self._thread = threading.Thread(target=self._run, name="wse-publisher", daemon=True)
        self._thread.start()

    def call(self, step: Callable[[Publisher], Any]) -> Future[Any]:
        """Make a step once the publisher is open. The future is done when the broker has taken the step's messages, or
        with the result of a step that is async.
        """
        call = asyncio.run_coroutine_threadsafe(self._make(step), self._loop)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def close(self) -> None:
        """Close the publisher, once; no calls may be made from then on."""
        self._closed.set_result(None)
        self._thread.join()

    async def _make(self, step: Callable[[Publisher], Any]) -> Any:
        await asyncio.shield(self._opening)  # others wait for it as well
        result = step(self._publisher)
        if isawaitable(result):
            return await result
        await self._publisher.flush()
        return None

    def _run(self) -> None:
        with closing(self._loop):
            self._loop.run_until_complete(self._open_until_closed())

    async def _open_until_closed(self) -> None:
        with suppress(Exception, asyncio.CancelledError):  # every call raises the error
            await self._opening
            await asyncio.wrap_future(self._closed)
        self._ends(self)
        await asyncio.gather(*map(asyncio.wrap_future, self._calls), return_exceptions=True)
        await self._publisher.close()


class BlockingRoom:
    """A room, as a blocking publisher sees it."""

    def __init__(self, publisher: BlockingPublisher, name: RoomName) -> None:
        self._publisher = publisher
        self.name = name

    def send(
        self,
        type: MessageType,
        payload: Any = None,
        *,
        exclude: ClientId | None = None,
        key: MessageKey | None = None,
    ) -> None:
        """As `PublisherRoom.send`."""
        self._publisher._do(lambda publisher: publisher.room(self.name).send(type, payload, exclude=exclude, key=key))

    def keep(self, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None) -> int:
        """As `PublisherRoom.keep`."""
        number: int = self._publisher._do(
            lambda publisher: publisher.room(self.name).keep(type, payload, key=key, ttl=ttl)
        )
        return number
