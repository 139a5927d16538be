"""Checks by msgspec: of Structs, dataclasses, TypedDicts, attrs classes, NamedTuples, and all that JSON has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from wse.validation.checks import Check, check_for
from wse.validation.failures import Failure, failure
from wse.validation.foreign import encode_foreign
from wse.validation.kinds import is_pydantics

_EXACT = (bool, int, float, str, bytes, dict, list)
"""Classes whose values are checked when their class is known."""

_KEPT = (bytes, bytearray, date, datetime, time, timedelta, Decimal, UUID)
"""Classes that need not become text before they are looked at."""


def make_check(hint: Any) -> Check:
    """The check for a type.

    Raises:
        TypeError: msgspec cannot check values of the type.
    """
    nodes = _nodes(hint)
    foreign = [node.cls for node in nodes if isinstance(node, inspect.CustomType)]
    for cls in foreign:
        if not is_pydantics(cls):
            raise TypeError(
                f"{_name(cls)} is a class that no JSON makes: hint a msgspec.Struct, a dataclass, a TypedDict, an "
                "attrs class or a pydantic model, or leave the hint out"
            )
    is_struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    options: dict[str, Any] = {}  # each that is given costs as much as all the rest
    if foreign:
        options["dec_hook"] = _decode_foreign
    if any(isinstance(node, inspect.DictType) and not isinstance(node.key_type, inspect.StrType) for node in nodes):
        options["str_keys"] = True
    convert = _converter(hint, options) if is_struct else _boxed_converter(hint, options)

    def own(value: Any) -> Any:
        try:
            plain = msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=encode_foreign)
        except TypeError as exc:
            raise msgspec.ValidationError(str(exc)) from exc
        return convert(plain)

    return Check(
        hint,
        convert=convert,
        own=own,
        errors=(msgspec.ValidationError, TypeError) if foreign else (msgspec.ValidationError,),
        describe=_describe if is_struct else partial(_describe, boxed=True),
        exact=hint if hint in _EXACT else type(None) if hint is None or hint is type(None) else None,
        made=hint if isinstance(hint, type) and not foreign and _has_fields(hint) else None,
    )


def _has_fields(cls: type) -> bool:
    """Whether a class makes objects of JSON objects."""
    return issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__")


def _converter(hint: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    convert = msgspec.convert
    return partial(convert, type=hint, **options) if options else lambda value: convert(value, hint)


def _boxed_converter(hint: Any, options: dict[str, Any]) -> Callable[[Any], Any]:
    """The same for a type that is no Struct: msgspec remembers what it knows of Structs only."""
    box: Any = msgspec.defstruct("Box", [("value", hint)], array_like=True)
    convert = _converter(box, options)
    return lambda value: convert((value,)).value


def _nodes(hint: Any) -> list[Any]:
    """The parts of a type, as msgspec sees it.

    Raises:
        TypeError: msgspec cannot tell the members of a union apart, or a name in the type is not known.
    """
    try:
        msgspec.json.Decoder(hint)
        info = inspect.type_info(hint)
    except NameError as exc:
        raise TypeError(f"{_name(hint)} has a field whose type has no value: {exc}. Define it in the module") from exc
    waiting: list[Any] = [info]
    seen: set[int] = set()
    nodes: list[Any] = []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        nodes.append(node)
        if isinstance(node, inspect.Type | inspect.Field):
            waiting += [getattr(node, field) for field in node.__struct_fields__]
        elif isinstance(node, tuple):
            waiting += node
    return nodes


def _decode_foreign(hint: Any, value: Any) -> Any:
    """Check a part that msgspec leaves to pydantic; for msgspec's `dec_hook`."""
    check = check_for(hint)
    if check is None:
        return value
    try:
        return check.convert(value)
    except check.errors as exc:
        first = check.describe(exc)[0]
        raise ValueError(f"{first['message']} - at `{first['path']}`") from None


def _name(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else repr(hint)


# What msgspec says, in parts: it has one text for each error, and stops at the first.

_AT = re.compile(r" - at `(\$[^`]*)`")
_KEY_OF = re.compile(r" - at `key` in `(\$[^`]*)`")
_FIELD = re.compile(r"(?:missing required|contains unknown) field `(.*)`", re.DOTALL)


def _describe(exc: Any, boxed: bool = False) -> list[Failure]:
    text = str(exc)
    path = _path(text, boxed)
    message = _KEY_OF.sub("", _AT.sub("", text))
    field = _FIELD.search(message)
    if field is not None:
        path = f"{path}.{field[1]}"
    return [failure(path, message, _type(message))]


def _path(text: str, boxed: bool) -> str:
    """The way to the value; a part that pydantic has checked adds its own to the end of ours."""
    places = _KEY_OF.findall(text) or _AT.findall(text)[::-1]
    if boxed and places:
        places[0] = places[0].replace("[0]", "", 1)
    return "$" + "".join(place[1:] for place in places)


def _type(message: str) -> str:
    """A word for an error: pydantic's, where it has one."""
    for word, pattern in _TYPES:
        if pattern.search(message):
            return word
    return "value_error"


_TYPES = tuple(
    (word, re.compile(pattern))
    for word, pattern in (
        ("missing", r"^Object missing required field"),
        ("extra_forbidden", r"^Object contains unknown field"),
        ("greater_than_equal", r"^Expected `(?:int|float|decimal)` >= "),
        ("greater_than", r"^Expected `(?:int|float|decimal)` > "),
        ("less_than_equal", r"^Expected `(?:int|float|decimal)` <= "),
        ("less_than", r"^Expected `(?:int|float|decimal)` < "),
        ("multiple_of", r"^Expected `(?:int|float|decimal)` that's a multiple of"),
        ("too_short", r"^Expected `\w+` of (?:at least )?length >= "),
        ("too_long", r"^Expected `\w+` of (?:at most )?length <= "),
        ("wrong_length", r"^Expected `\w+` of length "),
        ("pattern_mismatch", r"^Expected `str` matching regex "),
        ("enum", r"^Invalid enum value"),
        ("wrong_type", r"^Expected "),
    )
)
