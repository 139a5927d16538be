"""What the commands print: results as JSON on standard output, failures as a line on standard error."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click
import msgspec

from wse.errors import WseError

P = ParamSpec("P")
R = TypeVar("R")

_KNOWN = ("rp", "rpc", "payload", "origin", "url")
"""The details that the line says already, or that the caller has given."""

_UNWRITABLE = frozenset((errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE))
"""The errors of an output that takes nothing."""


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
    """Inside the block, a `WseError` becomes a line on standard error and status 1."""
    try:
        yield
    except WseError as exc:
        click.echo(describe(exc), err=True)
        sys.exit(1)


def fails_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose failures are plain lines; see `failures`."""

    @wraps(command)
    def plain(*args: P.args, **kwargs: P.kwargs) -> R:
        with failures():
            return command(*args, **kwargs)

    return plain


@contextmanager
def _writing() -> Iterator[None]:
    """Inside the block, an output that takes nothing becomes a line on standard error and status 1.

    So does the end of the program that reads the output, without the line.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno not in _UNWRITABLE or exc.filename is not None:
            raise
        if exc.errno != errno.EPIPE:
            click.echo(f"Error: the output cannot be written: {exc.strerror}", err=True)
        with suppress(OSError, AttributeError):
            # Python flushes standard output at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _Closed(io.TextIOBase):
    """Standard output that was closed before the program began."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class Commands(click.Group):
    """Commands whose output may be full, or closed."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command."""
        if sys.stdout is None:
            sys.stdout = _Closed()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments, and print help."""
        with _writing():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _writing():
            return super().invoke(ctx)


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
