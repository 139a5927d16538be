"""`python -m wse`: the `wse` command."""

from wse.cli import main

main()
