"""The procedures and listeners of one side, with what applications may say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from wse.core.session import rpc, signals
from wse.core.session.signals import ONE_AROUND, STANDS_FOR, check_name, original
from wse.typed.compiler import Source, compile_handler
from wse.typed.decoding import TAKES, Decoding, taken_by
from wse.typed.dependencies import as_guards
from wse.typed.hints import names_of_callers
from wse.typed.middleware import around
from wse.typed.operations import Opening, Operation, codes, declared, doc_of, hint_of
from wse.typed.sources import NOTHING, of_handlers
from wse.types import F, MessageType

if TYPE_CHECKING:
    from wse.core.ports.protocol import Decode, Protocol
    from wse.core.session.ordered import Order
    from wse.core.session.signals import CheckType
    from wse.typed.compiler import Compiled
    from wse.typed.dependencies import Dependency
    from wse.typed.middleware import Kind, Middleware
    from wse.typed.operations import Receiver


class Handlers:
    """The handlers of a server or client, as its application gives them.

    Args:
        before: The arguments before the payload: `("conn",)` at a server, none at a client.
        made: What dependencies may take that is made of the first argument, by name.
        receiver: The side.

    Attributes:
        receiver: The side.
        middleware: The middleware, the first one first.
        opening: What is known of how clients come in.
        channel: The listeners of messages, once an endpoint has them.
        procedures: The procedures, the same.
    """

    channel: Channel
    procedures: Procedures

    def __init__(
        self, receiver: Receiver, before: tuple[str, ...] = (), made: Mapping[str, Callable[[Any], Any]] = NOTHING
    ) -> None:
        self.receiver: Receiver = receiver
        self.middleware: list[Middleware] = []
        self.opening = Opening()
        self._decodings: dict[str, Decoding] = {}
        self._takes_objects = False
        self._before = before
        self._made = made
        self._declared: list[Any] = []

    def make_channel(self, takes: tuple[str, ...], check_type: CheckType, order: Order) -> Channel:
        """The listeners, for an endpoint."""
        self.channel = Channel(self, takes, check_type, order)
        return self.channel

    def make_procedures(self, takes: tuple[str, ...], check_type: CheckType, order: Order) -> Procedures:
        """The procedures, for an endpoint."""
        self.procedures = Procedures(self, takes, check_type, order)
        return self.procedures

    def decoder(self, protocol: Protocol) -> Decode:
        """The function that decodes the messages of a new session."""
        if not self._takes_objects or protocol.codec.decoder is None:
            return protocol.codec.decode
        decoding = self._decodings.get(protocol.name)
        if decoding is None:
            decoding = self._decodings[protocol.name] = Decoding(protocol, self._known)
        return decoding.decode

    def changed(self, name: MessageType, *, lasts: bool = True) -> None:
        """The handlers of a name are others now.

        Args:
            name: The name.
            lasts: Whether the name is worth knowing.
        """
        if self._decodings:
            taken = taken_by(self._handlers_of(name))
            for decoding in self._decodings.values():
                decoding.changed(name, taken, lasts=lasts)

    def _known(self) -> Iterator[tuple[MessageType, Iterable[Callable[..., Any]]]]:
        for name in {**self.procedures.by_name, **self.procedures.streams, **self.channel._by_type}:
            yield name, self._handlers_of(name)

    def _handlers_of(self, name: MessageType) -> Iterator[Callable[..., Any]]:
        procedures = self.procedures
        if name in procedures.by_name:
            yield procedures.by_name[name]
        if name in procedures.streams:
            yield procedures.streams[name].fn
        if name in self.channel._by_type:
            yield from self.channel._by_type[name].fns

    def add_middleware(self, middleware: Middleware) -> None:
        """Put a function around every call and message, inside of those that are there."""
        self.middleware.append(middleware)
        if len(self.middleware) == 1:  # from now on, all handlers go through the list
            self.channel.go_through()
            self.procedures.go_through()
            for decoding in self._decodings.values():
                decoding.renew()

    def declare(self, declaration: Any) -> None:
        """Have a message or a procedure of the other side in the contract."""
        declared.include(declaration)
        self._declared.append(declaration)

    def operations(self) -> list[Operation]:
        """The procedures and messages of both sides: handlers, and what is declared."""
        others = [each.operation for each in (*self._declared, *declared.loose())] if self._before else []
        found = (*self.procedures.operations(), *self.channel.operations(), *others)
        unique = {(each.kind, each.receiver, each.name): each for each in found}
        return list(unique.values())

    def compile(
        self, fn: Callable[..., Any], *, uploads: bool, answers: bool, guards: tuple[Dependency, ...], thread: bool
    ) -> Compiled:
        """Compile a handler.

        Raises:
            TypeError, ImportError: As `compile_handler`.
        """
        names = names_of_callers(fn)
        source = Source(fn=fn, guards=guards, thread=thread, answers=answers, names=names)
        compiled = compile_handler(source, of_handlers(self._before, self._made, uploads=uploads))
        self._takes_objects = self._takes_objects or hasattr(compiled.fn, TAKES)
        return compiled

    def wrapped(self, kind: Kind, name: MessageType, handler: Callable[..., Any]) -> Callable[..., Any]:
        """A handler with the middleware around it, if there is any."""
        return around(self.middleware, kind, name, handler) if self.middleware else handler


class Procedures(rpc.Procedures):
    """Procedures whose functions may have hints and dependencies."""

    __slots__ = ("_operations", "_side")

    def __init__(self, side: Handlers, takes: tuple[str, ...], check_type: CheckType, order: Order) -> None:
        super().__init__(takes, check_type, order)
        self._side = side
        self._operations: dict[MessageType, Operation] = {}

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
        """See `WseServer.register`, which has the types of the results."""
        declared_codes, tags, examples = codes(errors), tuple(tags), tuple(examples)
        guards = as_guards(dependencies)

        def put(called: MessageType, fn: Any) -> None:
            compiled = self._side.compile(fn, uploads=upload, answers=True, guards=guards, thread=thread)
            kind: Kind = "stream" if compiled.yields else "call"
            handler = self._side.wrapped(kind, called, compiled.fn)
            self._put(called, handler, yields=compiled.yields, cancel=cancel, upload=upload, ordered=ordered)
            self._side.changed(called)
            self._operations[called] = Operation(
                kind="procedure",
                receiver=self._side.receiver,
                name=called,
                payload=hint_of(compiled.hints.get("payload", Any)),
                result=Any if compiled.yields else hint_of(compiled.result),
                item=hint_of(compiled.result) if compiled.yields else Any,
                upload=compiled.upload,
                yields=compiled.yields,
                uploads=upload,
                errors=declared_codes,
                tags=tags,
                doc=doc_of(fn),
                examples=examples,
                source=fn,
            )

        return put_by_name("register", name, fn, put, self._check_type)

    def unregister(self, name: MessageType) -> None:
        super().unregister(name)
        self._operations.pop(name, None)
        self._side.changed(name, lasts=False)

    def operations(self) -> list[Operation]:
        """What is known of the procedures."""
        return list(self._operations.values())

    def go_through(self) -> None:
        """Have all procedures go through the middleware, which is new."""
        wrapped = self._side.wrapped
        self.clear()
        for name, fn in self.by_name.items():
            self.by_name[name] = _replace(fn, partial(wrapped, "call", name))
        for name, (fn, yields, uploads) in self.streams.items():
            kind: Kind = "stream" if yields else "call"
            self.streams[name] = rpc.Procedure(wrapped(kind, name, fn), yields, uploads)


class Channel(signals.Channel):
    """The listeners of an application's plain messages, by message type."""

    __slots__ = ("_operations", "_side")

    def __init__(self, side: Handlers, takes: tuple[str, ...], check_type: CheckType, order: Order) -> None:
        super().__init__(takes, check_type, order)
        self._side = side
        self._operations: dict[MessageType, list[Operation]] = {}

    @overload  # type: ignore[override]  # functions are hashable, but no names
    def on(self, type: F, /) -> F: ...
    @overload
    def on(
        self,
        type: MessageType,
        fn: F,
        *,
        ordered: bool = False,
        dependencies: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> F: ...
    @overload
    def on(
        self,
        type: MessageType | None = None,
        fn: None = None,
        *,
        ordered: bool = False,
        dependencies: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> Callable[[F], F]: ...
    def on(  # pyright: ignore[reportIncompatibleMethodOverride]  # as mypy above
        self,
        type: Any = None,
        fn: Any = None,
        *,
        ordered: bool = False,
        dependencies: Iterable[Any] = (),
        tags: Iterable[str] = (),
        examples: Iterable[Any] = (),
    ) -> Any:
        """Call `fn` for every message of that type; without `fn`, a decorator. A bare decorator takes the name of the
        function as the type.

        Args:
            type: The type.
            fn: The function, plain or async. A hint of its payload is checked; see `WseServer.register`.
            ordered: `fn` begins when the ordered handlers of the same connection that were called before have ended:
                those of messages and those of calls (`register(name, ordered=True)`).
            dependencies: Guards, `Depends(fn)`, which come before everything else.
            tags: For the contract.
            examples: Payloads, for the contract.

        Raises:
            WseError: `PROTOCOL_VIOLATION`, for a type that is WSE's own.
            TypeError: `fn` does not take the arguments of a message; a hint or a dependency that WSE cannot use.
        """
        return self._listen(type, fn, False, ordered, as_guards(dependencies), tuple(tags), tuple(examples))

    @overload  # type: ignore[override]  # as `on`
    def once(self, type: F, /) -> F: ...
    @overload
    def once(self, type: MessageType, fn: F) -> F: ...
    @overload
    def once(self, type: MessageType) -> Callable[[F], F]: ...
    def once(  # pyright: ignore[reportIncompatibleMethodOverride]  # as mypy above
        self, type: Any, fn: Any = None
    ) -> Any:
        """Like `on`, for the next message of that type only."""
        return self._listen(type, fn, True, False, (), (), ())

    def _listen(
        self,
        kind: Any,
        fn: Any,
        once: bool,
        ordered: bool,
        guards: tuple[Dependency, ...],
        tags: tuple[str, ...],
        examples: tuple[Any, ...],
    ) -> Any:
        def put(called: MessageType, fn: Any) -> None:
            compiled = self._side.compile(fn, uploads=False, answers=False, guards=guards, thread=False)
            self._put(called, self._standing(called, compiled.fn, fn), once=once, ordered=ordered)
            self._side.changed(called, lasts=not once)
            if not once:
                operation = Operation(
                    kind="message",
                    receiver=self._side.receiver,
                    name=called,
                    payload=hint_of(compiled.hints.get("payload", Any)),
                    tags=tags,
                    doc=doc_of(fn),
                    examples=examples,
                    source=fn,
                )
                self._operations.setdefault(called, []).append(operation)

        return put_by_name("channel.once" if once else "channel.on", kind, fn, put, self._check_type)

    def _standing(self, kind: MessageType, handler: Callable[..., Any], fn: Any = None) -> Callable[..., Any]:
        """A listener with the middleware around it, if there is any.

        Args:
            kind: The type.
            handler: The listener.
            fn: The function for which it stands; by default that for which `handler` stands.
        """
        fn = original(handler) if fn is None else fn
        listener = self._side.wrapped("message", kind, handler)
        if listener is not fn:
            setattr(listener, STANDS_FOR, fn)
        return listener

    def off(self, type: MessageType, fn: Callable[..., Any] | None = None) -> None:
        super().off(type, fn)
        self._side.changed(type, lasts=False)
        operations = self._operations.get(type)
        if operations is None:
            return
        if fn is not None:
            last = next((each for each in reversed(operations) if each.source == fn), None)
            if last is not None:
                operations.remove(last)
        if type not in self._by_type or not operations:
            del self._operations[type]

    def remove_all(self, type: MessageType | None = None) -> None:
        types = list(self._by_type) if type is None else [type]
        super().remove_all(type)
        for each in types:
            self._side.changed(each, lasts=False)
        if type is None:
            self._operations.clear()
        else:
            self._operations.pop(type, None)

    def operations(self) -> list[Operation]:
        """What is known of the messages: of each type, what its listeners say together."""
        return [_together(operations) for operations in self._operations.values()]

    def go_through(self) -> None:
        """Have all listeners go through the middleware, which is new."""
        for kind, listeners in self._by_type.items():
            listeners.fns = tuple(_replace(fn, partial(self._standing, kind)) for fn in listeners.fns)


def put_by_name(
    decorator: str, name: Any, fn: Any, put: Callable[[MessageType, Any], None], check: CheckType | None = None
) -> Any:
    """Put a function under a name and return it, or return the decorator that does so.

    Args:
        decorator: The method that the application has called, for errors.
        name: The name; `None` for that of the function; the function itself, for a decorator without parentheses.
        fn: The function; `None` for a decorator.
        put: Called with the name and the function.
        check: Called with the name, before that.

    Raises:
        TypeError: The name is none, or there is none.
        Exception: Those of `put` and `check`.
    """
    if fn is None and (callable(name) or isinstance(name, classmethod)):
        name, fn = name_of(name, decorator), name
    if name is not None:
        check_name(name, decorator)
        if check is not None:
            check(name)

    def add(fn: F) -> F:
        called = name
        if called is None:
            called = name_of(fn, decorator)
            if check is not None:
                check(called)
        put(called, fn)
        return fn

    return add if fn is None else add(fn)


def name_of(fn: Any, decorator: str) -> str:
    """The name of a function, for a decorator that is given none.

    Raises:
        TypeError: It is a class, or has no name.
    """
    name = getattr(fn, "__name__", None)
    if isinstance(fn, type) or not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"{decorator} needs a name, as {fn!r} has none: {decorator}(name, fn)")
    return name


def _replace(listener: Any, make: Callable[[Any], Any]) -> Any:
    """Replace a handler, or the one in an object that stands around it."""
    if isinstance(listener, ONE_AROUND):
        listener.fn = make(listener.fn)
        return listener
    return make(listener)


def _together(operations: list[Operation]) -> Operation:
    first = next((each for each in operations if each.payload is not Any), operations[0])
    return Operation(
        kind="message",
        receiver=first.receiver,
        name=first.name,
        payload=first.payload,
        tags=tuple(dict.fromkeys(tag for each in operations for tag in each.tags)),
        doc=first.doc or next((each.doc for each in operations if each.doc), ""),
        examples=tuple(example for each in operations for example in each.examples),
        source=first.source,
    )
