"""The `wse` command: `wse serve module:server` (the extra `wse[cli]`)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or exit with the name of the missing extra."""
    try:
        from wse.cli.commands import wse
    except ImportError as exc:
        if exc.name != "click":
            raise
        sys.exit('the wse command needs the click library: pip install "wse[cli]"')
    wse(prog_name="wse")
