"""Whether a value is of a type: msgspec checks the types that it knows, pydantic those of its own."""
