"""What is wrong with a value, as an error that its sender gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from wse.errors import ErrorCode, WseError

MOST: Final = 32
"""Errors of one value that are told: a peer can make a value with a million of them."""

LONGEST: Final = 300
"""Characters of a path or of a message: both may repeat what the peer has sent."""

Failure = dict[str, str]
"""One error: `path`, such as `$.after`, `message`, and `type`, which is a word for programs."""


def failure(path: str, message: str, type: str) -> Failure:
    """An error as it is told."""
    return {"path": _short(path), "message": _short(message), "type": type}


def invalid_payload(failures: list[Failure], **details: Any) -> WseError:
    """The error for a value that is not of its type.

    Args:
        failures: What is wrong with it.
        details: Further facts.
    """
    return WseError(ErrorCode.INVALID_PAYLOAD, {**details, "errors": failures}, summary(failures))


def summary(failures: list[Failure]) -> str:
    """All errors as one text for people."""
    return "; ".join(f"{each['message']} ({each['path']})" for each in failures[:3])


def path_of(steps: Iterable[Any]) -> str:
    """The path through keys and positions, as msgspec writes it."""
    return "$" + "".join(_step(step) for step in steps)


def _step(step: Any) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    text = str(step)
    return f".{text}" if text.isidentifier() else f"[{_short(text)!r}]"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class InvalidResultError(TypeError):
    """A value of the application's own is not of the type that it has declared.

    Attributes:
        failures: What is wrong with it.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"not of the declared type: {summary(failures)}")
        self.failures = failures


Describe = Callable[[Any], list[Failure]]
"""Makes the errors of the exception with which a library says that a value is not of a type."""
