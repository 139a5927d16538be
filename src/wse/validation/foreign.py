"""Values that msgspec does not encode, and another library does."""

from __future__ import annotations

import sys
from typing import Any


def encode_foreign(value: Any) -> Any:
    """A pydantic model, or a value of another type of pydantic's, as plain values; for msgspec's `enc_hook`.

    Fields have their aliases, as pydantic has them in schemas and asks for them in what it validates.

    Raises:
        TypeError: No library is known that encodes it.
    """
    cls = type(value)
    serializer = getattr(cls, "__pydantic_serializer__", None)
    if serializer is not None:
        return serializer.to_python(value, mode="json", by_alias=True)
    pydantic_core = sys.modules.get("pydantic_core")
    if pydantic_core is not None and cls.__module__.partition(".")[0] in ("pydantic", "pydantic_core"):
        return pydantic_core.to_jsonable_python(value)
    raise TypeError(f"Encoding objects of type {cls.__name__} is unsupported")
