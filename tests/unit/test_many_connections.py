"""A scrape and the operations page while 50,000 users are connected: what they cost is measured in processor time, so
that a busy machine does not count."""

import asyncio
import gc
import json
from contextlib import contextmanager
from statistics import median
from time import process_time, thread_time

import pytest

from support.net import TIMEOUT, soon
from wse import WseServer
from wse.core.ports.http import HttpCall
from wse.testing import connect
from wse.transports.request import CompactHeaders

MANY = 50_000

pytestmark = pytest.mark.slow


class Silent:
    """A link to a client that says nothing more."""

    __slots__ = ("buffered", "session")

    pings = False
    remote_addr = "192.0.2.1"

    def __init__(self, waits):
        self.buffered = waits

    def attach(self, session):
        self.session = session

    def close(self, code, reason):
        asyncio.get_running_loop().call_soon(self.session.closed, code, reason)

    abort = write = write_utf8 = write_shared = lambda self, *args: None


class Request:
    path, query, headers, native, remote_addr, certificate = "/", {}, {}, None, "192.0.2.1", None


def crowd(server):
    """Connect that many users; some of them read slowly."""
    acceptor = server._acceptor
    protocol = server.protocols[0]
    for n in range(MANY):
        link = Silent(n if n % 1000 == 0 else 0)
        link.session = acceptor.open(link, Request, protocol)
        link.session.receive(json.dumps(["~wse:hi", {"identity": f"user-{n}"}, None]))
        if n % 100 == 0:
            server.room(f"room-{n}").add(link.session.conn)


@contextmanager
def turns(monkeypatch):
    """The processor time of every callback of the event loop."""
    found = []
    run = asyncio.Handle._run

    def timed(handle):
        start = thread_time()
        try:
            run(handle)
        finally:
            found.append(thread_time() - start)

    gc.collect()
    gc.disable()  # a collection is nobody's fault here
    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    try:
        yield found
    finally:
        monkeypatch.undo()
        gc.enable()


async def test_they_stall_the_event_loop_for_no_more_than_20_ms(monkeypatch):
    key = {"name": "grace", "key": "x"}
    server = WseServer(
        lambda auth: auth.accept(auth.identity), port=0, metrics="/metrics", admin=lambda auth: auth.accept("grace")
    )
    async with server, connect(server._console.backstage, key) as page:
        crowd(server)
        route = server._lifecycle.options.routes["/metrics"]
        call = HttpCall("GET", "/metrics", CompactHeaders([]))

        async def scrape():
            start = process_time()
            reply = route.answer(call)
            if not hasattr(reply, "body"):
                reply = await reply
            return reply.body.decode(), process_time() - start

        with turns(monkeypatch) as stalls:
            scrapes = [await scrape() for _ in range(5)]
            assert median(seconds for _, seconds in scrapes) < 0.1
            async with asyncio.timeout(TIMEOUT):
                while "wse_queued_bytes_max 49000.0" not in scrapes[-1][0]:  # a walk in the background has ended
                    scrapes.append(await scrape())
                    await asyncio.sleep(0.05)
            assert f"wse_connections {MANY:.1f}" in scrapes[-1][0]

            async with asyncio.timeout(TIMEOUT):
                while not (node := (await page.call("overview"))["nodes"][0])["slow"]:
                    await asyncio.sleep(0.1)
            assert [slow["user"] for slow in node["slow"]] == [f"user-{49_000 - 1000 * n}" for n in range(10)]
            assert node["users"] == MANY
            for search in ("", "user-4999", "user-49999", "nobody"):
                for what in ("users", "rooms"):
                    answer = await page.call(what, {"search": search})
                    assert len(answer["rows"]) <= 51
            found = await page.call("users", {"search": "user-49999"})
            assert [row["name"] for row in found["rows"]] == ["user-49999"]
            (device,) = await page.call("devices", {"user": "suser-49000"})
            assert device["queued"] == 49_000
            assert await page.call("drop-device", {"conn_id": device["conn_id"]}) is True
        assert max(stalls) < 0.02
        for link in [session.link for session in server._hub.sockets.open]:
            link.session.closed(1006, "")
        await soon(asyncio.sleep(0))
