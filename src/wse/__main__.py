"""`python -m wse`: the `wse` command."""

from wse.cli import main

if __name__ == "__main__":
    main()
