"""What a process holds, by count: for programs that must not leak."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from dataclasses import asdict
from pathlib import Path


def raise_file_limit():
    """As many open files as this process may have; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def resident(pid="self"):
    """Bytes of memory that a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def held():
    """What this process holds: file descriptors, tasks, timers that are set, and memory."""
    gc.collect()
    _give_back()
    loop = asyncio.get_running_loop()
    return {
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "timers": sum(not timer.cancelled() for timer in loop._scheduled),
        "resident": resident(),
        "objects": len(gc.get_objects()),
    }


def _give_back():
    """The C library keeps freed memory for the next who asks; what it keeps is not held by anybody."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def counts(server):
    """The same with what a server says of itself."""
    return {**asdict(server.stats()), **held()}


LEAKS = ("files", "tasks", "timers", "connections", "unauthenticated", "identities", "queued_bytes", "running_handlers",
         "pending_calls")  # fmt: skip
"""What must be as it was, once everybody has gone."""
