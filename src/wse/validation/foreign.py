"""Values that msgspec does not encode, and another library does."""

from __future__ import annotations

from typing import Any


def encode_foreign(value: Any) -> Any:
    """A pydantic model, or a value of another type of pydantic's, as plain values; for msgspec's `enc_hook`.

    Raises:
        TypeError: No library is known that encodes it.
    """
    serializer = getattr(type(value), "__pydantic_serializer__", None)
    if serializer is None:
        raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")
    return serializer.to_python(value, mode="json")
