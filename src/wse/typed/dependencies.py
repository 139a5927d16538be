"""Dependencies: what a handler needs besides its payload, made for each call and cleaned up at its end."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from wse.typed.hints import Hints, Unknown, is_async, is_async_generator, is_generator, known, label


class Dependency:
    """A mark at a parameter: the value comes from a function; made by `Depends`.

    Attributes:
        fn: The function; `None` for the class that annotates the parameter.
        use_cache: Whether it is called once for all that need it in the same call.
        is_foreign: Whether the mark is FastAPI's.
    """

    __slots__ = ("fn", "is_foreign", "use_cache")

    def __init__(self, fn: Callable[..., Any] | None, *, use_cache: bool, is_foreign: bool = False) -> None:
        if fn is not None and not callable(fn):
            raise TypeError(f"Depends takes a function, not {fn!r}")
        self.fn = fn
        self.use_cache = use_cache
        self.is_foreign = is_foreign

    def __repr__(self) -> str:
        return f"Depends({'' if self.fn is None else label(self.fn)})"


def Depends(fn: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - as FastAPI has it
    """Mark a parameter whose value comes from a function.

    It stands in `Annotated[Session, Depends(get_db)]` or is the default of the parameter. As an element of
    `dependencies=[...]` it is a guard, whose value is not used.

    The function may be plain, `async`, or a generator of one value, whose rest runs when the call has ended. It may
    take `conn`, `payload`, `auth` and other dependencies. Plain functions run inline.

    Args:
        fn: The function, or a class; by default the class that annotates the parameter.
        use_cache: Call it once for all that need it during the same call.
    """
    return Dependency(fn, use_cache=use_cache)


class Step(NamedTuple):
    """One function of a plan.

    Attributes:
        fn: The function.
        slot: Where its value goes.
        args: Where its positional arguments are.
        kwargs: Where its other arguments are, by name.
        is_async: Whether it is awaited, or is an async generator.
        is_generator: Whether its rest runs at the end.
    """

    fn: Callable[..., Any]
    slot: int
    args: tuple[int, ...]
    kwargs: tuple[tuple[str, int], ...]
    is_async: bool
    is_generator: bool

    def call(self, values: list[Any]) -> Any:
        """Call the function."""
        return self.fn(*[values[slot] for slot in self.args], **{name: values[slot] for name, slot in self.kwargs})


Checking = Callable[[Any], Callable[[Any], Any] | None]
"""Makes of a hint the function that checks a value of it; `None` if there is nothing to check."""


class Sources(NamedTuple):
    """What a call brings along.

    Attributes:
        names: The arguments of the compiled handler, such as `("conn", "payload")`.
        made: What is made of the first of them, by name.
        checks: How those that may have a hint are checked.
    """

    names: tuple[str, ...]
    made: Mapping[str, Callable[[Any], Any]]
    checks: Mapping[str, Checking]


class Plan:
    """The steps that lead to the arguments of a handler, in their order.

    Args:
        sources: What a call brings along.
        hints: What the handler says of it, by name.
        names: Names for annotations; see `Hints`.

    Attributes:
        steps: The steps.
        given: The number of values that the caller gives.
        size: The number of all values.
    """

    def __init__(self, sources: Sources, hints: Mapping[str, Any], names: Mapping[str, Any]) -> None:
        self._sources = sources
        self._hints = hints
        self._names = names
        self._slots: dict[Any, int] = {}
        self._under_way: list[Callable[..., Any]] = []
        self.steps: list[Step] = []
        self.given = self.size = len(sources.names)

    @property
    def is_async(self) -> bool:
        """Whether a step is."""
        return any(step.is_async for step in self.steps)

    def guard(self, dependency: Dependency) -> None:
        """Add a dependency whose value is not used.

        Raises:
            TypeError: It cannot be one.
        """
        self._add(dependency, None)

    def has(self, name: str) -> bool:
        """Whether a call brings something of that name along."""
        return name in self._sources.names or name in self._sources.made

    def source(self, name: str, hint: Any = Any) -> int:
        """The slot of what a call brings along.

        Args:
            name: Its name.
            hint: What a dependency says of it. If it says nothing, what the handler says counts.

        Raises:
            TypeError, ImportError: As `check_for`.
        """
        checking = self._sources.checks.get(name)
        check = None
        if checking is not None:
            check = checking(hint) or checking(self._hints.get(name, Any))
        key = (name, check)
        slot = self._slots.get(key)
        if slot is None:
            if name in self._sources.made:
                slot = self._step(self._sources.made[name], args=(0,))
            else:
                slot = self._sources.names.index(name)
            if check is not None:
                slot = self._step(check, args=(slot,))
            self._slots[key] = slot
        return slot

    def value(self, parameter: inspect.Parameter) -> int | None:
        """The slot of a parameter's dependency; `None` if it has none.

        Raises:
            TypeError: The dependency cannot be one.
        """
        dependency = dependency_of(parameter)
        return None if dependency is None else self._add(dependency, parameter)

    # Inside.

    def _step(
        self,
        fn: Callable[..., Any],
        *,
        args: tuple[int, ...] = (),
        kwargs: tuple[tuple[str, int], ...] = (),
        is_async: bool = False,
        is_generator: bool = False,
    ) -> int:
        slot = self.size
        self.size += 1
        self.steps.append(Step(fn, slot, args, kwargs, is_async, is_generator))
        return slot

    def _add(self, dependency: Dependency, parameter: inspect.Parameter | None) -> int:
        fn = dependency.fn
        if fn is None:
            annotated = None if parameter is None else _bare(parameter.annotation)
            if annotated is Any or not callable(annotated):
                raise TypeError(f"Depends() without a function needs a class as the hint, not {annotated!r}")
            fn = annotated
        try:
            slot = self._slots.get(fn) if dependency.use_cache else None
        except TypeError:
            slot = None  # not hashable, so it is called each time
        if slot is not None:
            return slot
        if fn in self._under_way:
            raise TypeError(f"the dependency {label(fn)} depends on itself")
        self._under_way.append(fn)
        args, kwargs = self._arguments(fn, dependency)
        self._under_way.pop()
        slot = self._step(
            fn,
            args=args,
            kwargs=kwargs,
            is_async=is_async(fn) or is_async_generator(fn),
            is_generator=is_generator(fn) or is_async_generator(fn),
        )
        if dependency.use_cache:
            with suppress(TypeError):
                self._slots[fn] = slot
        return slot

    def _arguments(
        self, fn: Callable[..., Any], dependency: Dependency
    ) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...]]:
        try:
            hints = Hints(fn, self._names)
        except ValueError:  # a builtin without a signature
            return (), ()
        args: list[int] = []
        kwargs: list[tuple[str, int]] = []
        for parameter in hints.parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            slot = self.value(parameter)
            if slot is None:
                slot = self._named(parameter, fn)
            if slot is None:
                if parameter.default is parameter.empty or dependency.is_foreign:
                    raise TypeError(self._problem(parameter, fn, dependency))
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                args.append(slot)
            else:
                kwargs.append((parameter.name, slot))
        return tuple(args), tuple(kwargs)

    def _named(self, parameter: inspect.Parameter, fn: Callable[..., Any]) -> int | None:
        name = parameter.name
        if not self.has(name):
            return None
        if name in self._sources.checks:
            return self.source(name, known(parameter.annotation, repr(name), fn))
        return self.source(name)

    def _problem(self, parameter: inspect.Parameter, fn: Callable[..., Any], dependency: Dependency) -> str:
        names = ", ".join(repr(name) for name in (*self._sources.names, *self._sources.made))
        whose = "FastAPI's dependency" if dependency.is_foreign else "the dependency"
        return (
            f"{whose} {label(fn)} needs {parameter.name!r}, which WSE does not have: a dependency takes {names} and "
            "other dependencies"
        )


def dependency_of(parameter: inspect.Parameter) -> Dependency | None:
    """The mark of a parameter; `None` if it has none.

    Raises:
        TypeError: A mark that is not understood.
    """
    annotation = parameter.annotation
    if isinstance(annotation, Unknown):
        if _MARK.search(annotation.text):
            known(annotation, repr(parameter.name), _nothing)
        annotation = None
    for mark in (parameter.default, *getattr(annotation, "__metadata__", ())):
        dependency = as_dependency(mark)
        if dependency is not None:
            return dependency
    return None


def as_dependency(mark: Any) -> Dependency | None:
    """A mark of ours or of FastAPI's; `None` if it is none.

    Raises:
        TypeError: A mark of FastAPI's that only FastAPI can fill.
    """
    if isinstance(mark, Dependency):
        return mark
    cls = type(mark)
    if not cls.__module__.startswith("fastapi."):
        return None
    if cls.__name__ == "Depends":
        return Dependency(mark.dependency, use_cache=mark.use_cache, is_foreign=True)
    raise TypeError(f"{mark!r} belongs to HTTP: of FastAPI's marks, WSE understands Depends only")


_MARK = re.compile(r"\bDepends\(")
"""In an annotation that is text and has no value."""


def _bare(annotation: Any) -> Any:
    return getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation


def _nothing() -> None: ...


def as_guards(dependencies: Iterable[Any]) -> tuple[Dependency, ...]:
    """Guards, as dependencies.

    Raises:
        TypeError: One is not marked with `Depends`.
    """
    guards = []
    for mark in dependencies:
        dependency = as_dependency(mark)
        if dependency is None or dependency.fn is None:
            raise TypeError(f"dependencies=[...] takes Depends(function), not {mark!r}")
        guards.append(dependency)
    return tuple(guards)
