"""Programs that tests start, talk to and stop, as a user does in a terminal."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds until a test gives up on a program."""


# Outside the range of outgoing connections. Processes that run tests side by side do not give out each other's ports,
# and none gives out the same one again soon: a program takes a while to listen.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_START = secrets.randbelow(1000)  # other runs on this machine begin elsewhere
_ports = (20_000 + 1000 * (_WORKER % 12) + number % 1000 for number in count(_START))


def free_port() -> int:
    """A port for a program that must be given one."""
    for port in islice(_ports, 1000):
        with suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            return port
    raise OSError("no free port found")


def unmeasured() -> dict[str, str]:
    """The environment of a process whose coverage is not measured: it starts and runs in half the time."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}


class Program:
    """A Python program that keeps running; its output, errors included, is read as it comes.

    Its coverage is `measured` where it runs code that the processes of the tests do not run. `env` is added to its
    environment.
    """

    def __init__(
        self,
        *args: str,
        cwd: Path = ROOT,
        measured: bool = False,
        own_group: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        # A shell that runs the tests in the background ignores Ctrl-C, and children inherit this.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-W", "error", *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**(os.environ if measured else unmeasured()), **(env or {})},
                process_group=0 if own_group else None,
            )
        finally:
            signal.signal(signal.SIGINT, previous)
        self.output = ""

    def read_until(self, text: str) -> str:
        """Wait until its output contains `text`, and return all of the output."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE
        while text not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in: {self.output}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended without {text!r}: {self.output}"
            self.output += data.decode()
        return self.output

    def wait_until_open(self, port: int) -> None:
        """Wait until it listens on the port."""
        end = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, f"the server has ended with status {self.process.poll()}"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except ConnectionRefusedError:
                assert time.monotonic() < end, f"the server does not listen: {self.output}"
                time.sleep(0.02)
            else:
                return

    def type(self, line: str) -> None:
        """Send it a line of input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def stop(self, with_signal: signal.Signals | None = None) -> int:
        """Send it a signal, if one is given, wait for its end, and return its exit status."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        output, _ = self.process.communicate(timeout=PATIENCE)
        self.output += output.decode()
        return self.process.returncode

    def kill(self) -> None:
        """Kill it; does nothing if it has ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.stop()


@contextmanager
def program(*args: str, **options: Any) -> Iterator[Program]:
    """Run a program, and end it on leaving; options as for `Program`."""
    running = Program(*args, **options)
    try:
        yield running
    finally:
        running.kill()
        for stream in (running.process.stdin, running.process.stdout):
            if stream is not None:
                stream.close()
