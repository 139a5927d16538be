"""Clients whose connections are cut: numbered messages and calls, each of which must arrive once."""

from __future__ import annotations

import asyncio

from support.net import Log, soon
from wse import Backoff

NOW = Backoff(base=0.0001, cap=0.0001)
"""Returns at once."""

RETURNING = {"reconnect": True, "resume": True, "backoff": NOW}


def session_of(client):
    return client._connections.session


def cut(client):
    """Break the connection; both sides notice."""
    session = session_of(client)
    if session is not None and session.ledger is not None and session.ledger.is_attached:
        session.ledger.abort()


def cut_unnoticed(client):
    """Let the client lose its connection, which the server does not notice."""
    session = session_of(client)
    ledger, link = session.ledger, session.ledger.link
    link.attach(_Deaf())
    ledger.closed(1006, "")
    return link


class _Deaf:
    def receive(self, data): ...

    def closed(self, code, reason): ...

    def writable(self, writable): ...

    def pong(self): ...


class Traffic:
    """Numbered messages in both directions and calls, and what came of them.

    Attributes:
        up: What the server has heard.
        down: What the client has heard.
    """

    def __init__(self, server, client):
        self.server = server
        self.client = client
        self.up, self.down, self.ran = [], [], []
        self.events = Log()
        server.channel.on("up", lambda conn, n: self.up.append(n))
        server.register("double", self._double)
        client.channel.on("down", self.down.append)
        client.when.resumed(self.events.adder("resumed"))
        client.when.lost(self.events.adder("lost"))
        client.when.ready(self.events.adder("ready"))

    async def _double(self, conn, n):
        self.ran.append(n)
        if n % 3 == 0:
            await asyncio.sleep(0)
        return 2 * n

    async def run(self, conn, count, disturb, every, pace=0.0):
        """Exchange `count` messages each way and a fifth as many calls; call `disturb(client)` now and then."""
        calls = []
        for n in range(count):
            self.client.send("up", n)
            conn.send("down", n)
            if n % 5 == 0:
                calls.append((n, asyncio.ensure_future(self.client.call("double", n, timeout=0))))
            if n % every == every - 1:
                disturb(self.client)
            if n % 3 == 0:
                await asyncio.sleep(pace)
        for n, call in calls:
            assert await soon(call) == 2 * n
        await soon(self.client.flush())
        await soon(conn.flush())
        assert self.up == list(range(count))
        assert self.down == list(range(count))
        assert sorted(self.ran) == [n for n, _ in calls]
        assert self.events.all("lost") == []


async def until(condition):
    """Return when the condition holds."""

    async def wait():
        while not condition():
            await asyncio.sleep(0.001)

    await soon(wait())
