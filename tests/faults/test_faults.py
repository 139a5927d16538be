"""What the network does to connections, on both sides of a TCP proxy: nothing hangs, nothing is lost in silence."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from support.net import TEXT, TIMEOUT, ClientLog, RawSocket, ServerLog, frame, hi, make_server, soon, text
from support.proxy import TcpProxy
from wse import ClientStatus, ErrorCode, Heartbeat, WseClient, WseError
from wse.backoff import Backoff

HEARTBEAT = Heartbeat(interval=0.2, timeout=1.5)
AT_ONCE = Backoff(base=0.01, cap=0.02)


class Scene:
    """A server, a proxy before it, and a client that has come through."""

    @classmethod
    @asynccontextmanager
    async def set(cls, *, reconnect=False, heartbeat=None, client_heartbeat=None):
        scene = cls()
        scene.server = server = make_server(heartbeat=heartbeat)
        server.register("echo", lambda conn, payload: payload)
        scene.never = asyncio.Event()

        @server.register("never")
        async def never(conn, payload):
            await scene.never.wait()

        scene.log = ServerLog(server)
        async with server, TcpProxy(server.port) as scene.proxy:
            options = {"heartbeat": client_heartbeat} if client_heartbeat else {}
            scene.client = WseClient(scene.proxy.url, identity="ann", reconnect=reconnect, backoff=AT_ONCE, **options)
            scene.client.register("never", scene.never_answers)
            scene.heard = ClientLog(scene.client)
            async with scene.client:
                scene.conn = await scene.log.conn("ann")
                yield scene
                scene.never.set()
                scene.proxy.stall(False)

    async def never_answers(self, payload):
        await self.never.wait()

    async def calls_in_flight(self):
        """A call in each direction that waits for its answer at the other end."""
        ours = asyncio.ensure_future(self.client.call("never"))
        theirs = asyncio.ensure_future(self.conn.call("never"))
        await soon(self.client.call("echo", 1))
        await soon(self.until(lambda: self.server.stats().running_handlers == 1))
        return ours, theirs

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0.005)

    async def gone(self):
        """Both sides know that the connection is no more, and have let everything of it go."""
        await self.log.until("disconnected", "ann")
        await self.heard.until("closed")
        assert self.conn.client is None or self.conn.conn_id not in self.conn.client.conns

    async def assert_disconnected(self, *calls):
        for call in calls:
            with pytest.raises(WseError) as caught:
                await soon(call)
            assert caught.value.code == ErrorCode.RP_DISCONNECT
            assert caught.value.details["disconnected"][0] in (1005, 1006)
        assert self.server.stats().pending_calls == 0


FAULTS = {
    "cut": lambda proxy: proxy.cut(),
    "reset": lambda proxy: proxy.reset(),
    "the server hears the end": lambda proxy: proxy.half_close(to_server=True),
    "the client hears the end": lambda proxy: proxy.half_close(to_server=False),
    "stall": lambda proxy: proxy.stall(),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_settles_the_calls_of_both_sides(fault):
    async with Scene.set(heartbeat=HEARTBEAT, client_heartbeat=HEARTBEAT) as scene:
        calls = await scene.calls_in_flight()
        FAULTS[fault](scene.proxy)
        await scene.assert_disconnected(*calls)
        await scene.gone()
        assert scene.client.status is ClientStatus.OFFLINE
        assert scene.server.clients == {}
        assert scene.heard.all("closed") == [(1006, "")]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_client_that_reconnects_comes_back_after_a_fault(fault):
    async with Scene.set(reconnect=True, heartbeat=HEARTBEAT, client_heartbeat=HEARTBEAT) as scene:
        for times in range(1, 3):
            closes = len(scene.heard.all("closed"))
            FAULTS[fault](scene.proxy)
            await soon(scene.until(lambda: len(scene.heard.all("closed")) > closes))  # noqa: B023 - awaited here
            scene.proxy.stall(False)
            await soon(scene.until(lambda: scene.client.status is ClientStatus.READY))
            assert await soon(scene.client.call("echo", times)) == times
        assert list(scene.server.clients) == ["ann"]
        assert len(scene.server.clients["ann"].conns) == 1


async def test_a_client_comes_back_when_the_network_does():
    async with Scene.set(reconnect=True) as scene:
        scene.proxy.accepts = False
        attempts = scene.proxy.opened
        scene.proxy.reset()
        await soon(scene.until(lambda: scene.proxy.opened >= attempts + 3))
        assert scene.client.status is ClientStatus.RE_CONNECTING
        scene.proxy.accepts = True
        await soon(scene.until(lambda: scene.client.status is ClientStatus.READY))
        assert await soon(scene.client.call("echo", "back")) == "back"


async def test_a_message_before_a_half_close_is_handled():
    server = make_server()
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as socket:
        socket.send(text("last words", 1))
        socket.writer.write_eof()
        assert (await log.until("ignored", "ann"))[2:] == ("last words", 1)
        assert (await log.until("disconnected", "ann"))[2:] == (1006, "")
        await socket.eof()
    assert server.stats().connections == 0


async def test_a_half_close_before_the_welcome_leaves_nothing():
    server = make_server()
    log = ServerLog(server)
    decided = asyncio.Event()

    @server.identify
    async def identify(auth):
        log.add("asked")
        await decided.wait()
        auth.accept("ann")

    async with server, await RawSocket.open(server.url) as socket:
        await socket.upgrade()
        socket.send(frame(TEXT, hi("ann")))
        await log.until("asked")
        socket.writer.write_eof()
        await socket.eof()
        decided.set()
        async with asyncio.timeout(TIMEOUT):
            while server.stats().running_handlers:
                await asyncio.sleep(0)
        assert server.stats().connections == server.stats().unauthenticated == 0
    assert log.names == ["asked"]


async def test_a_delay_does_not_reorder():
    async with Scene.set() as scene:
        scene.proxy.delay = 0.02
        heard = []
        scene.client.channel.on("n", heard.append)
        calls = []
        for n in range(100):
            scene.conn.send("n", n)
            scene.client.send("chat", n)
            calls.append(asyncio.ensure_future(scene.client.call("echo", n)))
            if n % 10 == 0:
                await asyncio.sleep(0.002)  # so that they do not all travel in one segment
        assert await soon(asyncio.gather(*calls)) == list(range(100))
        assert [entry[2] for entry in scene.log.all("ignored")] == list(range(100))
        await soon(scene.until(lambda: len(heard) == 100))
        assert heard == list(range(100))


async def test_delays_below_its_times_do_not_make_the_heartbeat_cut():
    async with Scene.set(heartbeat=Heartbeat(interval=0.1, timeout=TIMEOUT)) as scene:
        scene.proxy.delay = 0.02
        await soon(scene.until(lambda: scene.conn.rtt is not None))
        assert scene.conn.rtt >= 0.04
        assert scene.client.status is ClientStatus.READY


async def test_a_stall_shorter_than_the_heartbeats_times_loses_nothing():
    async with Scene.set(heartbeat=Heartbeat(interval=1, timeout=TIMEOUT)) as scene:
        heard = []
        scene.client.channel.on("n", heard.append)
        scene.proxy.stall()
        for n in range(500):
            scene.conn.send("n", n)
        call = asyncio.ensure_future(scene.client.call("echo", "late"))
        await asyncio.sleep(0.1)  # the stall itself
        assert not call.done()
        scene.proxy.stall(False)
        assert await soon(call) == "late"
        await soon(scene.until(lambda: len(heard) == 500))
        assert heard == list(range(500))


async def test_splitting_at_every_byte_changes_nothing():
    server = make_server()
    log = ServerLog(server)
    server.register("echo", lambda conn, payload: payload)
    payloads = [None, 1, "ä€😀" * 40, {"a": [1, 2, {"b": "x" * 200}]}, "y" * 5000]
    async with server, TcpProxy(server.port) as proxy:
        proxy.split = True
        async with WseClient(proxy.url, identity="ann") as client:
            heard = []
            client.register("double", lambda payload: [payload, payload])
            client.channel.on("n", heard.append)
            conn = await log.conn("ann")
            for payload in payloads:
                assert await soon(client.call("echo", payload)) == payload
                assert await soon(conn.call("double", payload)) == [payload, payload]
                client.send("chat", payload)
                conn.send("n", payload)
            assert await soon(client.call("echo", "end")) == "end"
            assert heard == payloads
            assert [entry[2] for entry in log.all("ignored")] == payloads
        assert (await log.until("disconnected", "ann"))[2:] == (1000, "wse.by-client")
    assert log.all("error") == []
