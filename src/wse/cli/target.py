"""Finds the server that the command line names: `module:attribute`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from wse.server.lifecycle import commanded
from wse.server.server import WseServer


class TargetError(ValueError):
    """The command line does not name a server."""


def load(target: str, *, factory: bool = False) -> WseServer:
    """Load the server that `module:attribute` names, or that the function of this name returns.

    Args:
        target: A module that can be imported, and a name in it; dots lead to attributes of attributes.
        factory: Insist on a function that returns a server.

    Raises:
        TargetError: There is no such module or name, or it is not a server. Other errors of the module are raised
            unchanged.
    """
    name, colon, path = target.partition(":")
    if not (name and colon and path):
        raise TargetError(f"{target!r} does not name a server: it should look like module:server")
    found: Any
    importing = commanded.set(True)
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise  # the module exists, and fails to import another one
        raise TargetError(f"there is no module {exc.name!r} (see --app-dir)") from exc
    finally:
        commanded.reset(importing)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as exc:
            raise TargetError(f"{name} has no {path}") from exc
    if isinstance(found, WseServer) or not callable(found):
        if factory:
            raise TargetError(f"{target} is not a function that returns a WseServer")
        return _server(found, target)
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as exc:
        raise TargetError(f"{target} is not a WseServer, and cannot be called without arguments to make one") from exc
    made = found()
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(f"{target} is an async function, but the server is made before there is an event loop")
    return _server(made, f"the result of {target}")


def _server(found: object, name: str) -> WseServer:
    if not isinstance(found, WseServer):
        raise TargetError(f"{name} is not a WseServer but of type {type(found).__name__}")
    return found
