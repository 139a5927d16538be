"""Listeners: those of message types, and those of the signals of a server or client."""

from __future__ import annotations

import inspect
import re
import typing
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVarTuple, overload

from wse.core.session.handlers import awaited_by
from wse.core.session.ordered import Ordered
from wse.errors import ErrorCode, HandlerError
from wse.tasks import is_cancelled
from wse.types import F, MessageType

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.scheduling import Scheduler
    from wse.core.session.ordered import Order

Ts = TypeVarTuple("Ts")

HANDLER_ERRORS = (Exception, CancelledError)
"""The exceptions of handlers that are reported; the second comes from a future or task that was cancelled."""

_INJECTION = re.compile(r"\b(Depends|Security)\(")
"""In an annotation that is text and has no value."""

CheckType = Callable[[MessageType], None]
"""Rejects a type or name that an application cannot use."""

Failed = Callable[..., None]
"""Called with the exception of a handler, and with the context of its call."""


def check_handler(
    fn: Callable[..., Any],
    *takes: str,
    code: ErrorCode | None = None,
    may_yield: bool = False,
    may_depend: bool = False,
) -> None:
    """Reject a handler that cannot be called with the arguments of its event, or whose call would do nothing.

    Args:
        fn: The handler.
        takes: The names of the arguments.
        code: The code of the error, if it has one.
        may_yield: Whether a generator makes sense.
        may_depend: Whether somebody else looks at its dependencies.

    Raises:
        TypeError: It cannot be a handler; with a code, a `HandlerError`.
    """
    problem = _problem(fn, takes, may_yield, may_depend)
    if problem is not None:
        raise TypeError(problem) if code is None else HandlerError(code, {}, problem)


def is_generator(fn: Any) -> bool:
    """Whether a function is a generator, plain or async."""
    called = fn if inspect.isroutine(fn) or isinstance(fn, partial) else getattr(type(fn), "__call__", fn)  # noqa: B004 - looked at
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)


def _problem(fn: Any, takes: tuple[str, ...], may_yield: bool, may_depend: bool) -> str | None:
    """Why a function cannot be a handler, and what to do instead."""
    expected = f"({', '.join(takes)})"
    if not callable(fn):
        return f"a handler must be a function {expected}, not {fn!r}"
    if not may_yield and is_generator(fn):
        return f"a handler cannot be a generator; return a list, or send messages: {fn!r} contains a yield"
    try:
        signature = _signature(fn)
    except ValueError:  # some builtins have no signature
        return None
    for parameter in () if may_depend else signature.parameters.values():
        if _is_injected(parameter):
            return (
                f"WSE calls a handler with {expected} only and resolves no dependencies: "
                f"get {parameter.name!r} of {fn!r} inside the handler"
            )
    try:
        signature.bind(*takes)
    except TypeError:
        return f"a handler must take {expected}, but {fn!r} takes {signature}"
    return None


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature, with the values of annotations that are text: as `from __future__ import annotations` makes them.

    Raises:
        ValueError: The function has none.
    """
    try:
        return inspect.signature(fn, eval_str=True)
    except Exception:  # any exception: the text may use a name that is imported for type checkers only
        return inspect.signature(fn)


def _is_injected(parameter: inspect.Parameter) -> bool:
    """Whether a web framework, such as FastAPI, would fill a parameter: `Depends(...)`, `Query(...)` and others."""
    annotation = parameter.annotation
    if isinstance(annotation, str) and _INJECTION.search(annotation):
        return True
    markers = (parameter.default, *getattr(annotation, "__metadata__", ()))
    return any(
        type(m).__module__.startswith("fastapi.") or type(m).__name__ in ("Depends", "Security") for m in markers
    )


def check_name(name: Any, decorator: str) -> None:
    """Reject a function in place of a name: a decorator without its parentheses.

    Raises:
        TypeError: The name is a function.
    """
    if callable(name):
        label = getattr(name, "__name__", "name")
        raise TypeError(f'{decorator} needs a name before the function: @{decorator}("{label}"), not {name!r}')


class Spawner(typing.Protocol):
    """Runs async handlers: a `Scheduler`, or a session, whose handlers end with it."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> object:
        """Run a coroutine that handles its own exceptions."""


def run_handler(spawner: Spawner, fn: Callable[..., Any], args: tuple[Any, ...], failed: Failed, *context: Any) -> None:
    """Call a handler, plain or async; its exception goes to `failed(exception, *context)`."""
    try:
        result = fn(*args)
    except HANDLER_ERRORS as exc:
        failed(exc, *context)
    else:
        if result is not None and inspect.isawaitable(result):
            spawner.spawn(settle(result, failed, *context))


async def settle(awaitable: Any, failed: Failed, *context: Any) -> None:
    """Await an async handler; its exception goes to `failed(exception, *context)`."""
    try:
        await awaitable
    except HANDLER_ERRORS as exc:
        if is_cancelled(exc):
            raise
        failed(exc, *context)


def handler_of(task: asyncio.Task[Any]) -> str:
    """The name of the async handler that a task runs, for reports."""
    awaitable: Any = task.get_coro()
    while (inner := awaited_by(awaitable)) is not None:
        awaitable = inner
    return getattr(awaitable, "__qualname__", None) or repr(type(awaitable))


class _Once:
    """A listener that unsubscribes itself before its first call.

    Args:
        leave: Unsubscribes it.
        fn: The function to call.
    """

    __slots__ = ("_called", "_leave", "fn")

    def __init__(self, leave: Callable[[_Once], None], fn: Callable[..., Any]) -> None:
        self._called = False
        self._leave = leave
        self.fn = fn

    def __call__(self, *args: Any) -> Any:
        if self._called:  # by an emission inside of the one that calls it now
            return None
        self._called = True
        self._leave(self)
        return self.fn(*args)


ONE_AROUND = (_Once, Ordered)
"""Listeners that stand around another one, which is their `fn`."""


def original(listener: Any) -> Any:
    """The function that the application has given for a listener, which may stand for it."""
    if isinstance(listener, ONE_AROUND):
        listener = listener.fn
    return getattr(listener, STANDS_FOR, listener)


STANDS_FOR = "wse_stands_for"
"""The attribute of a listener that has been made of another."""


class Listeners:
    """Functions in order of their registration.

    The tuple is replaced and never changed, so that a listener may add or remove listeners while they are called.
    """

    __slots__ = ("fns",)

    def __init__(self) -> None:
        self.fns: tuple[Callable[..., Any], ...] = ()

    def add(self, fn: Callable[..., Any]) -> None:
        self.fns = (*self.fns, fn)

    def remove(self, fn: Callable[..., Any]) -> None:
        """Remove the listener that was added last, or do nothing."""
        for index in range(len(self.fns) - 1, -1, -1):
            listener = self.fns[index]
            if listener == fn or original(listener) == fn:
                self.fns = self.fns[:index] + self.fns[index + 1 :]
                return


class Signal(Generic[*Ts]):
    """An event of a server or client, with its listeners.

    A call of the signal adds a listener: `when.connected(fn)`, or `@when.connected` above the function. Listeners may
    be plain or `async`. Their exceptions are reported on `when.error`.
    """

    __slots__ = ("_before", "_failed", "_holds", "_last", "_listeners", "_replay", "_scheduler", "_takes", "name")

    def __init__(
        self,
        name: str,
        takes: tuple[str, ...],
        scheduler: Scheduler,
        failed: Failed,
        *,
        replay: bool = False,
        holds: bool = False,
    ) -> None:
        """Make a signal.

        Args:
            name: Its name in reports.
            takes: The names of its arguments.
            scheduler: Runs async listeners.
            failed: Called with what a listener raises.
            replay: Call later listeners at once with the last emission.
            holds: The same, and let `wait` return the last emission at once, until `_forget`.
        """
        self.name = name
        self._takes = takes
        self._scheduler = scheduler
        self._failed = failed
        self._replay = replay or holds
        self._holds = holds
        self._last: tuple[Any, ...] | None = None
        self._before: tuple[Callable[..., Any], ...] = ()  # the listeners when the last emission ceased to hold
        self._listeners = Listeners()

    def __call__(self, fn: F) -> F:
        """Call `fn` at every emission; returns `fn`.

        Raises:
            TypeError: `fn` cannot take the signal's arguments.
        """
        check_handler(fn, *self._takes)
        self._listeners.add(fn)
        if self._last is not None:
            self._run(fn, self._last)
        return fn

    def once(self, fn: F) -> F:
        """Call `fn` at the next emission only; returns `fn`.

        Raises:
            TypeError: `fn` cannot take the signal's arguments.
        """
        check_handler(fn, *self._takes)
        if self._last is not None:
            self._run(fn, self._last)
        else:
            self._listeners.add(_Once(self._listeners.remove, fn))
        return fn

    def off(self, fn: Callable[..., Any]) -> None:
        """Stop calling `fn`; nothing happens if it is not a listener."""
        self._listeners.remove(fn)

    async def wait(self, timeout: float | None = None) -> tuple[*Ts]:
        """Wait for the next emission and return its arguments, always as a tuple.

        On a connected client, `when.ready.wait()` returns the arguments of the last emission at once.

        Args:
            timeout: Seconds to wait; `None` waits for ever.

        Raises:
            TimeoutError: There was no emission in time.
        """
        if self._holds and self._last is not None:
            return self._last
        future: asyncio.Future[tuple[*Ts]] = self._scheduler.create_future()

        def happened(*args: Any) -> None:
            if not future.done():
                future.set_result(args)

        def expired() -> None:
            if not future.done():
                future.set_exception(TimeoutError(f"{self.name} did not happen within {timeout} s"))

        timer = None if timeout is None else self._scheduler.call_later(timeout, expired)
        self._listeners.add(_Once(self._listeners.remove, happened))
        try:
            return await future
        finally:
            self._listeners.remove(happened)
            if timer is not None:
                timer.cancel()

    def _emit(self, *args: *Ts) -> None:
        """Call all listeners, in order of their subscription."""
        if self._replay:
            self._last = args
        for fn in self._listeners.fns:
            self._run(fn, args)

    def _forget(self) -> None:
        """The last emission no longer holds."""
        self._last = None
        self._before = self._listeners.fns

    def _emit_to_new(self, *args: *Ts) -> None:
        """The same for the listeners that have come since the last emission ceased to hold."""
        self._last = args
        before = list(self._before)
        for fn in self._listeners.fns:
            if fn in before:
                before.remove(fn)
            else:
                self._run(fn, args)

    def _emit_on(self, spawner: Spawner, *args: *Ts) -> None:
        """The same, for a signal about a connection: its end also ends the async listeners."""
        for fn in self._listeners.fns:
            run_handler(spawner, fn, args, self._failed, self.name, args)

    @property
    def has_listeners(self) -> bool:
        """Whether there is a listener."""
        return bool(self._listeners.fns)

    def _run(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        run_handler(self._scheduler, fn, args, self._failed, self.name, args)


class Channel:
    """The listeners of an application's plain messages, by message type."""

    __slots__ = ("_by_type", "_check_type", "_order", "_takes")

    def __init__(self, takes: tuple[str, ...], check_type: CheckType, order: Order) -> None:
        self._takes = takes
        self._check_type = check_type
        self._order = order
        self._by_type: dict[MessageType, Listeners] = {}

    @overload
    def on(self, type: MessageType, fn: F, *, ordered: bool = False) -> F: ...
    @overload
    def on(self, type: MessageType, fn: None = None, *, ordered: bool = False) -> Callable[[F], F]: ...
    def on(self, type: MessageType, fn: F | None = None, *, ordered: bool = False) -> F | Callable[[F], F]:
        """Call `fn` for every message of that type; without `fn`, a decorator.

        Args:
            type: The type.
            fn: The function, plain or async.
            ordered: `fn` begins when the ordered handlers of the same connection that were called before have ended:
                those of messages and those of calls (`register(name, ordered=True)`).

        Raises:
            WseError: `PROTOCOL_VIOLATION`, for a type that is WSE's own.
            TypeError: `fn` does not take the arguments of a message.
        """
        return self._add(type, fn, once=False, ordered=ordered)

    @overload
    def once(self, type: MessageType, fn: F) -> F: ...
    @overload
    def once(self, type: MessageType) -> Callable[[F], F]: ...
    def once(self, type: MessageType, fn: F | None = None) -> F | Callable[[F], F]:
        """Like `on`, for the next message of that type only."""
        return self._add(type, fn, once=True)

    def off(self, type: MessageType, fn: Callable[..., Any] | None = None) -> None:
        """Stop calling `fn` for that type; without `fn`, remove all its listeners."""
        listeners = self._by_type.get(type)
        if listeners is None:
            return
        if fn is not None:
            listeners.remove(fn)
        if fn is None or not listeners.fns:
            del self._by_type[type]

    def remove_all(self, type: MessageType | None = None) -> None:
        """Remove all listeners of that type; without a type, all listeners of all types."""
        if type is None:
            self._by_type.clear()
        else:
            self._by_type.pop(type, None)

    def listener_count(self, type: MessageType) -> int:
        """How many listeners the type has."""
        listeners = self._by_type.get(type)
        return 0 if listeners is None else len(listeners.fns)

    def _add(self, type: MessageType, fn: F | None, *, once: bool, ordered: bool = False) -> F | Callable[[F], F]:
        check_name(type, "channel.once" if once else "channel.on")
        self._check_type(type)

        def add(fn: F) -> F:
            check_handler(fn, *self._takes)
            self._put(type, fn, once=once, ordered=ordered)
            return fn

        return add if fn is None else add(fn)

    def _put(self, type: MessageType, listener: Callable[..., Any], *, once: bool, ordered: bool) -> None:
        if once:
            listener = _Once(partial(self.off, type), listener)
        elif ordered:
            listener = self._order.ordered(listener)
        self._by_type.setdefault(type, Listeners()).add(listener)
