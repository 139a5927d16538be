"""The client: one device of a user, with optional reconnection (WIRE.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from wse.backoff import Backoff
from wse.client.inbox import Kept, current
from wse.client.manager import LISTENERS_GRACE, UNSET, ConnectionManager
from wse.client.request import checked_headers, checked_proxy, checked_subprotocol
from wse.client.retry import Retry, RetryRule
from wse.client.signals import ClientSignals
from wse.core.heartbeat import Heartbeat
from wse.core.limits import Limits, Overflow
from wse.core.ports.protocol import Protocol
from wse.core.resume import Resume
from wse.core.session.asking import Stream
from wse.core.session.current_call import shorter
from wse.core.session.endpoint import Endpoint, emit_error
from wse.core.session.rpc import ExposeErrors
from wse.core.session.signals import check_handler
from wse.core.urls import without_secrets
from wse.errors import CloseReason, ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.scheduler import AsyncioScheduler
from wse.transports import picows
from wse.typed.handlers import Channel, Handlers
from wse.types import ClientStatus, F, MessageKey, MessageType, RoomName
from wse.validation.checks import received

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from wse.client.rooms import ClientRoom
    from wse.core.ports.transport import Connector
    from wse.core.session.asking import Items
    from wse.core.session.session import Session
    from wse.transports.deflate import Compression

H = TypeVar("H", bound="Callable[[Any], Any]")
R = TypeVar("R")


class WseClient:
    """A WSE client.

    As a context manager it connects on entering, and closes on leaving.

    Args:
        url: The address of the server: `ws:` or `wss:`; or `ws+unix:///path/of/socket:/path` for a Unix socket.
        identity: The client's identity. It is any value that the server's identify handler understands, or credentials
            that take part in the handshake, such as `wse.auth.Scram`. It may also be a function, plain or async, that
            returns one of these. The function is called before every attempt, and an exception in it counts as a failed
            attempt. After a refusal it is called once more.
        meta: Further facts about the client, for the server.
        reconnect: Reconnect when the connection is lost, after the waits that `backoff` gives.
        retry: With `reconnect`, a function `retry(code, reason)` that returns whether to reconnect after a close. It
            replaces the default rule for every code but 4000. A server that cannot be reached counts as (1006, "").
        timeout: Seconds that a call waits for its answer, and that an attempt to connect may take up to the welcome;
            0 means for ever.
        protocol: The message protocol; `WseJSON` by default.
        ssl: For `wss:`, an `ssl.SSLContext`; by default the system's certificates are trusted.
        proxy: The URL of a proxy to connect through: `http:`, `https:`, `socks4:` or `socks5:`, with the user and the
            password in it, if the proxy asks for them. By default, the client connects directly.
        headers: Headers of the HTTP request that opens the WebSocket, besides those of the handshake itself.
        backoff: The waits before the attempts to reconnect.
        limits: Limits on messages from the server.
        compression: Offers permessage-deflate to the server; off by default.
        overflow: The treatment of messages that a slow server does not take in time, by message type; see `Overflow`.
        heartbeat: The times after which a silent server is pinged, and after which its connection counts as lost. On
            transports without pings, the client calls the server instead.
        resume: With `reconnect`, keep the session over a lost connection, if the server supports it. Messages and calls
            of both sides then arrive once, in order, when the client is connected again, including those that were made
            in between. If that is impossible, `when.lost` says why. A `Resume` sets how much the client keeps, and how
            long it asks the server to wait. `True` means the defaults, and the server's window.
        inbox: The name of this device, of your own choice, at most 200 characters: the client gets the messages that
            the server keeps for its user (`WseServer.keep`), beginning after the last one that the device has handled.
            Their listeners are those of `channel`; inside of one, `kept` has the message's number.
        after: The last kept message that the application has: its number, or `kept` as it was inside the listener. If
            the application stores it together with its data, it gets every message exactly once, even if it crashes.
            A number alone does not tell when a store has lost the inbox. By default, the server knows.
        expose_errors: The part of an exception that the server receives when it calls a failing procedure; see
            `ExposeErrors`.
        debug: Also send stack traces of failing procedures to the server.
        connector: Opens WebSockets; for tests and other transports.

    Raises:
        ValueError: An argument is out of its range, or HTTP cannot carry it.
        TypeError: `retry` cannot take `(code, reason)`.
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
        protocol = protocol or WseJSON()
        checked_subprotocol(protocol.name)
        if after is not None and inbox is None:
            raise ValueError("after is for a client with an inbox")
        self._scheduler = AsyncioScheduler()
        self._handlers = Handlers("client")
        self._endpoint = Endpoint(
            (),
            protocols=(protocol,),
            scheduler=self._scheduler,
            timeout=timeout,
            limits=limits or Limits(),
            overflow=overflow,
            expose=expose_errors,
            debug=debug,
            report=self._report,
            channel=self._handlers.make_channel,
            procedures=self._handlers.make_procedures,
            decoder=self._handlers.decoder,
            elsewhere="loop.call_soon_threadsafe, or a BlockingClient",
        )
        self.when = ClientSignals(self._endpoint)
        self._connections = ConnectionManager(
            self._endpoint,
            self.when,
            url=url,
            identity=identity,
            meta=meta,
            headers=checked_headers(headers),
            connector=connector
            or partial(picows.connect, ssl=ssl, proxy=checked_proxy(proxy), compression=compression),
            retry=Retry(reconnect=reconnect, backoff=backoff or Backoff(), rule=retry, report=self._endpoint.report),
            heartbeat=heartbeat or Heartbeat(),
            scheduler=self._scheduler,
            resume=resume,
            inbox=None if inbox is None else (inbox, after),
        )

    @property
    def kept(self) -> Kept | None:
        """Inside a listener of a message that the server keeps: its number `n`, and the time `at`, in Unix seconds.
        Otherwise `None`. See the argument `inbox`.
        """
        return current.get()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._connections.url

    @property
    def status(self) -> ClientStatus:
        """The state of the client."""
        return self._connections.status

    @property
    def gave_up(self) -> WseError | None:
        """The error for which the client has given up; `None` while it is connected or tries to connect, and after
        `close`.
        """
        return self._connections.gave_up

    @property
    def recovered(self) -> bool:
        """Whether the session has gone on over the present connection, or the last one."""
        return self._connections.recovered

    @property
    def protocol(self) -> Protocol:
        """The message protocol."""
        return self._endpoint.protocols[0]

    @property
    def rtt(self) -> float | None:
        """The round-trip time of the last ping, in seconds; `None` before the first. The client pings a server that has
        been silent for `Heartbeat.interval`.
        """
        session = self._connections.session
        return None if session is None else session.rtt

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(payload)`."""
        return self._handlers.channel

    # Messages and calls.

    def send(self, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None:
        """Send a message to the server. With `resume` it waits while the client is reconnecting.

        Args:
            type: The message's type.
            payload: The message's content.
            key: The subject of the message. With `Overflow.LATEST`, a slow server gets the newest message of each key.

        Raises:
            WseError: `CLIENT_NOT_READY`; `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR`
                for a payload that cannot be encoded.
        """
        self._connections.ready_session().send(type, payload, key)

    @overload
    async def call(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        result: type[R],
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
        deadline: float | None = None,
    ) -> R: ...
    @overload
    async def call(
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
    async def call(
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
        """Call a procedure of the server and return its result.

        Args:
            name: The procedure, as the server registered it.
            payload: Its argument.
            result: The type that the result must be of; see `WseServer.register`. What comes back is a value of it.
            timeout: Seconds to wait for the answer: `None` for the client's `timeout`, 0 for ever.
            on_progress: Called with each value that the procedure tells as its progress, plain or async.
            upload: Items to send to the procedure, an iterable or async iterable.
            deadline: Seconds for the call and those that the procedure makes for it. Of `timeout` and this, the shorter
                one counts.

        If the task that awaits this is cancelled, or the timeout passes, the procedure is told.

        Raises:
            WseError: The error that the procedure raised, or `CLIENT_NOT_READY`, `RP_NOT_REGISTERED`, `RP_TIMEOUT`,
                `RP_DISCONNECT`, `RP_SEND_FAILED`; `RP_IS_A_STREAM`; `UNSUPPORTED`, if the server does not know the
                extension `calls`, which progress and uploads need;
                `INVALID_PAYLOAD`, if the result is not of the type.
        """
        answer = await self._connections.ready_session().call(
            name, payload, shorter(timeout, deadline), on_progress, upload
        )
        return answer if result is None else received(result, answer, rp=name)

    @overload
    def stream(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        item: type[R],
        window: int = 32,
        timeout: float | None = None,
        deadline: float | None = None,
        upload: Items | None = None,
    ) -> Stream[R]: ...
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
    ) -> Stream[Any]: ...
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
    ) -> Stream[Any]:
        """Iterate over the items of a procedure of the server that is a generator.

            async with client.stream("tail", {"file": "x"}) as lines:
                async for line in lines:
                    print(line)

        The generator is closed when the block is left, by whatever way. It never runs ahead of the loop by more than
        `window` items.

        Args:
            name: The procedure.
            payload: Its argument.
            item: The type that each item must be of, as `result` of `call`.
            window: Items that may be on their way; at most `Limits.stream_window` of both sides.
            timeout: Seconds to wait for each item; `None` or 0 for ever.
            deadline: Seconds for all of them; `None` or 0 for ever.
            upload: Items to send to the procedure meanwhile.

        Raises:
            WseError: On entering, or for the first item: `CLIENT_NOT_READY`; `UNSUPPORTED`: the peer does not know the
                extension `calls`. For an item: the error that the generator raised, after the items before it;
                `RP_NOT_REGISTERED`, `RP_NOT_A_STREAM`, `RP_TIMEOUT`, `RP_DISCONNECT`; `LIMIT_EXCEEDED`.
            ValueError: A window of less than 1, or a negative timeout.
        """
        return Stream(
            self._find_session,
            name,
            payload,
            window=window,
            timeout=timeout,
            deadline=deadline,
            upload=upload,
            item=item,
        )

    async def _find_session(self) -> Session:
        return self._connections.ready_session()

    def room(self, name: RoomName) -> ClientRoom:
        """Return the room of that name, which the client enters with `join`. The same name returns the same object.

        Args:
            name: The name of the room at the server, a string or an integer.
        """
        return self._connections.rooms.room(name)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until the server has handled everything that was sent before this call. Its async handlers need not have
        ended. The wait continues while the client has no connection.

        Args:
            timeout: Seconds to wait; `None` waits until the session ends.

        Raises:
            WseError: `CLIENT_NOT_READY`; `UNSUPPORTED`, if the session ends with its connection (see `resume`);
                `SESSION_LOST`, if the session has ended.
            TimeoutError: The server has not handled everything in time.
        """
        await self._connections.ready_session().flush(timeout)

    @overload
    def register(self, name: F, /) -> F: ...
    @overload
    def register(
        self,
        name: MessageType,
        fn: F,
        *,
        cancel: bool = False,
        upload: bool = False,
        ordered: bool = False,
        thread: bool = False,
        dependencies: Iterable[Any] = (),
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> F: ...
    @overload
    def register(
        self,
        name: MessageType | None = None,
        fn: None = None,
        *,
        cancel: bool = False,
        upload: bool = False,
        ordered: bool = False,
        thread: bool = False,
        dependencies: Iterable[Any] = (),
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: Any = None,
        fn: Any = None,
        *,
        cancel: bool = False,
        upload: bool = False,
        ordered: bool = False,
        thread: bool = False,
        dependencies: Iterable[Any] = (),
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> Any:
        """Register `fn(payload)` as a procedure that the server can call; without `fn`, a decorator. A bare decorator
        takes the name of the function.

        Its return value is the caller's result. A `WseError` that it raises reaches the caller unchanged, any other
        exception as `RP_EXECUTION_FAILED`.

        A generator, async or plain, is a stream: the caller iterates over what it yields (`stream`).

        If the payload has a hint, such as a `msgspec.Struct`, a dataclass, a `TypedDict`, an attrs class, a pydantic
        model or a builtin, `fn` gets a value of that type. A caller whose payload is not of the type gets
        `INVALID_PAYLOAD`, before `fn` runs. A result, an item or an upload that has a hint is checked as well.

        Args:
            name: The name for callers.
            fn: The function. Besides its payload it may take dependencies, which are marked with `Depends`.
            cancel: Cancel it when its result is no longer wanted: the caller has given up or is gone, or the deadline
                has passed. Streams are always cancelled then. Any other procedure finds that in
                `current_call().cancelled`, and goes on.
            upload: It is `fn(payload, items)`, where `items` is an async iterator over what the caller sends.
            ordered: It begins when the ordered handlers of the same connection that were called before have ended.
            thread: It is a plain function that blocks, so it runs in a thread, and so do its dependencies if all of
                them are plain. It must not use connections or the server there, which belong to the event loop.
            dependencies: Guards, `Depends(fn)`. They come before everything else, in their order.
            errors: The codes of the errors that it raises, for the contract.
            tags: For the contract.
            examples: Payloads, for the contract.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is reserved.
            TypeError: `fn` cannot take `(payload)`; a hint has no value, or cannot be checked; a dependency that WSE
                cannot use.
            ImportError: A hint needs pydantic, which is not installed.
        """
        return self._handlers.procedures.register(
            name,
            fn,
            cancel=cancel,
            upload=upload,
            ordered=ordered,
            thread=thread,
            dependencies=dependencies,
            errors=errors,
            tags=tags,
            examples=examples,
        )

    def unregister(self, name: MessageType) -> None:
        """Remove a procedure.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self._endpoint.procedures.unregister(name)

    def challenge(self, fn: H) -> H:
        """Set the handler that answers the server's quest, `fn(quest)`; usable as a decorator.

        Raises:
            WseError: `INVALID_CRA_HANDLER`, which is also a `TypeError`: `fn` cannot take `(quest)`.
        """
        check_handler(fn, "quest", code=ErrorCode.INVALID_CRA_HANDLER)
        self._connections.respond = fn
        return fn

    # Life cycle.

    async def connect(self, identity: Any = UNSET, meta: dict[str, Any] | None = UNSET) -> Any:
        """Connect and return the welcome payload.

        Messages that follow the welcome are dispatched two turns of the event loop after this returns, so the caller
        can add listeners first.

        Args:
            identity: The client's identity; by default the same as before.
            meta: Further facts for the server; by default the same as before, or none if an identity is given.

        Raises:
            WseError: `CLIENT_ALREADY_CONNECTED`; `WS_CLIENT_ERROR`, no WebSocket could be opened; `NOT_AUTHORIZED`,
                the server refused the identity; `CONNECTION_CLOSED`, closed before the welcome, with `code` and
                `reason` in the details. With `reconnect`, only failures that are not retried raise.
        """
        return await self._connections.connect(identity, meta)

    async def jump(self, url: str, identity: Any = UNSET, meta: dict[str, Any] | None = UNSET) -> Any:
        """Move to another server and return its welcome payload; on an idle client this is `connect`.

        Args:
            url: The address of the other server.
            identity: The identity there; by default the same as before.
            meta: Further facts for that server; by default the same as before, or none if an identity is given.

        Raises:
            WseError: As `connect`; `CLIENT_ALREADY_CONNECTED`, while a `connect` or another `jump` is running.
            ValueError: `url` is not a WebSocket URL.
        """
        return await self._connections.jump(url, identity, meta)

    async def close(self, reason: str = CloseReason.BY_CLIENT) -> None:
        """Disconnect with code 1000, and do not reconnect.

        Returns when the socket is closed, after at most 5 seconds. No signal fires after that. With an `inbox`, async
        listeners of kept messages have a second to end before, so that these messages do not come again.

        Args:
            reason: The reason that the server sees; at most 123 bytes of UTF-8.
        """
        await self._connections.close(reason)

    async def wait_ready(self, timeout: float | None = None) -> Any:
        """Wait until the client is connected, and return the welcome payload. This method does not connect the client.

        Args:
            timeout: Seconds; `None` waits for ever.

        Raises:
            WseError: The error for which the client has given up; `CLIENT_NOT_READY`, if the client was closed.
            TimeoutError: The client has not connected in time.
        """
        return await self._connections.wait_ready(timeout)

    async def wait_closed(self) -> WseError | None:
        """Wait until the client has no connection and does not try to get one, and return `gave_up`."""
        return await self._connections.wait_closed()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
        await self._scheduler.settle((), LISTENERS_GRACE)
        await self._scheduler.cancel_all()

    def __repr__(self) -> str:
        return f"<WseClient {self.status}>"

    def _report(self, error: WseError, session: object) -> None:
        emit_error(self.when.error, error, log=self._endpoint.log, context={"url": without_secrets(self.url)})
