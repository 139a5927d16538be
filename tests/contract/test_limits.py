"""What exceeds a limit gets the answer that the documentation says, on every transport, and harms nobody else."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from support.net import TIMEOUT, RawSocket, ServerLog, hi, make_server, soon
from wse import ErrorCode, Limits, ReadyState, WseError


class Scene:
    """A server with limits, and a bystander whom nothing may touch."""

    @classmethod
    async def set(cls, run, bystander=True, **options):
        scene = cls()
        scene.server = server = make_server(**options)
        server.register("echo", lambda conn, payload: payload)
        scene.gate = asyncio.Event()

        @server.register("wait")
        async def wait(conn, payload):
            await scene.gate.wait()

        @server.channel.on("wait")
        async def wait_too(conn, payload):
            await scene.gate.wait()

        scene.log = ServerLog(server)
        scene.place = await run(server)
        scene.bystander = await scene.place.connect("bystander") if bystander else None
        return scene

    async def check(self, limit, allowed, close=None):
        """It was reported once and counted, and the bystander is served."""
        error = await self.log.error()
        assert error.code == ErrorCode.LIMIT_EXCEEDED
        assert (error.details["limit"], error.details["allowed"]) == (limit, allowed)
        assert error.details.get("close") == close
        assert len(self.log.all("error")) == 1
        assert self.server.stats().limits[limit] >= 1
        if self.bystander is not None:
            assert await soon(self.bystander.call("echo", 1)) == 1


async def intruder(scene):
    peer = await scene.place.peer()
    await peer.login("intruder")
    return peer


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


async def test_nesting(run):
    scene = await Scene.set(run, limits=Limits(nesting=20))
    peer = await intruder(scene)
    await peer.say("echo", nested(20), 1)
    assert await peer.hear() == ["~wse:response", nested(20), 1]
    await peer.say("echo", [nested(60)], 2)
    assert await peer.closed() == (1008, "wse.limit.nesting")
    await scene.check("nesting", 20, [1008, "wse.limit.nesting"])


async def test_handshake_size(run):
    scene = await Scene.set(run, limits=Limits(handshake_size=2000))
    peer = await scene.place.peer()
    await peer.send(hi("x" * 2000))
    assert await peer.closed() == (1009, "wse.limit.handshake-size")
    await scene.check("handshake_size", 2000, [1009, "wse.limit.handshake-size"])


async def test_incoming_calls(run):
    scene = await Scene.set(run, limits=Limits(incoming_calls=5))
    peer = await intruder(scene)
    for stamp in range(1, 8):
        await peer.say("wait", None, stamp)
    for stamp in (6, 7):
        kind, payload, answered = await peer.hear()
        assert (kind, payload["code"], answered) == ("~wse:response-err", "wse.limit-exceeded", stamp)
        assert payload["details"]["limit"] == "incoming_calls"
        assert payload["details"]["allowed"] == 5
    await scene.check("incoming_calls", 5)
    scene.gate.set()
    assert {(await peer.hear())[2] for _ in range(5)} == {1, 2, 3, 4, 5}
    await peer.say("echo", "still here", 9)
    assert await peer.hear() == ["~wse:response", "still here", 9]


async def test_handlers(run):
    scene = await Scene.set(run, limits=Limits(handlers=5))
    peer = await intruder(scene)
    for _ in range(6):
        await peer.say("wait")
    assert await peer.closed() == (1008, "wse.limit.handlers")
    await scene.check("handlers", 5, [1008, "wse.limit.handlers"])


async def test_outgoing_calls(run):
    scene = await Scene.set(run, limits=Limits(outgoing_calls=5))
    await intruder(scene)
    conn = await scene.log.conn("intruder")
    calls = [asyncio.ensure_future(conn.call("never")) for _ in range(6)]
    with pytest.raises(WseError) as caught:
        await soon(calls[5])
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    await scene.check("outgoing_calls", 5)
    conn.drop()
    for call in calls[:5]:
        with pytest.raises(WseError, match="disconnect"):
            await soon(call)


async def test_message_rate(run):
    scene = await Scene.set(run, limits=Limits(message_rate=1, message_burst=10))
    peer = await intruder(scene)
    for _ in range(20):
        await peer.say("chat")
    assert await peer.closed() == (1008, "wse.limit.message-rate")
    await scene.check("message_rate", 1, [1008, "wse.limit.message-rate"])


async def test_byte_rate(run):
    scene = await Scene.set(run, limits=Limits(byte_rate=1, byte_burst=3000))
    peer = await intruder(scene)
    for _ in range(4):
        await peer.say("chat", "x" * 1000)
    assert await peer.closed() == (1008, "wse.limit.byte-rate")
    await scene.check("byte_rate", 1, [1008, "wse.limit.byte-rate"])


async def test_connections(run):
    scene = await Scene.set(run, limits=Limits(connections=2))
    await intruder(scene)
    peer = await scene.place.peer()
    assert await peer.closed() == (1013, "wse.limit.connections")
    await scene.check("connections", 2, [1013, "wse.limit.connections"])


async def test_connections_per_address(run):
    scene = await Scene.set(run, limits=Limits(connections_per_address=2))
    await intruder(scene)
    peer = await scene.place.peer()
    assert await peer.closed() == (1013, "wse.limit.connections-per-address")
    await scene.check("connections_per_address", 2, [1013, "wse.limit.connections-per-address"])


async def test_unauthenticated_connections(run):
    scene = await Scene.set(run, limits=Limits(unauthenticated=1))
    waiting = await scene.place.peer()
    peer = await scene.place.peer()
    assert await peer.closed() == (1013, "wse.limit.unauthenticated")
    await scene.check("unauthenticated", 1, [1013, "wse.limit.unauthenticated"])
    await waiting.login("patient")


# Receivers that are slow.


async def slow_receiver(scene):
    """A user that reads nothing; whose socket is full already."""
    socket = await scene.stack.enter_async_context(RawSocket.user(scene.place.url, "slow"))
    socket.writer.transport.pause_reading()
    conn = await scene.log.conn("slow")
    filler = "x" * 50_000
    async with asyncio.timeout(TIMEOUT):
        while conn._session._writable:
            conn.send("chat", filler)
            await asyncio.sleep(0)
    return socket, conn


@pytest.fixture
async def slow_scene(run):
    async with AsyncExitStack() as stack:

        async def make(**options):
            server = make_server(conns_per_user=5, **options)
            place = await run(server)
            if not place.has_frames:
                pytest.skip("memory holds back nobody")
            scene = Scene()
            scene.server, scene.place, scene.log, scene.stack = server, place, ServerLog(server), stack
            scene.quick = await place.connect("quick")
            return scene

        yield make


async def test_a_receiver_that_does_not_read_is_closed_and_nobody_else_is_delayed(slow_scene, monkeypatch):
    for transport in ("awaited", "picows.link"):
        monkeypatch.setattr(f"wse.transports.{transport}.CLOSE_TIMEOUT", 0.05)
    scene = await slow_scene(limits=Limits(send_buffer=200_000))
    heard = []
    scene.quick.channel.on("news", heard.append)
    quick = await scene.log.conn("quick")
    _, conn = await slow_receiver(scene)
    sent = 0
    while conn.ready_state == ReadyState.OPEN:
        assert sent < 5000  # 50 MB: no kernel buffers that much
        scene.server.broadcast("news", [sent, "x" * 10_000])
        sent += 1
        assert conn.queued < 600_000  # what the socket had taken in one write is above the bound, if anything
        await soon(quick.drain())
    entry = await scene.log.until("disconnected", "slow")
    assert entry[2:] == (1013, "wse.slow-receiver")
    error = await scene.log.error()
    assert error.code == ErrorCode.SLOW_RECEIVER
    stats = scene.server.stats()
    assert stats.dropped["close"] > 0
    assert stats.closes["wse.slow-receiver"] == 1
    async with asyncio.timeout(TIMEOUT):
        while len(heard) < sent:
            await asyncio.sleep(0.001)
    assert [payload[0] for payload in heard] == list(range(sent))


@pytest.mark.parametrize("policy", ["latest", "drop-newest", "drop-oldest"])
async def test_a_type_whose_messages_may_give_way_keeps_the_connection(slow_scene, policy):
    scene = await slow_scene(limits=Limits(send_buffer=400_000), overflow={"price": policy})
    socket, conn = await slow_receiver(scene)
    for n in range(2000):
        conn.send("price", [n, "x" * 1000])
    assert conn.queued < 800_000
    assert conn.ready_state == ReadyState.OPEN
    socket.writer.transport.resume_reading()
    prices = []
    conn.send("end")
    while (message := await socket.hear())[0] != "end":
        if message[0] == "price":
            prices.append(message[1][0])
    assert prices == sorted(prices)
    if policy == "latest":
        assert prices == [1999]
    elif policy == "drop-newest":
        assert prices == list(range(len(prices)))
    else:
        assert prices == list(range(2000 - len(prices), 2000))
    assert scene.server.stats().dropped == {policy: 2000 - len(prices)}
