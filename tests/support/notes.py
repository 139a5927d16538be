"""The server of examples/notes as a program, with a database of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any

from support.programs import ROOT, free_port, program

NOTES = ROOT / "examples" / "notes"
WEB = NOTES / "web"
COMMAND = "uvicorn --app-dir examples/notes --ws wse.uvicorn:WebSocketProtocol notes_app.main:app"

MISSING = None
if which("node") is None:
    MISSING = "the page of examples/notes: there is no Node.js here"
elif not (WEB / "node_modules" / "vite").exists():
    MISSING = "the page of examples/notes: Vite is not installed (make setup installs it, with the network)"


@contextmanager
def notes_server(folder: Path, **settings: str) -> Iterator[str]:
    """Run it; its URL. The database is in the folder."""
    port = free_port()
    env = {"NOTES_DATABASE": str(folder / "notes.sqlite3"), **settings}
    with program("-m", *COMMAND.split(), "--port", str(port), cwd=ROOT, env=env) as server:
        server.wait_until_open(port)
        yield f"http://127.0.0.1:{port}"
        server.stop(signal.SIGINT)
    assert "Traceback" not in server.output, server.output


def node(package: str, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the page's packages, in the folder of the page."""
    file = WEB / "node_modules" / package / script
    return subprocess.run(["node", str(file), *args], cwd=WEB, capture_output=True, text=True, timeout=120, check=False)


def build(folder: Path) -> None:
    """Build the page into a folder."""
    done = node("vite", "bin/vite.js", "build", "--outDir", str(folder), "--emptyOutDir", "--logLevel", "warn")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def module(name: str) -> Any:
    """A module of the example."""
    if str(NOTES) not in sys.path:
        sys.path.append(str(NOTES))
    return import_module(name)
