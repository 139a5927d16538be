"""JSON schemas of types that pydantic checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema


class _Generator(GenerateJsonSchema):
    """The fields of a model that is sent are all there, those with defaults as well."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return not (field.get("serialization_exclude") or field.get("serialization_exclude_if"))
        return super().field_is_required(field, total)


def schemas_of(uses: Sequence[Any], ref: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The schemas of types, and by name those to which they refer.

    Args:
        uses: The types, each with the mode of its schema.
        ref: Stands before the names in references.
    """
    inputs: list[Any] = [(str(number), use.mode, TypeAdapter(use.hint)) for number, use in enumerate(uses)]
    made, shared = TypeAdapter.json_schemas(inputs, ref_template=ref + "{model}", schema_generator=_Generator)
    return [made[str(number), use.mode] for number, use in enumerate(uses)], shared.get("$defs", {})
