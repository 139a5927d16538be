"""The part of a server to which an application gives its handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

from wse.core.session.signals import check_handler
from wse.errors import ErrorCode
from wse.server.lifespan import as_manager
from wse.typed.compiler import Source, compile_handler
from wse.typed.dependencies import as_guards
from wse.typed.hints import is_async, names_of_callers
from wse.typed.operations import Opening, doc_of
from wse.typed.router import send
from wse.typed.sources import OF_HANDSHAKES, OF_REAUTHENTICATION, OF_ROOM_GUARDS
from wse.types import F, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wse.core.hub.hub import Hub
    from wse.server.lifecycle import Lifecycle
    from wse.server.signals import ServerSignals
    from wse.typed.compiler import Compiled
    from wse.typed.dependencies import Sources
    from wse.typed.handlers import Channel, Handlers
    from wse.typed.middleware import Middleware
    from wse.typed.operations import Operation
    from wse.typed.router import Entry

A = TypeVar("A", bound="Callable[..., Any]")
R = TypeVar("R", bound="Callable[..., Any]")
L = TypeVar("L", bound="Callable[..., Any]")
G = TypeVar("G", bound="Callable[..., Any]")
M = TypeVar("M", bound="Middleware")


def _compiled(fn: Any, sources: Sources, code: ErrorCode | None = None) -> Compiled:
    source = Source(fn=fn, answers=False, code=code, names=names_of_callers(fn))
    return compile_handler(source, sources)


class Handling:
    """Authentication, listeners and procedures."""

    _hub: Hub
    _handlers: Handlers
    _lifecycle: Lifecycle
    when: ServerSignals

    # Authentication.

    def identify(self, fn: A) -> A:
        """Set the identify handler, `fn(auth)`; usable as a decorator.

        With `auth: Handshake[Login]`, the identity is a `Login`; see `Handshake`. The contract has such types. The
        handler may take dependencies, which are marked with `Depends` and may take `auth`.

        Raises:
            TypeError: `fn` cannot take `(auth)`; as `register`.
        """
        compiled = _compiled(fn, OF_HANDSHAKES)
        self._hub.identify = compiled.fn
        identity, meta, welcome = (*get_args(compiled.hints.get("auth")), Any, Any, Any)[:3]
        if meta in (dict, dict[str, Any]):
            meta = Any  # which every meta is
        self._handlers.opening = Opening(identity, meta, welcome, doc_of(fn))
        return fn

    def use_challenge(self, fn: A) -> A:
        """Set the challenge generator, `fn(auth)`; usable as a decorator.

        It runs before the identify handler and calls `auth.quest(value)` or `auth.refuse()`. If it returns a value
        other than None, that value is the quest.

        Raises:
            WseError: `INVALID_CRA_GENERATOR`, which is also a `TypeError`: `fn` cannot take `(auth)`.
        """
        self._hub.generator = _compiled(fn, OF_HANDSHAKES, ErrorCode.INVALID_CRA_GENERATOR).fn
        return fn

    def reauthenticate(self, fn: R) -> R:
        """Set the handler for fresh identities, `fn(conn, identity)`; usable as a decorator.

        If a session expires (`Handshake.accept` with `expires`), the client is asked for a fresh identity a minute
        before the end, or halfway through a session of less than two minutes. Clients of the original JavaScript
        package cannot be asked. The handler checks the identity. It returns the new time, a `datetime` with a time zone
        or Unix seconds, or `None` to let the session end. If the identity belongs to another user, raise a `WseError`
        with `NOT_AUTHORIZED`. It closes the connection with `wse.not-authorized`; `reason` and `retry` in its details
        are as for `Handshake.refuse`. Other exceptions are reported on `error`, and the session ends at its time.

        Raises:
            TypeError: `fn` cannot take `(conn, identity)`.
        """
        self._hub.auth.reauthenticate = _compiled(fn, OF_REAUTHENTICATION).fn
        return fn

    def room_guard(self, fn: G) -> G:
        """Set the guard of rooms, `fn(conn, name)`, plain or async; usable as a decorator.

            @server.room_guard
            def guard(conn, name):
                return conn.cid in members_of(name)

        It decides whether a client may enter a room by itself (`client.room(name).join()`). If it returns `False`, the
        client gets `NOT_AUTHORIZED`; if it raises a `WseError`, the client gets that. Otherwise the connection is added
        to the room. Without a guard, no client may enter. It may take dependencies, which are marked with `Depends`.

        Raises:
            TypeError: `fn` cannot take `(conn, name)`; as `register`.
        """
        self._hub.entrance.guard = _compiled(fn, OF_ROOM_GUARDS).fn
        return fn

    # Messages and calls.

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(conn, payload)`."""
        return self._handlers.channel

    def include(
        self, included: Any, *, prefix: str = "", tags: Iterable[str] = (), dependencies: Iterable[Any] = ()
    ) -> None:
        """Include the handlers of another module.

        Args:
            included: A `Router`; an object whose methods are decorated by a router, or its class; an `Event` or a
                `ClientProcedure`, for the contract.
            prefix: Stands before the names of procedures and the types of messages.
            tags: Tags of all of them, for the contract.
            dependencies: Guards of all of them, `Depends(fn)`.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is reserved.
            TypeError: It cannot be included; as `register`.
        """
        guards = as_guards(dependencies)
        send(included, lambda entry: self._take(entry.below(prefix, tuple(tags), guards)))

    def _take(self, entry: Entry) -> None:
        if entry.kind == "register":
            self.register(entry.name, entry.fn, **entry.options)
        elif entry.kind == "on":
            self.channel.on(entry.name, entry.fn, **entry.options)
        elif entry.kind == "once":
            self.channel.once(entry.name, entry.fn)
        elif entry.kind == "when":
            getattr(self.when, entry.name)(entry.fn)
        elif entry.kind == "when.once":
            getattr(self.when, entry.name).once(entry.fn)
        else:
            self._handlers.declare(entry.fn)

    def middleware(self, fn: M) -> M:
        """Put a function around every call and every message of clients; usable as a decorator.

            @server.middleware
            async def log(call, next):
                print(call.kind, call.name, call.conn.cid)
                return await next()

        `next()` goes on to the next middleware or to the handler, and returns the result: for a stream, the iterator
        over its items. What the function returns is the result. The first one is the outermost.

        Raises:
            TypeError: `fn` cannot take `(call, next)`, or is not async.
        """
        check_handler(fn, "call", "next")
        if not is_async(fn):
            raise TypeError(f"middleware is async, as it awaits the handler: async def, not {fn!r}")
        self._handlers.add_middleware(fn)
        return fn

    def lifespan(self, fn: L) -> L:
        """Set what the application has for as long as the server serves; usable as a decorator.

            @server.lifespan
            async def pool(server):
                async with create_pool() as server.pool:
                    yield

        The function takes the server, or nothing. It is an async generator, or returns an async context manager. What
        stands before the `yield` runs at the start of the server, before the port opens: with `run`, `start`,
        `async with server`, `wse serve`, the lifespan of an ASGI application, or else before the first connection. The
        rest runs when all connections are closed and all handlers have ended. Several are entered in order, and left in
        reverse order. One that fails at the start fails the start.

        Raises:
            TypeError: It is not such a function.
            RuntimeError: The server has already been started.
        """
        if self._lifecycle.is_started:
            raise RuntimeError("the server has already been started")
        self._lifecycle.lifespans.add(as_manager(fn, self))
        return fn

    @property
    def operations(self) -> list[Operation]:
        """The procedures and messages of both sides, as handlers, events and client procedures declare them."""
        return self._handlers.operations()

    def asyncapi(
        self, *, title: str = "WSE application", version: str = "1.0.0", description: str = ""
    ) -> dict[str, Any]:
        """The contract of the application, an AsyncAPI 3 document: its procedures and messages in both directions, with
        the types, errors, examples and docstrings that they declare. `wse contract` prints it.

        Args:
            title: The name of the application.
            version: The version of the contract.
            description: What the application is.

        Raises:
            TypeError: There is no JSON schema for a type, or an example cannot be encoded.
        """
        from wse.contract.document import document_of

        url = self._lifecycle.options.url(self._lifecycle.port) if self._lifecycle.port else None
        opening = self._handlers.opening
        return document_of(
            self.operations, opening=opening, title=title, version=version, description=description, url=url
        )

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
        """Register `fn(conn, payload)` as a procedure that clients can call; without `fn`, a decorator. A bare
        decorator takes the name of the function.

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
            upload: It is `fn(conn, payload, items)`, where `items` is an async iterator over what the caller sends.
            ordered: It begins when the ordered handlers of the same connection that were called before have ended.
            thread: It is a plain function that blocks, so it runs in a thread, and so do its dependencies if all of
                them are plain. It must not use connections or the server there, which belong to the event loop.
            dependencies: Guards, `Depends(fn)`. They come before everything else, in their order.
            errors: The codes of the errors that it raises, for the contract.
            tags: For the contract.
            examples: Payloads, for the contract.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is reserved.
            TypeError: `fn` cannot take `(conn, payload)`; a hint has no value, or cannot be checked; a dependency
                that WSE cannot use.
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
        self._hub.endpoint.procedures.unregister(name)
