"""JSON schemas of the types in hints, in the dialect of AsyncAPI 3, which is draft 7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, get_origin

import msgspec
from msgspec import inspect

from wse.validation.kinds import is_anything, is_pydantics, mentions_pydantic

Schema = dict[str, Any]
Mode = Literal["validation", "serialization"]

REF: Final = "#/components/schemas/"
_FOREIGN: Final = "x-wse-foreign"


class Use(NamedTuple):
    """A type where an operation has it.

    Attributes:
        hint: The type.
        mode: Whether a value is received and validated, or made and serialized, by the server.
    """

    hint: Any
    mode: Mode


def schemas_of(uses: Sequence[Use]) -> tuple[list[Schema], dict[str, Schema]]:
    """The schemas of types, and by name those to which they refer.

    Raises:
        TypeError: There is no schema for a type.
    """
    schemas: list[Schema] = [{} for _ in uses]
    own: list[tuple[int, Use]] = []
    foreign: list[tuple[int, Use]] = []
    for index, use in enumerate(uses):
        if not is_anything(use.hint):
            (foreign if mentions_pydantic(use.hint) else own).append((index, use))
    inside: list[Any] = []  # classes of pydantic's in types of msgspec's

    def hook(cls: Any) -> Schema:
        if not is_pydantics(cls):
            raise NotImplementedError  # with which a hook of msgspec's says that it does not know a type
        if cls not in inside:
            inside.append(cls)
        return {_FOREIGN: inside.index(cls)}

    made, found = msgspec.json.schema_components(
        [use.hint for _, use in own], schema_hook=hook, ref_template=REF + "{name}"
    )
    components: dict[str, Schema] = dict(found)
    _require_what_is_sent([use for _, use in own], components)
    for (index, _), schema in zip(own, made, strict=True):
        schemas[index] = schema
    if foreign or inside:
        from wse.contract import with_pydantic

        wanted = [*(use for _, use in foreign), *(Use(cls, "validation") for cls in inside)]
        others, definitions = with_pydantic.schemas_of(wanted, REF)
        renamed: dict[str, str] = {}
        for name in definitions:
            renamed[name] = free_name(name, {*components, *renamed.values()})
        others = [_renamed(each, renamed) for each in others]
        components |= {renamed[name]: _renamed(each, renamed) for name, each in definitions.items()}
        for (index, _), schema in zip(foreign, others, strict=False):
            schemas[index] = schema
        held = others[len(foreign) :]
        schemas = [_filled(each, held) for each in schemas]
        components = {name: _filled(each, held) for name, each in components.items()}
    return [_draft7(each) for each in schemas], {name: _draft7(components[name]) for name in sorted(components)}


def _require_what_is_sent(uses: list[Use], components: dict[str, Schema]) -> None:
    """Say of objects that only the server makes that all of their fields are there, those with defaults as well."""
    received = set(_classes(use.hint for use in uses if use.mode == "validation"))
    sent = _classes(use.hint for use in uses if use.mode == "serialization")
    names = Counter(cls.__name__ for cls in {*received, *sent})
    for cls, fields in sent.items():
        if cls not in received and names[cls.__name__] == 1 and cls.__name__ in components:
            schema = components[cls.__name__]
            always = set(schema.get("required", ())) | fields
            schema["required"] = [name for name in schema.get("properties", ()) if name in always]


def _classes(hints: Iterable[Any]) -> dict[Any, set[str]]:
    """The classes in types, with the fields that are always sent."""
    waiting: list[Any] = list(inspect.multi_type_info(list(hints)))
    seen: set[int] = set()
    found: dict[Any, set[str]] = {}
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += node
        elif isinstance(node, inspect.Type | inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
                found[node.cls] = _always_sent(node)
            waiting += [getattr(node, field) for field in node.__struct_fields__]
    return found


def _always_sent(node: Any) -> set[str]:
    if isinstance(node, inspect.TypedDictType) or (
        isinstance(node, inspect.StructType) and (get_origin(node.cls) or node.cls).__struct_config__.omit_defaults
    ):
        return set()
    none = msgspec.NODEFAULT  # also of a field that is UNSET by default, and then not sent
    return {
        field.encode_name
        for field in node.fields
        if field.required or field.default is not none or field.default_factory is not none
    }


def free_name(wanted: str, taken: Container[str], before_number: str = "") -> str:
    """A name, with a number behind it if it is taken."""
    free, number = wanted, 2
    while free in taken:
        free, number = f"{wanted}{before_number}{number}", number + 1
    return free


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: REF + names[value.removeprefix(REF)]
        if key == "$ref" and isinstance(value, str)
        else _renamed(value, names)
        for key, value in schema.items()
    }


def _filled(schema: Any, held: list[Schema]) -> Any:
    if isinstance(schema, list):
        return [_filled(each, held) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if _FOREIGN in schema:
        return {**held[schema[_FOREIGN]], **{key: value for key, value in schema.items() if key != _FOREIGN}}
    return {key: _filled(value, held) for key, value in schema.items()}


_DATA: Final = frozenset({"default", "const", "enum", "examples", "example"})
"""Keywords with values in them, and no schemas."""

_BY_NAME: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})


def _draft7(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_draft7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result: Schema = {}
    for key, value in schema.items():
        if key in _DATA:
            result[key] = msgspec.to_builtins(value)
        elif key in _BY_NAME:
            result[key] = {name: _untitled(name, _draft7(each)) for name, each in value.items()}
        elif key == "prefixItems":
            result["items"] = _draft7(value)
            result["additionalItems"] = False
        elif key in ("items", "required", "discriminator") and _is_odd(key, schema):
            continue
        else:
            result[key] = _draft7(value)
    if "$ref" in result and len(result) > 1:  # in draft 7, nothing else counts beside a reference
        return {"allOf": [{"$ref": result.pop("$ref")}], **result}
    return result


def _is_odd(key: str, schema: Schema) -> bool:
    """Whether draft 7, or AsyncAPI, has the keyword in another form."""
    if key == "items":
        return "prefixItems" in schema
    return key == "discriminator" or not schema[key]  # AsyncAPI's discriminator is a string, and means something else


def _untitled(name: str, schema: Any) -> Any:
    """A property without the title that pydantic makes of its name."""
    if isinstance(schema, dict) and schema.get("title") == name.replace("_", " ").title():
        return {key: value for key, value in schema.items() if key != "title"}
    return schema
