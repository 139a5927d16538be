"""Checks by pydantic, of its models and of all that contains one."""

from __future__ import annotations

import re
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter
from pydantic_core import PydanticSerializationError, ValidationError

from wse.validation.checks import Check
from wse.validation.failures import MOST, Failure, failure, path_of


def make_check(hint: Any) -> Check:
    """The check for a type, as pydantic does it by default: it also takes what can be converted.

    Raises:
        TypeError: pydantic cannot check values of the type.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        adapter.rebuild()
        validate = adapter.validator.validate_python
        dump = adapter.serializer.to_python
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError) as exc:
        raise TypeError(f"pydantic cannot check {hint!r}: {exc}") from exc

    def own(value: Any) -> Any:
        return dump(validate(value), mode="json", warnings="error", by_alias=True)

    return Check(
        hint, convert=validate, own=own, errors=(ValidationError, PydanticSerializationError), describe=_describe
    )


def _describe(exc: Any) -> list[Failure]:
    if isinstance(exc, PydanticSerializationError):  # its text has the value, which a caller might see
        wrong = _WRONG_FIELD.findall(str(exc))
        what = ", ".join(f"{field} (expected `{expected}`)" for expected, field in wrong[:3]) or "a field"
        return [failure("$", f"not of its declared type: {what}", "serialization_error")]
    count = exc.error_count()
    if count > _COUNTED:  # pydantic would make a dict of each
        return [failure("$", f"{count} errors", "too_many_errors")]
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    return [failure(path_of(each["loc"]), each["msg"], each["type"]) for each in errors[:MOST]]


_COUNTED = 1000

_WRONG_FIELD = re.compile(r"Expected `([^`]*)`[^\n]*?field_name='(\w+)'")
