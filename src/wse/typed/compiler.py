"""Makes of a handler, with its hints and dependencies, the function that a session calls.

The session knows nothing of this. A handler without hints and dependencies is called as it is.
"""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, get_args, get_origin

from wse.core.session.signals import check_handler
from wse.typed.decoding import TAKES
from wse.typed.dependencies import Plan, dependency_of
from wse.typed.hints import Hints, Unknown, is_async, is_async_generator, is_generator, known, label
from wse.typed.running import Target, in_thread, own_items, run_plan
from wse.validation.checks import check_for

if TYPE_CHECKING:
    from wse.errors import ErrorCode
    from wse.typed.dependencies import Dependency, Sources
    from wse.validation.checks import Check


@dataclass(frozen=True, slots=True)
class Compiled:
    """A handler, as it is called.

    Attributes:
        fn: The function for the session.
        yields: Whether it is a stream.
        hints: The types of what it is given, by name; without those of which it says nothing.
        result: The type of its result, or of the items that it yields; `Any` if it says nothing.
        upload: The type of the items that it takes, the same.
    """

    fn: Callable[..., Any]
    yields: bool
    hints: Mapping[str, Any] = field(default_factory=dict)
    result: Any = Any
    upload: Any = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A handler as an application has written it.

    Attributes:
        fn: The function.
        guards: Dependencies that come first.
        thread: Whether it runs in a thread.
        answers: Whether its result is used.
        code: The code of the error for a function that cannot be one, if it has one.
        names: Names for annotations; see `Hints`.
    """

    fn: Callable[..., Any]
    guards: tuple[Dependency, ...] = ()
    thread: bool = False
    answers: bool = True
    code: ErrorCode | None = None
    names: Mapping[str, Any] = field(default_factory=dict)


def compile_handler(source: Source, sources: Sources) -> Compiled:
    """Compile a handler.

    Args:
        source: The handler.
        sources: What its caller gives it.

    Raises:
        TypeError: A hint that cannot be checked or has no value, or a dependency that cannot be one.
        ImportError: The library that checks a hint is not installed.
    """
    fn = source.fn
    yields = is_generator(fn) or is_async_generator(fn)
    try:
        hints = Hints(fn, source.names)
    except (TypeError, ValueError):  # not a function, or a builtin without a signature
        hints = None
    marked = {p.name for p in hints.parameters if dependency_of(p) is not None} if hints is not None else set()
    if not marked or (yields and not source.answers):
        check_handler(fn, *sources.names, code=source.code, may_yield=source.answers, may_depend=True)
    if source.thread and (yields or is_async(fn)):
        raise TypeError(f"thread=True is for plain functions, and {label(fn)} is none")
    if hints is None:
        return Compiled(_in_thread(fn) if source.thread else fn, yields)
    given = _given(hints, marked, sources)
    said = {
        name: hint
        for name, parameter in given.items()
        if name in sources.checks
        and parameter.kind is not parameter.VAR_POSITIONAL
        and (hint := _said(parameter, name, fn)) is not Any
    }
    takes: type | None = None
    result = _result(hints, yields) if source.answers else Any
    check = check_for(result)
    if marked or source.guards:
        compiled = _planned(source, sources, hints, said, given, check, yields)
    else:
        compiled = _checked(fn, sources, said)
        payload = check_for(said.get("payload", Any))
        takes = None if payload is None else payload.made
        if check is not None:
            compiled = (
                own_items(compiled, check, len(sources.names))
                if yields
                else _own_result(compiled, check, is_async=is_async(fn))
            )
    if source.thread and not is_async(compiled):  # otherwise only the handler runs in a thread
        compiled = _in_thread(compiled)
    if compiled is not fn:
        _name(compiled, fn)
        if takes is not None:
            setattr(compiled, TAKES, takes)
    taken = get_args(said.get("items", Any))
    return Compiled(compiled, yields, said, result, taken[0] if taken else Any)


def _said(parameter: inspect.Parameter, name: str, fn: Callable[..., Any]) -> Any:
    """The type of what the caller gives."""
    annotation = parameter.annotation
    if name == "auth" and isinstance(annotation, Unknown) and "[" not in annotation.text:
        return Any  # a handshake, of which it says nothing
    return known(annotation, repr(parameter.name), fn)


def _given(hints: Hints, marked: set[str], sources: Sources) -> dict[str, inspect.Parameter]:
    """The parameters for what the caller gives, by its names for them."""
    left = list(sources.names)
    given: dict[str, inspect.Parameter] = {}
    for parameter in hints.parameters:
        if not left or parameter.name in marked or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            given.update(dict.fromkeys(left, parameter))
            break
        given[left.pop(0)] = parameter
    return given


def _result(hints: Hints, yields: bool) -> Any:
    """The type of the result, or of the items of a stream."""
    hint = known(hints.returns, "the result", hints.fn)
    if hint in (typing.NoReturn, typing.Never):
        return Any
    origin, args = get_origin(hint), get_args(hint)
    if yields:
        return args[0] if args and origin in _ITERATORS else Any
    if origin in (collections.abc.Awaitable, collections.abc.Coroutine, asyncio.Future, asyncio.Task):
        return args[-1]
    return hint


_ITERATORS = (
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Generator,
)


# Without dependencies.


def _checked(fn: Callable[..., Any], sources: Sources, said: Mapping[str, Any]) -> Callable[..., Any]:
    """The handler, called with values of its types."""
    for index, name in reversed(tuple(enumerate(sources.names))):
        check = sources.checks[name](said[name]) if name in said else None
        if check is not None:
            whole = check_for(said[name]) if sources.names in _USUAL else None
            fn = _with_check(fn, check, index) if whole is None else _with_payload(fn, whole, index)
    return fn


_USUAL = (("conn", "payload"), ("payload",))
"""What nearly all handlers are given."""


def _with_check(fn: Callable[..., Any], check: Callable[[Any], Any], index: int) -> Callable[..., Any]:
    """The handler, called with a checked argument."""

    def handle(*args: Any) -> Any:
        return fn(*args[:index], check(args[index]), *args[index + 1 :])

    return handle


def _with_payload(fn: Callable[..., Any], check: Check, index: int) -> Callable[..., Any]:
    """The same for the last of one or two arguments, with as few calls as can be."""
    ready = check.made or check.exact
    convert, errors, blame = check.convert, check.errors, check.blame

    def handle_second(first: Any, second: Any) -> Any:
        if type(second) is not ready:
            try:
                second = convert(second)
            except errors as exc:
                blame(exc)
        return fn(first, second)

    def handle_only(only: Any) -> Any:
        if type(only) is not ready:
            try:
                only = convert(only)
            except errors as exc:
                blame(exc)
        return fn(only)

    return handle_second if index else handle_only


def _own_result(fn: Callable[..., Any], check: Check, *, is_async: bool) -> Callable[..., Any]:
    """The handler, whose result is looked at before it is sent."""
    own = check.own

    async def later(coming: Any) -> Any:
        return own(await coming)

    if is_async:

        async def handle_async(*args: Any) -> Any:
            return own(await fn(*args))

        return handle_async

    def handle(*args: Any) -> Any:
        result = fn(*args)
        return later(result) if isawaitable(result) else own(result)

    return handle


def _in_thread(fn: Callable[..., Any]) -> Callable[..., Any]:
    async def handle(*args: Any) -> Any:
        return await in_thread(fn, *args)

    return handle


def _name(compiled: Any, fn: Any) -> None:
    """Let reports name the handler, and not what stands around it."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        if hasattr(fn, name):
            setattr(compiled, name, getattr(fn, name))


# With dependencies.


def _planned(
    source: Source,
    sources: Sources,
    hints: Hints,
    said: Mapping[str, Any],
    given: Mapping[str, inspect.Parameter],
    check: Check | None,
    yields: bool,
) -> Callable[..., Any]:
    fn = source.fn
    plan = Plan(sources, said, source.names)
    for dependency in source.guards:
        plan.guard(dependency)
    slots: dict[str, int] = {}
    taken = {parameter.name: name for name, parameter in given.items()}
    variadic: list[int] = []
    for name in sources.names:  # what is wrong with the payload is said before any dependency is made
        parameter = given.get(name)
        if parameter is not None and parameter.kind is parameter.VAR_POSITIONAL:
            variadic.append(plan.source(name))
        elif parameter is not None:
            slots[parameter.name] = plan.source(name)
    for parameter in hints.parameters:
        if parameter.name in taken or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        slot = plan.value(parameter)
        if slot is not None:
            slots[parameter.name] = slot
        elif plan.has(parameter.name) and parameter.kind is parameter.KEYWORD_ONLY:
            slots[parameter.name] = plan.source(parameter.name)
        elif parameter.default is parameter.empty:
            raise TypeError(
                f"{label(fn)} needs {parameter.name!r}, which nothing gives it: a handler takes "
                f"({', '.join(sources.names)}), and dependencies marked with Depends"
            )
    if "conn" in sources.names and "conn" not in given:
        raise TypeError(f"{label(fn)} must take conn first")
    positional: list[int] = []
    by_name: list[tuple[str, int]] = []
    is_gapless = True
    for parameter in hints.parameters:
        slot = slots.get(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL and is_gapless:
            positional += variadic
        if slot is None:
            is_gapless = False
        elif parameter.kind is parameter.KEYWORD_ONLY or not is_gapless:
            by_name.append((parameter.name, slot))
        else:
            positional.append(slot)
    target = Target(
        fn,
        tuple(positional),
        tuple(by_name),
        check=check,
        yields=yields,
        is_async=plan.is_async or is_async(fn) or is_async_generator(fn),
        in_thread=source.thread and plan.is_async,
    )
    return run_plan(plan, target)
