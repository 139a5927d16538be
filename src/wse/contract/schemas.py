"""JSON schemas of the types in hints, in the dialect of AsyncAPI 3, which is draft 7."""

from __future__ import annotations

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

    What the server sends has all of its fields, those with defaults as well. A type that differs in both directions for
    that reason has two schemas: `Note`, and `NoteInput` for what the server receives.

    Raises:
        TypeError: There is no schema for a type.
    """
    schemas: list[Schema] = [{} for _ in uses]
    foreign: list[tuple[int, Use]] = []  # what pydantic knows
    received, sent = _Own("validation"), _Own("serialization")
    for index, use in enumerate(uses):
        if mentions_pydantic(use.hint):
            foreign.append((index, use))
        elif not is_anything(use.hint):
            (received if use.mode == "validation" else sent).add(index, use.hint)
    inside: list[Use] = []
    (taken_in, known_in), (given_out, known_out) = received.schemas(inside), sent.schemas(inside)
    definitions: dict[str, Schema] = {}
    if foreign or inside:
        made, definitions = _of_pydantic([*(use for _, use in foreign), *inside], {*known_in, *known_out})
        for (index, _), schema in zip(foreign, made, strict=False):
            schemas[index] = schema
        held = made[len(foreign) :]
        taken_in, known_in, given_out, known_out = (
            _filled(each, held) for each in (taken_in, known_in, given_out, known_out)
        )
    inputs = {
        name: free_name(f"{name}Input", {*known_in, *known_out, *definitions}) for name in _apart(known_in, known_out)
    }
    for index, schema in (taken_in | given_out).items():
        schemas[index] = _renamed(schema, inputs) if index in taken_in else schema
    components = {inputs.get(name, name): _renamed(schema, inputs) for name, schema in known_in.items()}
    components |= known_out | definitions
    return [_draft7(each) for each in schemas], {name: _draft7(components[name]) for name in sorted(components)}


def _of_pydantic(uses: Sequence[Use], taken: set[str]) -> tuple[list[Schema], dict[str, Schema]]:
    """The schemas of types that pydantic knows, and by name those to which they refer, beside names that are taken."""
    from wse.contract import with_pydantic

    made, definitions = with_pydantic.schemas_of(uses, REF)
    taken = taken | {f"{name}Input" for name in taken}
    names: dict[str, str] = {}
    for name in definitions:  # pydantic itself tells both directions apart by "-Input" and "-Output"
        names[name] = free_name(name.removesuffix("-Output").replace("-Input", "Input"), {*taken, *names.values()})
    return [_renamed(each, names) for each in made], {
        names[name]: _renamed(each, names) for name, each in definitions.items()
    }


def _apart(received: dict[str, Schema], sent: dict[str, Schema]) -> list[str]:
    """The names of schemas that differ in both directions, themselves or in what they refer to."""
    both = [name for name in received if name in sent]
    apart = {name for name in both if received[name] != sent[name]}
    while more := {name for name in both if name not in apart and apart & _refs(received[name])}:
        apart |= more
    return [name for name in both if name in apart]


class _Own:
    """The types that msgspec knows, of one direction.

    Args:
        mode: The direction.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode: Mode = mode
        self._hints: dict[int, Any] = {}

    def add(self, index: int, hint: Any) -> None:
        """Add a type, and where it stands in the list of all."""
        self._hints[index] = hint

    def schemas(self, inside: list[Use]) -> tuple[dict[int, Schema], dict[str, Schema]]:
        """The schemas, and by name those to which they refer.

        Args:
            inside: Takes the classes of pydantic's in them, for which a mark with their index stands.
        """

        def hook(cls: Any) -> Schema:
            if not is_pydantics(cls):
                raise NotImplementedError  # with which a hook of msgspec's says that it does not know a type
            use = Use(cls, self._mode)
            if use not in inside:
                inside.append(use)
            return {_FOREIGN: inside.index(use)}

        hints = list(self._hints.values())
        made, components = msgspec.json.schema_components(hints, schema_hook=hook, ref_template=REF + "{name}")
        if self._mode == "serialization":
            for cls, fields in _classes(hints).items():
                schema = components.get(_name_of(cls, hook), {})
                always = set(schema.get("required", ())) | fields
                if always:
                    schema["required"] = [name for name in schema.get("properties", ()) if name in always]
        return dict(zip(self._hints, made, strict=True)), dict(components)


def _name_of(cls: Any, hook: Any) -> str:
    """The name of a class among those to which schemas refer."""
    (schema,), _ = msgspec.json.schema_components([cls], schema_hook=hook, ref_template="{name}")
    return str(schema.get("$ref"))


def _refs(schema: Any) -> set[str]:
    """The names to which a schema refers."""
    if isinstance(schema, list):
        return set().union(*map(_refs, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].removeprefix(REF)} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_refs, schema.values()))


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
        key: REF + names.get(name := value.removeprefix(REF), name)
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
