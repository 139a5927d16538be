"""A client behind a network that cuts its first connection at a given byte, and one that cuts again and again."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from contextlib import asynccontextmanager

import pytest

from support.net import ServerLog, make_server, soon
from support.proxy import TcpProxy
from support.resume import NOW, RETURNING, Traffic, until
from wse import Backoff, Resume, WseClient, WseServer


class CuttingProxy:
    """Forwards connections, and cuts the first one after so many bytes of one direction.

    Args:
        to_port: Where to.
        after: Bytes.
        up: Whether those of the client count, or those of the server.
        both_notice: Whether the server notices; otherwise its socket stays open, and what it writes is lost.
    """

    def __init__(self, to_port, after, *, up, both_notice):
        self.to_port = to_port
        self.left = after
        self.up = up
        self.both_notice = both_notice
        self.passed = 0
        self.was_cut = False
        self.writers = []

    @asynccontextmanager
    async def run(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()

    async def _serve(self, reader, writer):
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
        self.writers += [writer, back_writer]
        first = not self.was_cut
        await asyncio.gather(
            self._forward(reader, back_writer, writer, back_writer, first and self.up),
            self._forward(back_reader, writer, writer, back_writer, first and not self.up),
        )

    async def _forward(self, reader, to, client, back, counts):
        try:
            while data := await reader.read(65536):
                if counts and not self.was_cut:
                    self.passed += len(data)
                    if len(data) > self.left:
                        to.write(data[: self.left])
                        await to.drain()
                        self.was_cut = True
                        await asyncio.sleep(0)
                        client.transport.abort()
                        if self.both_notice:
                            back.transport.abort()
                        return
                    self.left -= len(data)
                to.write(data)
                await to.drain()
            to.close()
        except OSError:
            to.transport.abort()


@asynccontextmanager
async def server_of(heard):
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, conns_per_user=3)
    server.when.connected(lambda conn: [conn.send("down", n) for n in range(3)])
    server.channel.on("up", lambda conn, n: heard.setdefault(conn.cid, []).append(n))
    server.register("echo", lambda conn, n: heard.setdefault(f"calls of {conn.cid}", []).append(n) or n)
    async with server:
        yield server


async def story(server, heard, user, after, **kind):
    """One client, whose first connection is cut; returns how many bytes had passed, if it was."""
    proxy = CuttingProxy(server.port, after, **kind)
    async with proxy.run() as url:
        down = []
        async with WseClient(url, identity=user, **RETURNING, timeout=60) as client:
            client.channel.on("down", down.append)
            lost = []
            client.when.lost(lost.append)
            client.when.error(lambda error: None)  # attempts that fail
            for n in range(3):
                client.send("up", n)
            assert await soon(client.call("echo", user)) == user
            client.send("up", 3)
            await soon(client.flush())
            for conn in server.clients[user].conns.values():
                if conn.attached and conn._session.ledger is not None:
                    await soon(conn.flush())
        assert lost == []
        assert down == [0, 1, 2], (user, down)
        assert heard[user] == [0, 1, 2, 3], (user, heard[user])
        assert heard[f"calls of {user}"] == [user]
        return proxy.was_cut


KINDS = [
    pytest.param({"up": up, "both_notice": both}, id=f"{'up' if up else 'down'}{'' if both else ', half-open'}")
    for up in (True, False)
    for both in (True, False)
]


async def cut_at_every(step, kind):
    """Cut at byte 0, `step`, 2 * `step`, … until the whole exchange fits."""
    heard = {}
    async with server_of(heard) as server:
        after, cuts = 0, 0
        while True:
            places = range(after, after + 20 * step, step)
            done = await asyncio.gather(*(story(server, heard, f"at {n}", n, **kind) for n in places))
            cuts += sum(done)
            after += 20 * step
            if not all(done):
                return cuts


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_is_cut_anywhere_costs_nothing(kind):
    assert await cut_at_every(17, kind) > 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_is_cut_at_any_byte_costs_nothing(kind):
    assert await cut_at_every(1, kind) > 300


async def test_thousands_of_messages_and_calls_arrive_once_over_many_cuts(listen):
    await many_cuts(listen, count=1500, cuts=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_messages_and_a_thousand_calls_arrive_once_over_two_hundred_cuts(listen):
    await many_cuts(listen, count=10_000, cuts=200)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_same_when_the_server_notices_no_cut_and_each_return_is_quick(listen):
    waits = await many_cuts(listen, count=10_000, cuts=200, backoff=Backoff(cap=0.5), is_noticed=False)
    assert len(waits) > 100  # the others hit a connection that was not one yet
    assert statistics.median(waits) < 1
    assert max(waits) < 10  # seconds; another program may have had the machine


async def many_cuts(listen, count, cuts, backoff=NOW, is_noticed=True):
    """Numbered messages both ways and calls, through a proxy that cuts connections at random moments.

    Returns how long the client was away each time; the server does not notice unless the cut `is_noticed`.
    """
    server = make_server(resume=Resume(messages=20_000, bytes=1 << 24))
    log = ServerLog(server)
    place = await listen(server)
    chance = random.Random(7)
    cut_at = 0.0
    waits = []
    async with TcpProxy(server.port) as proxy:
        client = WseClient(
            proxy.url, identity="ann", reconnect=True, backoff=backoff, resume=Resume(messages=20_000, bytes=1 << 24)
        )
        client.when.error(lambda error: None)  # attempts that fail
        client.when.resumed(lambda welcome: waits.append(time.monotonic() - cut_at))
        traffic = Traffic(server, client)
        await soon(client.connect())
        conn = await log.conn("ann")
        done = 0

        async def disturb():
            nonlocal done, cut_at
            while done < cuts:
                await asyncio.sleep(chance.random() * 0.02)
                if proxy.sides:
                    cut_at = time.monotonic()
                    if is_noticed:
                        chance.choice(sorted(proxy.sides, key=id)).reset()
                    else:
                        proxy.lose()
                    done += 1
                if done % 4:  # the others may break the next connection before it is one
                    await asyncio.sleep(0.005)  # the client notices
                    await until(lambda: client.status == "READY")

        disturbing = asyncio.ensure_future(disturb())

        def wait_for_cuts(client): ...

        await asyncio.gather(traffic.run(conn, count, wait_for_cuts, every=100, pace=0.001), disturbing)
        assert traffic.events.all("ready") == [traffic.events.all("ready")[0]]
        assert traffic.events.all("resumed")
        assert place.server is server
        await client.close()
    return waits


async def test_each_return_is_quick_also_when_the_server_notices_nothing(listen):
    server = make_server()
    log = ServerLog(server)
    await listen(server)
    async with TcpProxy(server.port) as proxy:
        client = WseClient(proxy.url, identity="ann", reconnect=True, resume=True, backoff=Backoff(base=0.01, cap=0.05))
        client.when.error(lambda error: None)
        await soon(client.connect())
        conn = await log.conn("ann")
        for n in range(5):
            proxy.lose()
            await soon(client.when.resumed.wait())
            conn.send("n", n)
        await soon(conn.flush())
        assert "left" not in log.names
        await client.close()
