"""Servers in a thread of their own, for tests of programs without asyncio."""

from __future__ import annotations

from contextlib import contextmanager
from queue import SimpleQueue

from support.net import TIMEOUT
from wse.threads import LoopThread


class Hosted:
    """A server that listens, in a thread.

    Attributes:
        events: What its handlers have put there.
    """

    def __init__(self, server, thread):
        self.server = server
        self.url = server.url
        self.events = SimpleQueue()
        self._thread = thread

    def do(self, function, *args, **kwargs):
        """Call a function in the server's loop."""

        async def call():
            return function(*args, **kwargs)

        return self._thread.run(call())

    def run(self, coroutine):
        """Run a coroutine in the server's loop."""
        return self._thread.run(coroutine)

    def next_event(self):
        """What a handler puts there next."""
        return self.events.get(timeout=TIMEOUT)


@contextmanager
def hosted(server):
    """Run a server in a thread of its own."""
    thread = LoopThread("test-server")
    try:
        thread.run(server.start())
        try:
            yield Hosted(server, thread)
        finally:
            thread.run(server.close())
    finally:
        thread.stop()
