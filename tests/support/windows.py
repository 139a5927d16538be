"""Makes this Python like one on Windows, as far as that can be done: hides what is not there.

    python -c "from support import windows" ...    or import it first in a program

Event loops take no signal handlers, and aiofastnet uses asyncio's own transports, as it does on the event loop that is
the default there.
"""

import asyncio
import os
import signal
import socket
import sys
from functools import partial

# Its families on Windows are others; the event loop needs one.
socket.socketpair = partial(socket.socketpair, socket.AF_UNIX)

for module in ("fcntl", "grp", "pwd", "resource", "termios", "uvloop"):
    sys.modules.pop(module, None)
    sys.modules[module] = None
for owner, names in (
    (os, ("fork", "getuid", "geteuid", "setsid", "killpg", "register_at_fork", "chown")),
    (signal, ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGCHLD", "pthread_sigmask", "setitimer")),
    (socket, ("AF_UNIX", "SO_REUSEPORT", "TCP_NOTSENT_LOWAT", "TCP_QUICKACK", "TCP_INFO", "MSG_DONTWAIT")),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)


def add_signal_handler(self, *args):
    raise NotImplementedError


Loop = asyncio.SelectorEventLoop
Loop.add_signal_handler = Loop.remove_signal_handler = add_signal_handler
asyncio.ProactorEventLoop = Loop
