"""The server of the soak: keeps a ledger of what it received and sent on each connection, until its reader takes it."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.counts import counts, raise_file_limit
from wse import Limits, Resume, WseError, WseServer


class Account:
    """What the server knows of one connection; numbers are those of the client's messages and of ours."""

    def __init__(self):
        self.received = 0
        self.disorder = 0
        self.sent = 0
        self.asked = 0
        self.answered = 0

    def entry(self, key):
        return [key, self.received, self.disorder, self.sent, self.asked, self.answered]


async def serve():
    raise_file_limit()
    logging.getLogger("wse").disabled = True  # calls to clients that go are no news here
    limits = Limits(handler_linger=2)  # the timers of those who have gone last as long
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, limits=limits, resume=Resume(window=60))
    accounts = {}
    closed = []

    @server.when.connected
    def connected(conn):
        if not conn.meta.get("watcher"):
            accounts[conn.conn_id] = Account()

    @server.when.disconnected
    def disconnected(conn, code, reason):
        account = accounts.pop(conn.conn_id, None)
        if account is not None:
            closed.append([*account.entry(conn.meta["key"]), reason])

    @server.channel.on("note")
    def note(conn, number):
        account = accounts[conn.conn_id]
        account.received += 1
        account.disorder += number != account.received

    @server.channel.on("talk")
    def talk(conn, message):
        """A message to another user, who may have gone."""
        note(conn, message["number"])
        identity = server.clients.get(message["to"])
        if identity is not None:
            for other in identity.conns.values():
                account = accounts[other.conn_id]
                account.sent += 1
                other.send("talk", account.sent)

    @server.register("add")
    def add(conn, payload):
        return payload["a"] + payload["b"]

    @server.register("later")
    async def later(conn, payload):
        await asyncio.sleep(0.01)
        return payload

    @server.register("ask")
    async def ask(conn, payload):
        """The client has the server call it back."""
        account = accounts.get(conn.conn_id)
        if account is None:
            return None
        account.asked += 1
        with suppress(WseError):
            assert await conn.call("double", payload) == 2 * payload
            account.answered += 1
        return payload

    @server.register("drop")
    def drop(conn, payload):
        identity = server.clients.get(payload)
        if identity is not None:
            identity.drop()

    @server.register("ledger")
    def ledger(conn, payload):
        """The accounts of connections that have ended since the last time."""
        part = closed[:5000]
        del closed[:5000]
        return part

    @server.register("alive")
    def alive(conn, payload):
        """The accounts of those users that are connected."""
        by_cid = {}
        for cid in payload:
            identity = server.clients.get(cid)
            for one in identity.conns.values() if identity else ():
                by_cid[cid] = accounts[one.conn_id].entry(one.meta["key"])
        return by_cid

    server.register("counts", lambda conn, payload: counts(server))
    async with server:
        print(f"port {server.port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
