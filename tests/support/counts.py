"""Counts the resources of a process, for programs that must not leak."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from dataclasses import asdict
from pathlib import Path


def raise_file_limit():
    """Allow as many open files as this process may have; returns their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def resident(pid="self"):
    """The memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def held():
    """The resources of this process: file descriptors, tasks, active timers, and memory."""
    gc.collect()
    trim()
    loop = asyncio.get_running_loop()
    return {
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "timers": sum(not timer.cancelled() for timer in loop._scheduled),
        "resident": resident(),
        "objects": len(gc.get_objects()),
    }


def trim():
    """Return freed memory to the system, which the C library would keep for later use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def counts(server):
    """The same, with a server's own counts."""
    return {**asdict(server.stats()), **held()}


LEAKS = ("files", "tasks", "timers", "connections", "unauthenticated", "identities", "queued_bytes", "running_handlers",
         "pending_calls")  # fmt: skip
"""The counts that must be as before once all clients have gone."""
