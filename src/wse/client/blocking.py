"""The client for programs without asyncio: scripts, shells, synchronous web applications, threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

from wse.blocking import END, BlockingStream, next_of
from wse.client.blocking_rooms import BlockingClientRoom
from wse.client.blocking_signals import BlockingSignals
from wse.client.client import WseClient
from wse.client.connection import is_asked_for
from wse.client.manager import LISTENERS_GRACE, UNSET
from wse.client.threaded import HandlerThreads, uploaded
from wse.core.session.rpc import ExposeErrors
from wse.errors import CloseReason, ErrorCode, WseError
from wse.threads import LoopEndedError, LoopThread
from wse.typed.handlers import name_of
from wse.types import ClientStatus, F, MessageKey, MessageType, RoomName

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from wse.backoff import Backoff
    from wse.client.inbox import Kept
    from wse.client.retry import RetryRule
    from wse.core.heartbeat import Heartbeat
    from wse.core.limits import Limits, Overflow
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Connector
    from wse.core.resume import Resume
    from wse.core.session.asking import Items
    from wse.transports.deflate import Compression

T = TypeVar("T")
H = TypeVar("H", bound="Callable[[Any], Any]")


class BlockingClient:
    """A WSE client whose methods wait for their results, for programs without asyncio. It serves any number of threads.

        with BlockingClient("ws://127.0.0.1:4200", identity="ada") as client:
            print(client.call("add", {"a": 5, "b": 3}))

    As a context manager it connects on entering, and closes on leaving. The connection lives in a daemon thread. If the
    program ends without `close`, the client is closed then.

    Plain handlers may block, and may call the client. Those of messages and events run in one thread, in order. Each
    procedure that the server calls runs in another thread, up to 32 at a time. Async handlers run in the event loop of
    the client, where its methods raise `WRONG_THREAD`.

    Args:
        url: As for `WseClient`, like all that follow.
        identity: A function may block.
        meta: Further facts about the client, for the server.
        reconnect: Whether to reconnect when the connection is lost.
        retry: A plain function that does not block.
        timeout: Seconds that a call waits for its answer, and that an attempt to connect may take.
        protocol: The message protocol.
        ssl: For `wss:`.
        proxy: The URL of a proxy to connect through.
        headers: Headers of the HTTP request.
        backoff: The waits before the attempts to reconnect.
        limits: Limits on messages from the server.
        compression: Offers permessage-deflate.
        overflow: The treatment of messages that a slow server does not take in time.
        heartbeat: When a silent server is pinged, and given up.
        resume: Whether the session outlives a lost connection.
        inbox: The name of this device, for messages that the server keeps.
        after: The last kept message that the application has, or its number.
        expose_errors: The part of an exception that the server receives.
        debug: Whether the server receives stack traces.
        connector: Opens WebSockets.

    Raises:
        ValueError, TypeError: As `WseClient`.
    """

    def __init__(
        self,
        url: str,
        *,
        identity: Any = "",
        meta: dict[str, Any] | None = None,
        reconnect: bool = False,
        retry: RetryRule | None = None,
        timeout: float = 20.0,
        protocol: Protocol | None = None,
        ssl: ssl.SSLContext | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
        limits: Limits | None = None,
        compression: Compression | None = None,
        overflow: Mapping[MessageType, Overflow | str] | None = None,
        heartbeat: Heartbeat | None = None,
        resume: Resume | bool = False,
        inbox: str | None = None,
        after: int | Kept | None = None,
        expose_errors: ExposeErrors | str = ExposeErrors.MESSAGE,
        debug: bool = False,
        connector: Connector | None = None,
    ) -> None:
        self._handlers = HandlerThreads()
        self._client = WseClient(
            url,
            identity=self._asked(identity),
            meta=meta,
            reconnect=reconnect,
            retry=retry,
            timeout=timeout,
            protocol=protocol,
            ssl=ssl,
            proxy=proxy,
            headers=headers,
            backoff=backoff,
            limits=limits,
            compression=compression,
            overflow=overflow,
            heartbeat=heartbeat,
            resume=resume,
            inbox=inbox,
            after=after,
            expose_errors=expose_errors,
            debug=debug,
            connector=connector,
        )
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self.when = BlockingSignals(self)

    @property
    def kept(self) -> Kept | None:
        """As `WseClient.kept`."""
        return self._client.kept

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._client.url

    @property
    def status(self) -> ClientStatus:
        """The state of the client."""
        return self._client.status

    @property
    def gave_up(self) -> WseError | None:
        """As `WseClient.gave_up`."""
        return self._client.gave_up

    @property
    def recovered(self) -> bool:
        """As `WseClient.recovered`."""
        return self._client.recovered

    @property
    def protocol(self) -> Protocol:
        """The message protocol."""
        return self._client.protocol

    @property
    def rtt(self) -> float | None:
        """As `WseClient.rtt`."""
        return self._client.rtt

    # Messages and calls.

    def send(self, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """Send a message to the server; as `WseClient.send`."""
        self._do(self._client.send, type, payload, key=key)

    @overload
    def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: type[T],
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> T: ...
    @overload
    def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any: ...
    def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: Any = None,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> Any:
        """Call a procedure of the server and return its result; as `WseClient.call`.

        If the waiting thread is interrupted, as by Ctrl-C, the procedure is told. `on_progress` and an iterator as
        `upload` run in threads of their own, and may block.
        """
        workers = None
        if on_progress is not None:
            on_progress, workers = self._handlers.one_by_one(on_progress)
        try:
            call = self._client.call(
                name,
                payload,
                result=result,
                timeout=timeout,
                on_progress=on_progress,
                upload=uploaded(upload),
                deadline=deadline,
            )
            return self._wait(call)
        finally:
            if workers is not None:
                workers.close()

    @overload
    def stream(
        self,
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
        name: MessageType,
        payload: Any = None,
        *,
        item: Any = None,
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> BlockingStream[Any]:
        """Iterate over the items of a procedure of the server that is a generator; as `WseClient.stream`.

            with client.stream("tail", {"file": "x"}) as lines:
                for line in lines:
                    print(line)

        The generator is closed when the block is left, by whatever way.
        """
        stream = self._client.stream(
            name, payload, item=item, window=window, timeout=timeout, deadline=deadline, upload=uploaded(upload)
        )
        return BlockingStream(self, stream)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has handled everything that was sent before; as `WseClient.flush`."""
        self._wait(self._client.flush(timeout))

    def room(self, name: RoomName) -> BlockingClientRoom:
        """The room of that name, to enter it; as `WseClient.room`."""
        return BlockingClientRoom(self, self._do(self._client.room, name))

    @overload
    def on(self, type: F, /) -> F: ...
    @overload
    def on(self, type: MessageType, fn: F) -> F: ...
    @overload
    def on(self, type: MessageType | None = None, fn: None = None) -> Callable[[F], F]: ...
    def on(self, type: Any = None, fn: F | None = None) -> F | Callable[[F], F]:
        """Call `fn(payload)` for every message of that type; without `fn`, a decorator. A bare decorator takes
        the name of the function.

        Raises:
            WseError: `PROTOCOL_VIOLATION`, for a type that is WSE's own.
            TypeError: `fn` cannot take `(payload)`.
        """
        if fn is None:
            return cast("F", _decorator(self.on, type, "on"))
        self._do(self._client.channel.on, type, self._handlers.listener(fn))
        return fn

    @overload
    def once(self, type: F, /) -> F: ...
    @overload
    def once(self, type: MessageType, fn: F) -> F: ...
    @overload
    def once(self, type: MessageType | None = None, fn: None = None) -> Callable[[F], F]: ...
    def once(self, type: Any = None, fn: F | None = None) -> F | Callable[[F], F]:
        """Like `on`, for the next message of that type only."""
        if fn is None:
            return cast("F", _decorator(self.once, type, "once"))
        self._do(self._client.channel.once, type, self._handlers.listener(fn))
        return fn

    def off(self, type: MessageType, fn: Callable[..., Any] | None = None) -> None:
        """Stop calling `fn` for that type; without `fn`, remove all its listeners."""
        self._do(self._client.channel.off, type, fn)

    @overload
    def register(self, name: F, /) -> F: ...
    @overload
    def register(self, name: MessageType, fn: F, *, cancel: bool = False, upload: bool = False) -> F: ...
    @overload
    def register(
        self, name: MessageType | None = None, fn: None = None, *, cancel: bool = False, upload: bool = False
    ) -> Callable[[F], F]: ...
    def register(
        self, name: Any = None, fn: F | None = None, *, cancel: bool = False, upload: bool = False
    ) -> F | Callable[[F], F]:
        """Register `fn(payload)` as a procedure that the server can call; without `fn`, a decorator.

        As `WseClient.register`. A plain generator is a stream. With `upload`, a plain function gets a plain iterator.
        A plain function goes on when its call is cancelled, and its result is not sent.
        """
        if fn is None:
            return cast("F", _decorator(partial(self.register, cancel=cancel, upload=upload), name, "register"))
        taken = self._handlers.procedure(fn, self._items if upload else None)
        self._do(partial(self._client.register, cancel=cancel, upload=upload), name, taken)
        return fn

    def unregister(self, name: MessageType) -> None:
        """Remove a procedure; as `WseClient.unregister`."""
        self._do(self._client.unregister, name)

    def challenge(self, fn: H) -> H:
        """Set the handler that answers the server's quest, `fn(quest)`; usable as a decorator."""
        self._do(self._client.challenge, self._handlers.procedure(fn))
        return fn

    # Life cycle.

    def connect(self, identity: Any = UNSET, meta: dict[str, Any] | None = UNSET) -> Any:
        """Connect and return the welcome payload; as `WseClient.connect`."""
        return self._wait(self._client.connect(self._asked(identity), meta))

    def jump(self, url: str, identity: Any = UNSET, meta: dict[str, Any] | None = UNSET) -> Any:
        """Move to another server and return its welcome payload; as `WseClient.jump`."""
        return self._wait(self._client.jump(url, self._asked(identity), meta))

    def wait_ready(self, timeout: float | None = None) -> Any:
        """Wait until the client is connected, and return the welcome payload; as `WseClient.wait_ready`."""
        return self._wait(self._client.wait_ready(timeout))

    def wait_closed(self) -> WseError | None:
        """Wait until the client has no connection and does not try to get one, and return `gave_up`."""
        return self._wait(self._client.wait_closed())

    def close(self, reason: str = CloseReason.BY_CLIENT) -> None:
        """Disconnect, and end the client's thread; `connect` starts another.

        Listeners that run have a second to end. Those that do not go on in their threads.

        Args:
            reason: As for `WseClient.close`.

        Raises:
            WseError: `WRONG_THREAD`, in an async handler.
        """
        with self._lock:
            thread = self._thread
            if thread is None:
                return
            if thread.is_current:
                raise self._wrong_thread()
            self._thread = None
            assert self._finalizer is not None  # came with the thread
            self._finalizer.detach()
        grace = 0.0 if self._handlers.are_current else LISTENERS_GRACE
        try:
            with suppress(LoopEndedError):
                thread.run(_close(self._client, reason, grace))
        finally:
            thread.stop()
            self._handlers.close()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlockingClient {self.status}>"

    # Inside.

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the client's thread, and return its result."""
        try:
            thread = self._find_thread()
        except WseError:
            coroutine.close()
            raise
        try:
            return thread.run(coroutine)
        except LoopEndedError:
            raise self._ended() from None

    def _ended(self) -> WseError:
        problem = "the client was closed meanwhile"
        return WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self.status)}, problem)

    def _do(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function in the client's thread, and return its result."""
        return self._wait(_called(function, args, kwargs))

    def _find_thread(self) -> LoopThread:
        """The client's thread; it starts when it is needed.

        Raises:
            WseError: `WRONG_THREAD`; `CLIENT_NOT_READY`, in a process that was forked.
        """
        with self._lock:
            thread = self._thread
            if thread is None:
                thread = self._thread = LoopThread("wse-client")
                self._finalizer = weakref.finalize(self, _end, thread, self._client)
                thread.run(_called(self._client._connections.enter, (), {}))
            elif thread.is_current:
                raise self._wrong_thread()
            elif not thread.is_alive:
                problem = "the client belongs to the process from which this one was forked"
                raise WseError(ErrorCode.CLIENT_NOT_READY, {"status": str(self.status)}, problem)
            return thread

    @staticmethod
    def _wrong_thread() -> WseError:
        problem = "an async handler runs in the client's event loop, which cannot wait for itself: use a plain handler"
        return WseError(ErrorCode.WRONG_THREAD, {"use": "a plain handler"}, problem)

    def _asked(self, identity: Any) -> Any:
        """An identity; one that is a function runs in a thread."""
        return self._handlers.procedure(identity) if identity is not UNSET and is_asked_for(identity) else identity

    def _items(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        """The items of an upload, for a procedure in a thread."""
        while (item := self._wait(next_of(items))) is not END:
            yield item


def _decorator(add: Callable[[MessageType, Any], Any], name: Any, decorator: str) -> Any:
    """What a decorator with a name, without one, or without parentheses returns."""
    if callable(name):
        return add(name_of(name, decorator), name)
    return lambda fn: add(name_of(fn, decorator) if name is None else name, fn)


async def _called(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return function(*args, **kwargs)


async def _close(client: WseClient, reason: str, grace: float) -> None:
    await client._connections.close(reason, grace)
    await client._scheduler.settle((), grace)
    await client._scheduler.cancel_all()


def _end(thread: LoopThread, client: WseClient) -> None:
    """Close a client that was forgotten, or that is open when the program ends."""
    if thread.is_current:
        thread.loop.create_task(_close(client, CloseReason.BY_CLIENT, 0.0)).add_done_callback(lambda _: thread.stop())
    elif thread.is_alive:
        with suppress(LoopEndedError):
            thread.run(_close(client, CloseReason.BY_CLIENT, 0.0))
        thread.stop()
