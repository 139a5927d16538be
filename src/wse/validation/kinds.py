"""What kind of type a hint is: who checks its values."""

from __future__ import annotations

import dataclasses
import sys
import typing
from typing import Annotated, Any, get_args, get_origin

import msgspec


def is_anything(hint: Any) -> bool:
    """Whether a type takes every value."""
    return hint is Any or hint is object or (isinstance(hint, typing.TypeVar) and not hint.__bound__)


def mentions_pydantic(hint: Any) -> bool:
    """Whether a type is one of pydantic's, or has one inside that msgspec would not see.

    pydantic itself is not imported: without it, there are no types of it.

    Raises:
        TypeError: The type has constraints of msgspec's, which pydantic would ignore.
    """
    if "pydantic" not in sys.modules and "annotated_types" not in sys.modules:
        return False
    found, constrained = _look(hint, set())
    if found and constrained:
        raise TypeError(
            f"{hint!r} mixes pydantic with msgspec.Meta, which it ignores: use pydantic.Field for all of it"
        )
    return found


def is_pydantics(cls: Any) -> bool:
    """Whether a class brings its own validation for pydantic."""
    return isinstance(cls, type) and (
        hasattr(cls, "__pydantic_validator__") or hasattr(cls, "__get_pydantic_core_schema__")
    )


def _look(hint: Any, seen: set[int]) -> tuple[bool, bool]:
    """Whether pydantic's types occur, and whether msgspec's constraints do."""
    if id(hint) in seen:
        return False, False
    seen.add(id(hint))
    found, constrained = is_pydantics(hint), False
    parts: list[Any] = []
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        parts = [base]
        found = found or any(_is_of(each, "pydantic", "pydantic_core", "annotated_types") for each in metadata)
        constrained = any(isinstance(each, msgspec.Meta) for each in metadata)
    else:
        parts = [part for part in get_args(hint) if not isinstance(part, str | int)]
        for inside in ("__value__", "__supertype__"):  # `type X = ...` and `NewType`
            if not isinstance(hint, type) and hasattr(hint, inside):
                parts.append(getattr(hint, inside))
        parts += _fields(hint if isinstance(hint, type) else get_origin(hint))
    for part in parts:
        inner = _look(part, seen)
        found, constrained = found or inner[0], constrained or inner[1]
    return found, constrained


def _fields(cls: Any) -> list[Any]:
    """The types of a class's fields, unless it is msgspec's own, which asks us for those that it does not know."""
    has_fields = (
        dataclasses.is_dataclass(cls)
        or typing.is_typeddict(cls)
        or hasattr(cls, "__attrs_attrs__")
        or (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )
    if not has_fields or is_pydantics(cls):
        return []
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except Exception:  # a name that is not known here: whoever checks the type says so
        return []


def _is_of(value: Any, *packages: str) -> bool:
    return type(value).__module__.partition(".")[0] in packages
