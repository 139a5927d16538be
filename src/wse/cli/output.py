"""What the commands print: results as JSON on standard output, failures as a line on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
import msgspec

from wse.errors import WseError

P = ParamSpec("P")
R = TypeVar("R")

_KNOWN = ("rp", "rpc", "payload", "origin", "url")
"""The details that the line says already, or that the caller has given."""


def to_json(value: Any) -> str:
    """A value as JSON in one line; what JSON has no form for becomes a string."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def print_json(value: Any) -> None:
    """Print a value on standard output, where a program may read it line by line."""
    print(to_json(value), flush=True)  # noqa: T201 - the result of the command


def describe(error: WseError) -> str:
    """An error in one line: code, procedure, message, the exception behind it, and further details as JSON."""
    parts = [str(error)]
    cause = str(error.__cause__ or "")
    if cause and cause not in parts[0]:
        parts.append(f"({cause})")
    details = {name: value for name, value in error.details.items() if name not in _KNOWN and value not in (None, "")}
    if details:
        parts.append(to_json(details))
    return " ".join(parts)


@contextmanager
def failures() -> Iterator[None]:
    """Inside the block, a `WseError` becomes a line on standard error and status 1.

    So does the end of the program that reads standard output, without the line.
    """
    try:
        yield
    except WseError as exc:
        click.echo(describe(exc), err=True)
        sys.exit(1)
    except BrokenPipeError:
        # Python flushes standard output at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fails_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose failures are plain lines; see `failures`."""

    @wraps(command)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with failures():
            return command(*args, **kwargs)

    return plain


class Json(click.ParamType[Any]):
    """A value in JSON; `-` reads it from standard input."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = sys.stdin.read() if value == "-" else value
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError) as exc:
            self.fail(f"{text!r} is not JSON: {exc}", param, ctx)


JSON = Json()
