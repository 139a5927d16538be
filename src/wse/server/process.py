"""What a process is told by its system, where systems differ."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

END_SIGNALS: tuple[signal.Signals, ...] = (
    signal.SIGINT,
    signal.SIGTERM,
    *(getattr(signal, name) for name in ("SIGBREAK",) if hasattr(signal, name)),  # Ctrl-Break on Windows
)
"""The signals that end a server."""

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The signal of a terminal that is closed; Windows has none."""

SHARES_PORTS = HANGUP is not None and hasattr(socket, "SO_REUSEPORT")
"""Whether several workers can share a port, and a supervisor can control them by signals."""


@contextmanager
def heard(signals: tuple[signal.Signals, ...], callback: Callable[[], None]) -> Iterator[None]:
    """Call a function of the current event loop at any of these signals.

    In another thread than the main one there are no signals to listen to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as undo:
        for number in signals:
            undo.callback(_listen(asyncio.get_running_loop(), number, callback))
        yield


def _listen(
    loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]
) -> Callable[[], object]:
    """Listen to a signal; returns what ends that."""
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:  # on Windows
        before = signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))
        return lambda: signal.signal(number, before)
    return lambda: loop.remove_signal_handler(number)
