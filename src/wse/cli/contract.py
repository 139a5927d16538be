"""The commands for contracts: `wse contract` and `wse generate`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wse.cli.target import TargetError, load
from wse.contract.python import python_of
from wse.contract.reading import Contract, ContractError, read
from wse.contract.typescript import typescript_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.server.server import WseServer

_FACTORY = click.option("--factory", is_flag=True, help="SERVER must be a function that returns the server.")
_APP_DIR = click.option(
    "--app-dir", default=".", show_default=True, help="The folder that is searched first for modules."
)
_OUTPUT = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write this file.  [default: print]"
)
_CHECK = click.option("--check", is_flag=True, help="Write nothing, and fail if the file of -o is not up to date.")


@click.command("contract")
@click.argument("target", metavar="MODULE:SERVER")
@_FACTORY
@_APP_DIR
@_OUTPUT
@_CHECK
@click.option("--title", help="The name of the application.  [default: MODULE]")
@click.option("--version", default="1.0.0", show_default=True, help="The version of the contract.")
def contract_command(
    target: str, factory: bool, app_dir: str, output: Path | None, check: bool, title: str | None, version: str
) -> None:
    """Print the contract of a server, an AsyncAPI 3 document, as JSON."""
    document = _document(target, factory, app_dir, title, version)
    _put(json.dumps(document, indent=2, ensure_ascii=False) + "\n", output, check=check)


@click.group("generate")
def generate_command() -> None:
    """Write a typed client of a server.

    SOURCE is MODULE:SERVER, or the JSON file that `wse contract` has printed; - reads that from standard input.
    """


def _generator(fn: Callable[..., None]) -> Callable[..., None]:
    """The arguments that all generators have."""
    for option in (_CHECK, _OUTPUT, _APP_DIR, _FACTORY, click.argument("source", metavar="SOURCE")):
        fn = option(fn)
    return fn


@generate_command.command("typescript")
@_generator
@click.option("--import", "module", default="wse-js", show_default=True, help="What the client is imported from.")
def typescript_command(source: str, factory: bool, app_dir: str, output: Path | None, check: bool, module: str) -> None:
    """Write a TypeScript module, for wse.js.

    SOURCE is MODULE:SERVER, or the JSON file that `wse contract` has printed; - reads that from standard input.
    """
    _put(typescript_of(_contract(source, factory, app_dir), module=module), output, check=check)


@generate_command.command("python")
@_generator
def python_command(source: str, factory: bool, app_dir: str, output: Path | None, check: bool) -> None:
    """Write a Python module, for WseClient.

    SOURCE is MODULE:SERVER, or the JSON file that `wse contract` has printed; - reads that from standard input.
    """
    _put(python_of(_contract(source, factory, app_dir)), output, check=check)


def _contract(source: str, factory: bool, app_dir: str) -> Contract:
    try:
        if source == "-":
            return read(json.load(sys.stdin))
        if ":" not in source or Path(source).is_file():
            return read(json.loads(Path(source).read_text(encoding="utf-8")))
        return read(_document(source, factory, app_dir))
    except (ContractError, OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise click.UsageError(f"{source}: {exc}") from exc


def _document(
    target: str, factory: bool, app_dir: str, title: str | None = None, version: str = "1.0.0"
) -> dict[str, Any]:
    sys.path.insert(0, str(Path(app_dir).resolve()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result
            server: WseServer = load(target, factory=factory)
    except TargetError as exc:
        raise click.UsageError(str(exc)) from exc
    return server.asyncapi(title=title or target.partition(":")[0], version=version)


def _put(text: str, output: Path | None, *, check: bool) -> None:
    """Write a result where it belongs."""
    if output is None:
        if check:
            raise click.UsageError("--check needs a file: -o")
        click.echo(text.encode(), nl=False)
        return
    try:
        same = output.read_bytes() == text.encode()
    except FileNotFoundError:
        same = False
    if check and not same:
        raise click.ClickException(f"{output} is not up to date")
    if not same:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(text.encode())
