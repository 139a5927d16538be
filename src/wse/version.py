"""The version of wse, as it is installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed_version() -> str:
    """The version; it is read from the disk once."""
    try:
        return version("wse")
    except PackageNotFoundError:  # pragma: no cover - a copy of the source, which the tests do not run from
        return "unknown"
