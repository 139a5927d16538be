"""Routers: handlers of one module, which a server includes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from wse.typed.dependencies import Dependency, as_guards
from wse.typed.handlers import put_by_name
from wse.typed.hints import label, remember_names
from wse.types import F, MessageType

_MARK = "wse_entries"
"""The attribute of a method with what its decorators have said."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that a router has for a server.

    Attributes:
        kind: What the server does with it.
        name: The procedure, the type of the message, or the event; `None` for what is only declared.
        fn: The handler, or the declaration.
        options: The options of the server's method.
    """

    kind: Literal["register", "on", "once", "when", "when.once", "declare"]
    name: Any
    fn: Any
    options: dict[str, Any]

    @property
    def is_named(self) -> bool:
        """Whether its name is the application's."""
        return self.kind in ("register", "on", "once")

    def below(self, prefix: str, tags: tuple[str, ...], guards: tuple[Dependency, ...]) -> Entry:
        """The entry as one of an outer router."""
        if not self.is_named:
            return self
        name = self.name
        if prefix:
            if not isinstance(name, str):
                raise TypeError(f"a router with a prefix takes strings as names, not {name!r}")
            name = prefix + name
        options = self.options
        if self.kind != "once":
            options = {
                **options,
                "tags": tuple(dict.fromkeys((*tags, *options.get("tags", ())))),
                "dependencies": (*guards, *options.get("dependencies", ())),
            }
        elif guards:
            raise TypeError(f"a listener that is called once cannot have guards: {label(self.fn)}")
        return replace(self, name=name, options=options)


class Router:
    """Handlers that a server includes: `server.include(router)`.

        notes = Router(prefix="notes.")

        @notes.register
        async def missed(conn, page: Page) -> list[Note]: ...     # clients call "notes.missed"

    The methods of a class may be decorated as well. Then the server includes an object of the class:
    `server.include(Notes(database))`.

    Args:
        prefix: Stands before the names of procedures and the types of messages.
        tags: Tags of all of them, for the contract.
        dependencies: Guards of all of them: `Depends(fn)`. They come before everything else, in this order.

    Raises:
        TypeError: A guard that is none.

    Attributes:
        channel: Listeners of messages: `on`, `once`.
        when: Listeners of the server's events, as `server.when`.
    """

    def __init__(self, prefix: str = "", *, tags: Iterable[str] = (), dependencies: Iterable[Any] = ()) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"a prefix is a string, not {prefix!r}")
        self.prefix = prefix
        self._tags = tuple(tags)
        self._guards = as_guards(dependencies)
        self._entries: list[Entry] = []
        self._included: list[Router] = []
        self._takers: list[Callable[[Entry], None]] = []
        self._has_methods = False
        self.channel = RouterChannel(self)
        self.when = RouterSignals(self)

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
    def register(self, name: Any = None, fn: Any = None, **options: Any) -> Any:
        """Register a procedure; see `WseServer.register`. Its name gets the router's prefix."""
        return self._decorate("register", name, fn, options)

    def include(
        self, other: Any, *, prefix: str = "", tags: Iterable[str] = (), dependencies: Iterable[Any] = ()
    ) -> None:
        """Include another router, an object with decorated methods, or a declaration; see `WseServer.include`.

        Raises:
            TypeError: It is none of these.
            ValueError: The router includes itself.
        """
        if isinstance(other, Router):
            if other.reaches(self):
                raise ValueError("a router cannot include itself")
            self._included.append(other)
        guards = as_guards(dependencies)
        send(other, lambda entry: self._add(entry.below(prefix, tuple(tags), guards)))

    def reaches(self, router: Router) -> bool:
        """Whether it is that router, or includes it."""
        return self is router or any(each.reaches(router) for each in self._included)

    def send_to(self, take: Callable[[Entry], None]) -> None:
        """Give all entries to a router or server, those that come later as well.

        Raises:
            TypeError: It has methods of a class, which need an object.
        """
        if self._has_methods:
            raise TypeError("the handlers of this router are methods: include an object of their class")
        for entry in tuple(self._entries):
            take(entry)
        self._takers.append(take)

    def _decorate(self, kind: Any, name: Any, fn: Any, options: dict[str, Any]) -> Any:
        decorator = "register" if kind == "register" else f"channel.{kind}"

        def put(called: MessageType, fn: Any) -> None:
            remember_names(fn)
            self._put(Entry(kind, called, fn, options))

        return put_by_name(decorator, name, fn, put)

    def _put(self, entry: Entry) -> None:
        """Take a new entry: at once, or, if it is a method of a class, for objects of that."""
        if _is_method(entry.fn):
            self._has_methods = True
            entry.fn.__dict__.setdefault(_MARK, []).append((self, entry))
        else:
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        entry = self.own(entry)
        self._entries.append(entry)
        for take in self._takers:
            take(entry)

    def own(self, entry: Entry) -> Entry:
        """An entry with the prefix, the tags and the guards of this router."""
        return entry.below(self.prefix, self._tags, self._guards)


class RouterChannel:
    """The listeners of messages of a router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    @overload
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
    def on(self, type: Any = None, fn: Any = None, **options: Any) -> Any:
        """Listen to messages; see `Channel.on`. The type gets the router's prefix."""
        return self._router._decorate("on", type, fn, options)

    @overload
    def once(self, type: F, /) -> F: ...
    @overload
    def once(self, type: MessageType, fn: F) -> F: ...
    @overload
    def once(self, type: MessageType) -> Callable[[F], F]: ...
    def once(self, type: Any, fn: Any = None) -> Any:
        """Like `on`, for the next message of that type only."""
        return self._router._decorate("once", type, fn, {})


class RouterSignal:
    """One event of a server, for the listeners of a router."""

    __slots__ = ("_name", "_router")

    def __init__(self, router: Router, name: str) -> None:
        self._router = router
        self._name = name

    def __call__(self, fn: F) -> F:
        """Call `fn` at every emission; returns `fn`."""
        self._router._put(Entry("when", self._name, fn, {}))
        return fn

    def once(self, fn: F) -> F:
        """Call `fn` at the next emission only; returns `fn`."""
        self._router._put(Entry("when.once", self._name, fn, {}))
        return fn


class RouterSignals:
    """The events of a server, for the listeners of a router; see `WseServer.when`."""

    joined: RouterSignal
    left: RouterSignal
    connected: RouterSignal
    disconnected: RouterSignal
    detached: RouterSignal
    resumed: RouterSignal
    ignored: RouterSignal
    undelivered: RouterSignal
    error: RouterSignal

    def __init__(self, router: Router) -> None:
        for name in RouterSignals.__annotations__:
            setattr(self, name, RouterSignal(router, name))


def send(included: Any, take: Callable[[Entry], None]) -> None:
    """Give everything that a router, a declaration, or an object with decorated methods has to whoever includes it.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(included, Router):
        included.send_to(take)
        return
    if hasattr(included, "operation"):
        take(Entry("declare", None, included, {}))
        return
    if isinstance(included, type):
        included = included()
    marked: dict[str, list[tuple[Router, Entry]]] = {}
    for cls in reversed(type(included).__mro__):
        for name, attribute in vars(cls).items():
            marks = getattr(attribute, "__dict__", {}).get(_MARK)
            if marks is not None:
                marked[name] = marks
    if not marked:
        raise TypeError(
            "include takes a Router, an Event, a ClientProcedure, or an object whose methods are decorated, "
            f"not {included!r}"
        )
    for name, marks in marked.items():
        for router, entry in marks:
            take(router.own(replace(entry, fn=getattr(included, name))))


def _is_method(fn: Any) -> bool:
    """Whether a function has been defined in the body of a class."""
    if isinstance(fn, staticmethod | classmethod):
        return True
    names = getattr(fn, "__qualname__", "").split(".")
    return len(names) > 1 and names[-2] != "<locals>" and not hasattr(fn, "__self__") and hasattr(fn, "__code__")
