"""Runs the Autobahn TestSuite against both of our transports, and against `websockets` for comparison.

    python tests/autobahn/run.py          everything but the longest cases of sections 12 and 13
    python tests/autobahn/run.py --full   everything

It needs Python 2.7, which the suite is written for, and a C compiler for one of the suite's dependencies. What it
installs, and the suite's own reports (HTML), are below .artifacts/autobahn. Everything listens on 127.0.0.1.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from report import Outcome, print_report, unexpected

HERE = Path(__file__).parent
PLACE = HERE.parents[1] / ".artifacts" / "autobahn"
SUITE = "autobahntestsuite==25.10.1"
PYTHON_2 = b"Python 2.7"
PASS_TIMEOUT = 1800.0
"""Seconds after which one pass is given up."""

LONG = ("10", "13", "14", "15", "16", "17", "18")
"""Cases of every part of sections 12 and 13 that send 1,000 messages of 8 KiB to 128 KiB, and nothing new."""


@dataclass(frozen=True)
class Pass:
    """One run of some sections with one setting.

    Attributes:
        role: What of ours is under test, `server` or `client`.
        compression: See `echo.py`.
    """

    role: str
    library: str
    compression: str
    sections: tuple[int, ...]


PASSES = [
    Pass(role, library, compression, sections)
    for compression, sections in (("takeover", (13,)), ("deflate", (12,)), ("plain", (1, 2, 3, 4, 5, 6, 7, 9, 10)))
    for role in ("server", "client")
    for library in ("wse", "websockets")
]


class UnavailableError(Exception):
    """The suite cannot run here."""


def find_python():
    """Python 2.7, from $PYTHON27, the path or pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in (os.environ.get("PYTHON27"), "python2.7", *map(str, sorted(pyenv.glob("2.7*/bin/python2.7")))):
        path = name and shutil.which(name)
        # What is on the path may be pyenv's stand-in, which only says where there is one.
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).stderr.startswith(PYTHON_2):
            return path
    raise UnavailableError("there is no Python 2.7 (set PYTHON27 to one)")


def install():
    """The suite's own program, `wstest`."""
    wstest = PLACE / "py27" / "bin" / "wstest"
    if not wstest.exists():
        python = find_python()
        print("installing the Autobahn TestSuite ...", flush=True)
        tools = PLACE / "tools" / "bin"
        for command in (
            [sys.executable, "-m", "venv", PLACE / "tools"],
            [tools / "pip", "install", "--quiet", "virtualenv<20.22"],  # the last that makes environments for 2.7
            [tools / "virtualenv", "--quiet", "--python", python, PLACE / "py27"],
            [PLACE / "py27" / "bin" / "pip", "install", "--quiet", "--no-python-version-warning", SUITE],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
                raise UnavailableError(f"it cannot be installed: {last}")
    return wstest


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def background(command, log):
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def environment():
    # Section 9 has messages of 65,536 fragments, of which websockets takes 4,096 by default.
    return os.environ | {"PYTHONPATH": str(HERE.parent), "WEBSOCKETS_MAX_FRAGMENTS": "100000"}


def wait_for(port, process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not listen")


def echo(*arguments):
    return [sys.executable, str(HERE / "echo.py"), *map(str, arguments)]


def run(item, wstest, full):
    """Its outcomes."""
    name = f"{item.role}-{item.library}-{item.compression}"
    folder = PLACE / "reports" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    spec = {
        "outdir": str(folder),
        "cases": [f"{section}.*" for section in item.sections],
        "exclude-cases": [] if full else [f"{section}.*.{case}" for section in (12, 13) for case in LONG],
        "exclude-agent-cases": {},
    }
    spec |= {"servers": [{"agent": item.library, "url": url}]} if item.role == "server" else {"url": url}
    spec_file = folder / "spec.json"
    spec_file.write_text(json.dumps(spec))
    suite = [str(wstest), "-m", "fuzzingclient" if item.role == "server" else "fuzzingserver", "-s", str(spec_file)]
    if item.role == "server":
        first, second = echo("server", item.library, port, item.compression), suite
    else:
        first, second = [*suite, "--webport", "0"], echo("client", item.library, url, item.compression)
    started = time.monotonic()
    with (folder / "log.txt").open("w") as log, background(first, log) as server:
        wait_for(port, server)
        subprocess.run(second, stdout=log, stderr=log, env=environment(), timeout=PASS_TIMEOUT, check=True)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    (cases,) = json.loads((folder / "index.json").read_text()).values()
    return [
        Outcome(item.role, item.library, number, case["behavior"], case["behaviorClose"])
        for number, case in cases.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the longest cases of sections 12 and 13, too")
    parser.add_argument("--only", metavar="LIBRARY", choices=["wse", "websockets"], help="this library alone")
    arguments = parser.parse_args()
    try:
        wstest = install()
    except UnavailableError as exc:
        print(f"skipped: the Autobahn TestSuite: {exc}")
        return 0
    passes = [item for item in PASSES if arguments.only in (None, item.library)]
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = [
            outcome for found in pool.map(lambda item: run(item, wstest, arguments.full), passes) for outcome in found
        ]
    print(f"{len(outcomes)} cases in {time.monotonic() - started:.0f} s\n")
    print_report(outcomes)
    return 1 if unexpected(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
