"""JSON schemas of types that pydantic checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter


def schemas_of(uses: Sequence[Any], ref: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The schemas of types, and by name those to which they refer.

    Args:
        uses: The types, each with the mode of its schema.
        ref: Stands before the names in references.
    """
    inputs: list[Any] = [(str(number), use.mode, TypeAdapter(use.hint)) for number, use in enumerate(uses)]
    made, shared = TypeAdapter.json_schemas(inputs, ref_template=ref + "{model}")
    return [made[str(number), use.mode] for number, use in enumerate(uses)], shared.get("$defs", {})
