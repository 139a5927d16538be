"""permessage-deflate between real sockets, and with the `websockets` library at the other end (RFC 7692)."""

import asyncio
import base64
import hashlib
import json
import random
import zlib

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import serve as ws_serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from support.net import JSON, TEXT, RawSocket, ServerLog, frame, hi, make_server, soon
from wse import Compression, ErrorCode, Limits, WseClient, WseError, WseMsgpack
from wse.transports.deflate import Deflate

LONG = {"text": "all work and no play makes jack a dull boy " * 100}
NOISE = random.Random(0).randbytes(6000).hex()

SETTINGS = [Compression(), Compression(context_takeover=True), Compression(window_bits=9, level=1, threshold=126)]


@pytest.fixture
def deflated(monkeypatch):
    """The sizes of what is compressed, before and after."""
    sizes = []
    real = Deflate.deflate

    def deflate(self, payload):
        result = real(self, payload)
        sizes.append((len(payload), None if result is None else len(result)))
        return result

    monkeypatch.setattr(Deflate, "deflate", deflate)
    return sizes


def echo_server(**options):
    server = make_server(**options)
    server.register("echo", lambda conn, payload: payload)
    return server


@pytest.mark.parametrize("settings", SETTINGS)
async def test_messages_survive_between_our_own_ends(listen, deflated, settings):
    place = await listen(echo_server(compression=settings, conns_per_user=2))
    client = await place.connect("ann", compression=settings)
    for payload in (LONG, LONG, NOISE, "short", LONG):
        assert await soon(client.call("echo", payload)) == payload
    assert max(before for before, _ in deflated) > 4000
    assert min(after for _, after in deflated if after is not None) < 500


@pytest.mark.parametrize("settings", SETTINGS)
async def test_messages_survive_between_the_websockets_client_and_us(listen, settings):
    place = await listen(echo_server(compression=settings))
    async with ws_connect(place.url, subprotocols=[JSON]) as socket:
        assert "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
        await socket.send(hi())
        await soon(socket.recv())
        for stamp in (1, 2):
            await socket.send(json.dumps(["echo", LONG, stamp]))
            assert json.loads(await soon(socket.recv())) == ["~wse:response", LONG, stamp]
        message = json.dumps(["echo", LONG, 3])
        await socket.send([message[:1000], message[1000:2000], message[2000:]])
        assert json.loads(await soon(socket.recv())) == ["~wse:response", LONG, 3]


@pytest.mark.parametrize("settings", SETTINGS)
async def test_messages_survive_between_us_and_the_websockets_server(settings):
    heard = []

    async def handle(socket):
        heard.append(json.loads(await socket.recv())[0])
        await socket.send('["~wse:welcome",null,null]')
        async for message in socket:
            name, payload, stamp = json.loads(message)
            heard.append(name)
            await socket.send(json.dumps(["~wse:response", payload, stamp]))

    extensions = [ServerPerMessageDeflateFactory()]
    async with ws_serve(handle, "127.0.0.1", 0, subprotocols=[JSON], compression=None, extensions=extensions) as server:
        port = server.sockets[0].getsockname()[1]
        async with WseClient(f"ws://127.0.0.1:{port}", compression=settings) as client:
            for payload in (LONG, NOISE, LONG):
                assert await soon(client.call("echo", payload)) == payload
    assert heard == ["~wse:hi", "echo", "echo", "echo"]


async def test_a_broadcast_is_compressed_once_and_reaches_those_who_cannot_decompress(listen, deflated):
    server = echo_server(compression=Compression())
    place = await listen(server)
    compressing = [await place.connect(f"u{i}", compression=Compression()) for i in range(3)]
    plain = await place.connect("plain")
    results = [asyncio.get_running_loop().create_future() for _ in range(4)]
    for client, result in zip([*compressing, plain], results, strict=True):
        client.channel.on("news", result.set_result)
    server.broadcast("news", LONG)
    assert await soon(asyncio.gather(*results)) == [LONG] * 4
    assert len(deflated) == 1


async def test_a_broadcast_that_does_not_get_smaller_is_tried_once(listen, deflated):
    server = echo_server(compression=Compression(), protocol=WseMsgpack())
    place = await listen(server)
    noise = random.Random(1).randbytes(3000)
    results = []
    for i in range(2):
        client = await place.connect(f"u{i}", compression=Compression(), protocol=WseMsgpack())
        results.append(asyncio.get_running_loop().create_future())
        client.channel.on("news", results[-1].set_result)
    server.broadcast("news", noise)
    assert await soon(asyncio.gather(*results)) == [noise] * 2
    assert [after for _, after in deflated] == [None]


async def test_an_answer_that_does_not_get_smaller_is_sent_as_it_is(listen, deflated):
    place = await listen(echo_server(compression=Compression(), protocol=WseMsgpack()))
    client = await place.connect(compression=Compression(), protocol=WseMsgpack())
    noise = random.Random(2).randbytes(3000)
    assert await soon(client.call("echo", noise)) == noise
    assert [after for _, after in deflated] == [None, None]


async def test_with_takeover_a_broadcast_is_compressed_for_each(listen, deflated):
    settings = Compression(context_takeover=True)
    server = echo_server(compression=settings)
    place = await listen(server)
    results = []
    for i in range(2):
        client = await place.connect(f"u{i}", compression=settings)
        results.append(asyncio.get_running_loop().create_future())
        client.channel.on("news", results[-1].set_result)
    server.broadcast("news", LONG)
    assert await soon(asyncio.gather(*results)) == [LONG] * 2
    assert len(deflated) == 2


async def test_short_messages_are_left_alone(listen, deflated):
    server = echo_server(compression=Compression(threshold=2000))
    place = await listen(server)
    client = await place.connect(compression=Compression(threshold=2000))
    result = asyncio.get_running_loop().create_future()
    client.channel.on("news", result.set_result)
    server.broadcast("news", "x" * 1500)
    await soon(result)
    assert await soon(client.call("echo", "x" * 1500)) == "x" * 1500
    assert deflated == []


async def test_a_client_that_does_not_ask_is_not_compressed_for(listen, deflated):
    place = await listen(echo_server(compression=Compression()))
    client = await place.connect()
    assert await soon(client.call("echo", LONG)) == LONG
    assert deflated == []


async def test_a_server_without_compression_declines(listen, deflated):
    place = await listen(echo_server())
    client = await place.connect(compression=Compression())
    assert await soon(client.call("echo", LONG)) == LONG
    assert deflated == []


async def compressed_login(place):
    socket = await RawSocket.open(place.url)
    status, headers, _ = await socket.upgrade(**{"Sec-WebSocket-Extensions": "permessage-deflate"})
    assert (status, "permessage-deflate" in headers["sec-websocket-extensions"]) == (101, True)
    socket.send(frame(TEXT, hi()))
    assert (await socket.hear())[0] == "~wse:welcome"
    return socket


def bomb(size):
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(b" " * size) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


async def test_a_compression_bomb_closes_its_own_connection_only(listen):
    server = echo_server(compression=Compression(), limits=Limits(message_size=100_000))
    log = ServerLog(server)
    place = await listen(server)
    honest = await place.connect("honest", compression=Compression())
    async with await compressed_login(place) as socket:
        socket.send(frame(TEXT, bomb(50_000_000), rsv=4))
        assert (await socket.closed())[0] == 1009
    assert (await log.error()).code == ErrorCode.LIMIT_EXCEEDED
    assert await soon(honest.call("echo", LONG)) == LONG


@pytest.mark.parametrize(
    "frames",
    [
        [frame(TEXT, b"\xff\xff\xff", rsv=4)],
        [frame(TEXT, b"x", rsv=4, fin=False), frame(0, b"y", rsv=4)],
        [frame(9, b"ping", rsv=4)],
        [frame(TEXT, b"[]", rsv=2)],
    ],
    ids=["not deflate", "marked again", "a control frame", "another bit"],
)
async def test_what_is_wrongly_marked_as_compressed_is_a_violation(listen, frames):
    place = await listen(echo_server(compression=Compression()))
    async with await compressed_login(place) as socket:
        socket.send(*frames)
        assert (await socket.closed())[0] == 1002


@pytest.mark.parametrize("answer", ["permessage-deflate; unknown", "x-other"])
@pytest.mark.parametrize("asked", [None, Compression()])
async def test_a_server_that_answers_what_was_not_asked_fails_the_connect(answer, asked):
    async def handle(reader, writer):
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n"
            f"Sec-WebSocket-Extensions: {answer}\r\n\r\n".encode()
        )
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = WseClient(f"ws://127.0.0.1:{port}", compression=asked)
        with pytest.raises(WseError) as caught:
            await soon(client.connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
        assert isinstance(caught.value.__cause__, ValueError)
