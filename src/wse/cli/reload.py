"""`wse serve --reload`: watches the source files, and lets the supervisor replace the workers when one changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wse.cli.supervisor import Supervisor

logger = logging.getLogger("wse.reload")


def check_watchfiles() -> None:
    """See that the library is there.

    Raises:
        click.UsageError: It is not.
    """
    try:
        import watchfiles  # noqa: F401 - only to see whether it can be imported
    except ImportError as exc:
        raise click.UsageError('--reload needs the watchfiles library: pip install "wse[reload]"') from exc


async def run_reloading(supervisor: Supervisor, folder: str) -> int:
    """Run a supervisor, and let it replace its workers whenever a Python file in the folder has changed."""
    watching = asyncio.create_task(_watch(supervisor, folder))
    try:
        return await supervisor.run()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(supervisor: Supervisor, folder: str) -> None:
    from watchfiles import PythonFilter, awatch

    async for changes in awatch(folder, watch_filter=PythonFilter(), debounce=200, recursive=True):
        names = sorted({str(Path(path).relative_to(folder)) for _, path in changes})
        logger.info("changed: %s", ", ".join(names), extra={"kind": "reloading"})
        supervisor.reload()
