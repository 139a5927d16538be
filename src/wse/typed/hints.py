"""The parameters and the result of a function, with the values of their annotations."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class Unknown:
    """Stands for an annotation that has no value.

    Attributes:
        text: The annotation.
        cause: The exception with which its evaluation ended.
    """

    __slots__ = ("cause", "text")

    def __init__(self, text: str, cause: Exception) -> None:
        self.text = text
        self.cause = cause


class Hints:
    """The signature of a function.

    Args:
        fn: The function, or whatever is callable.
        names: Further names that its annotations may use; see `names_of_callers`.

    Raises:
        ValueError: The function has no signature.
    """

    __slots__ = ("_globals", "_names", "fn", "parameters", "returns")

    def __init__(self, fn: Callable[..., Any], names: Mapping[str, Any]) -> None:
        self.fn = fn
        function = _function_of(fn)
        module = sys.modules.get(getattr(fn, "__module__", None) or "", typing)
        self._globals = getattr(function, "__globals__", None) or vars(module)
        self._names = dict(names)
        closure = getattr(function, "__closure__", None)
        if closure:
            cells = zip(function.__code__.co_freevars, closure, strict=True)
            self._names |= {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        signature = _signature(fn)
        self.parameters = tuple(
            parameter.replace(annotation=self._value(parameter.annotation))
            for parameter in signature.parameters.values()
        )
        self.returns = self._value(signature.return_annotation)

    def _value(self, annotation: Any) -> Any:
        if annotation is inspect.Signature.empty:
            return Any
        try:
            _holder.__annotations__ = {"it": annotation}
            return typing.get_type_hints(_holder, self._globals, self._names, include_extras=True)["it"]
        except Exception as exc:  # any exception: the text may be anything
            return Unknown(annotation if isinstance(annotation, str) else repr(annotation), exc)


def known(annotation: Any, what: str, fn: Callable[..., Any]) -> Any:
    """The value of an annotation that is needed.

    Args:
        annotation: As `Hints` has found it.
        what: What is annotated, for the error.
        fn: The function, for the error.

    Raises:
        TypeError: It has no value.
    """
    if not isinstance(annotation, Unknown):
        return annotation
    raise TypeError(
        f"the hint {annotation.text!r} of {what} of {label(fn)} has no value: {annotation.cause}. Import the type at "
        "run time (not under TYPE_CHECKING), define it before the handler is registered, or leave the hint out"
    ) from annotation.cause


def label(fn: Any) -> str:
    """A function as errors name it."""
    function = _function_of(fn)
    name = getattr(function, "__qualname__", None)
    return repr(fn) if name is None else f"{function.__module__}.{name}"


def names_of_callers(fn: Callable[..., Any]) -> Mapping[str, Any]:
    """The variables of the functions in which `fn` has been defined and which have not returned: types may be there."""
    function = _function_of(fn)
    if "<locals>" not in getattr(function, "__qualname__", ""):
        return {}
    found = dict(_remembered.get(function, {}))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is function.__globals__ and frame.f_code.co_flags & inspect.CO_NEWLOCALS:
            found = {**frame.f_locals, **found}  # the names of inner functions hide those of outer ones
        frame = frame.f_back
    return found


_remembered: WeakKeyDictionary[Callable[..., Any], Mapping[str, Any]] = WeakKeyDictionary()


def remember_names(fn: Callable[..., Any]) -> None:
    """Keep what `names_of_callers` finds now for a function whose hints are text and are looked at later."""
    function = _function_of(fn)
    if any(isinstance(annotation, str) for annotation in getattr(function, "__annotations__", {}).values()):
        names = names_of_callers(fn)
        if names:
            _remembered[function] = names


def is_async(fn: Any) -> bool:
    """Whether a call of it makes a coroutine."""
    return inspect.iscoroutinefunction(_called(fn))


def is_generator(fn: Any) -> bool:
    """Whether it is a plain generator function."""
    return inspect.isgeneratorfunction(_called(fn))


def is_async_generator(fn: Any) -> bool:
    """Whether it is an async generator function."""
    return inspect.isasyncgenfunction(_called(fn))


def _called(fn: Any) -> Any:
    """What runs when it is called."""
    while isinstance(fn, partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) or isinstance(fn, type) else getattr(type(fn), "__call__", fn)  # noqa: B004 - looked at


def _function_of(fn: Any) -> Any:
    """The function in which the annotations stand."""
    fn = inspect.unwrap(_called(inspect.unwrap(fn)))
    if isinstance(fn, type):
        fn = fn.__init__ if isinstance(fn.__init__, FunctionType) else fn  # type: ignore[misc]  # only looked at
    return getattr(fn, "__func__", fn)


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(fn, annotation_format=Format.FORWARDREF)
    return inspect.signature(fn)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises if the variable has no value yet
    except ValueError:
        return False
    return True


def _holder() -> None:
    """Carries one annotation at a time, as `typing.get_type_hints` takes it from a function."""
