"""Our client against an independent server, down to the bytes."""

import asyncio
import base64
import hashlib
import json

import pytest
from websockets.asyncio.server import serve as ws_serve

from support.net import BINARY, CLOSE, JSON, PING, PONG, TEXT, TIMEOUT, ClientLog, frame, soon
from wse import Backoff, ClientStatus, ErrorCode, Heartbeat, Limits, WseClient, WseError, WseMsgpack


class Answering:
    """A server of the `websockets` library that welcomes everybody and answers every call with its payload."""

    def __init__(self):
        self.requests = []

    async def handle(self, socket):
        self.requests.append(socket.request)
        self.socket = socket
        await socket.recv()
        await socket.send('["~wse:welcome",null,null]')
        async for message in socket:
            name, payload, stamp = json.loads(message)
            await socket.send(json.dumps(["~wse:response" if stamp else name, payload, stamp]))

    def serve(self, **options):
        options = {"subprotocols": [JSON], "max_size": None, "compression": None, **options}
        return ws_serve(self.handle, "127.0.0.1", 0, **options)


def url_of(server):
    return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


# The client masks messages of up to 2048 bytes itself.
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 100, 125, 126, 127, 2047, 2048, 2049, 65535, 65536, 700_000])
async def test_messages_of_every_length_form_are_masked_and_travel_both_ways(size):
    payload = "x" * max(0, size - len('["e","",1]'))
    async with Answering().serve() as server, WseClient(url_of(server)) as client:
        assert await soon(client.call("e", payload)) == payload
        assert await soon(client.call("e", payload + "é")) == payload + "é"


async def test_a_burst_of_calls_of_all_sizes_is_answered_each_with_its_own():
    async with Answering().serve() as server, WseClient(url_of(server)) as client:
        sizes = [10, 5000, 1, 3000, 40, 100_000, 7] * 10
        results = await soon(asyncio.gather(*(client.call("e", "x" * size) for size in sizes)))
        assert [len(result) for result in results] == sizes


async def test_the_client_s_headers_and_query_reach_the_server():
    other = Answering()
    async with other.serve() as server:
        url = url_of(server) + "path?token=a%20b"
        async with WseClient(url, headers={"X-Token": "1", "Cookie": "a=b"}):
            (request,) = other.requests
            assert request.path == "/path?token=a%20b"
            assert request.headers["X-Token"] == "1"
            assert request.headers["Cookie"] == "a=b"
            assert request.headers["Sec-WebSocket-Protocol"] == JSON


async def test_the_client_answers_pings():
    other = Answering()
    async with other.serve() as server, WseClient(url_of(server)):
        assert await soon(await other.socket.ping(b"are you there")) >= 0


async def test_a_server_that_compresses_only_when_asked_is_not_asked():
    other = Answering()
    async with other.serve(compression="deflate") as server, WseClient(url_of(server)) as client:
        assert "Sec-WebSocket-Extensions" not in other.requests[0].headers
        assert await soon(client.call("e", "x" * 1000)) == "x" * 1000


async def test_a_server_without_our_subprotocol_that_closes_fails_the_connect():
    async def handle(socket):
        await socket.close(1000, "wse.protocol-error")

    async with ws_serve(handle, "127.0.0.1", 0) as server:
        with pytest.raises(WseError) as caught:
            await soon(WseClient(url_of(server)).connect())
    assert caught.value.code == ErrorCode.CONNECTION_CLOSED
    assert caught.value.details == {"code": 1000, "reason": "wse.protocol-error"}


@pytest.mark.parametrize("status", [200, 301, 401, 404, 500])
async def test_an_http_answer_other_than_an_upgrade_is_a_ws_error(status):
    def answer(connection, request):
        return connection.respond(status, "no\n")

    async with ws_serve(lambda socket: None, "127.0.0.1", 0, process_request=answer) as server:
        with pytest.raises(WseError) as caught:
            await soon(WseClient(url_of(server)).connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert caught.value.__cause__ is not None


async def test_nobody_listening_is_a_ws_error(unused_port):
    client = WseClient(f"ws://127.0.0.1:{unused_port}")
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert isinstance(caught.value.__cause__, OSError)
    assert client.status is ClientStatus.OFFLINE


@pytest.fixture
async def raw_server():
    """`await raw_server(handle)` gives the URL of a TCP server, for bytes that no server would send."""
    servers = []
    tasks = []

    async def start(handle):
        async def connected(reader, writer):
            tasks.append(asyncio.current_task())
            try:
                await handle(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        return url_of(server)

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for server in servers:
        server.close()
        await server.wait_closed()


async def upgrade(reader, writer, *frames, when=None, protocol=JSON):
    """Answer the upgrade (`when` that happens), and send these frames in the same segment."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if when is not None:
        await when()
    key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )
    writer.write(answer.encode() + b"".join(frames))


def from_server(opcode, payload=b"", **options):
    return frame(opcode, payload, mask=False, **options)


WELCOME = from_server(TEXT, '["~wse:welcome","w",null]')


async def read_frame(reader):
    first, second = await reader.readexactly(2)
    assert first & 0xF0 == 0x80
    assert second & 0x80, "the client does not mask"
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    key = await reader.readexactly(4)
    masked = await reader.readexactly(size)
    return first & 0x0F, bytes(byte ^ key[i % 4] for i, byte in enumerate(masked)), key


async def until_closed(reader, writer):
    """Read on, and answer the client's close."""
    while (got := await read_frame(reader))[0] != CLOSE:
        pass
    writer.write(from_server(CLOSE, got[1]))
    await writer.drain()


async def test_what_the_server_sends_with_its_upgrade_is_not_lost(raw_server):
    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME, from_server(TEXT, '["early",1,null]'))
        await until_closed(reader, writer)

    client = WseClient(await raw_server(handle))
    log = ClientLog(client)
    assert await soon(client.connect()) == "w"
    assert await log.until("ignored") == ("ignored", "early", 1, None)
    await soon(client.close())


async def test_every_frame_has_a_mask_of_its_own(raw_server):
    frames = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME)
        frames.set_result([await read_frame(reader) for _ in range(4)])
        await until_closed(reader, writer)

    client = WseClient(await raw_server(handle))
    await soon(client.connect())
    for n in range(3):
        client.send("n", n)
    hi, *messages = await soon(frames)
    assert json.loads(hi[1])[0] == "~wse:hi"
    assert [json.loads(message[1])[:2] for message in messages] == [["n", 0], ["n", 1], ["n", 2]]
    assert len({key for _, _, key in (hi, *messages)}) == 4
    await soon(client.close())


async def test_an_empty_close_frame_is_answered_by_an_empty_one(raw_server):
    answer = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME, from_server(CLOSE))
        await read_frame(reader)
        answer.set_result(await read_frame(reader))

    client = WseClient(await raw_server(handle))
    log = ClientLog(client)
    await soon(client.connect())
    opcode, payload, _ = await soon(answer)
    assert (opcode, payload) == (CLOSE, b"")
    assert await log.until("closed") == ("closed", 1005, "")
    await soon(client.close())


async def test_binary_messages_are_masked_too(raw_server):
    protocol = WseMsgpack()
    heard = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        await upgrade(reader, writer, from_server(BINARY, protocol.pack("~wse:welcome", 1)), protocol=protocol.name)
        await read_frame(reader)
        heard.set_result([await read_frame(reader), await read_frame(reader)])
        await until_closed(reader, writer)

    client = WseClient(await raw_server(handle), protocol=protocol)
    await soon(client.connect())
    client.send("small", b"\x00\xff")
    client.send("large", b"\x00\xff" * 2000)
    (small, data, _), (large, more, _) = await soon(heard)
    assert (small, large) == (BINARY, BINARY)
    assert protocol.unpack(data) == ("small", b"\x00\xff", None)
    assert protocol.unpack(more) == ("large", b"\x00\xff" * 2000, None)
    await soon(client.close())


BROKEN = {
    "a reserved bit": ([from_server(TEXT, "[1]", rsv=4)], 1002),
    "a masked frame": ([frame(TEXT, "[1]")], 1002),
    "an unknown opcode": ([from_server(3)], 1002),
    "broken text": ([from_server(TEXT, b"\xff")], 1007),
    "broken text in fragments": ([from_server(TEXT, b"\xc3", fin=False), from_server(0, b"\x28")], 1007),
    "a continuation of nothing": ([from_server(0, "x")], 1002),
    "a frame above the limit": ([from_server(TEXT, "x" * 1001)], 1009),
    "fragments above the limit": ([from_server(TEXT, "x" * 900, fin=False), from_server(0, "x" * 900)], 1009),
    "a close code that may not travel": ([from_server(CLOSE, b"\x03\xed")], 1002),
}


@pytest.mark.parametrize(("frames", "code"), BROKEN.values(), ids=BROKEN)
async def test_broken_frames_from_a_server_close_the_connection_and_are_reported(raw_server, frames, code):
    closed = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME)
        await read_frame(reader)
        writer.write(b"".join(frames))
        opcode, payload, _ = await read_frame(reader)
        closed.set_result((opcode, int.from_bytes(payload[:2], "big")))
        writer.write(from_server(CLOSE, payload[:2]))
        await writer.drain()

    client = WseClient(await raw_server(handle), limits=Limits(message_size=1000))
    log = ClientLog(client)
    await soon(client.connect())
    assert await soon(closed) == (CLOSE, code)
    assert (await log.until("closed"))[1] == code
    (error,) = log.all("error")[0]
    assert len(log.all("error")) == 1
    assert error.code == (ErrorCode.LIMIT_EXCEEDED if code == 1009 else ErrorCode.PROTOCOL_VIOLATION)
    assert error.details["from"] == "server"
    assert client.status is ClientStatus.OFFLINE


async def test_the_client_s_pong_carries_the_ping_s_payload(raw_server):
    pong = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME, from_server(PING, b"1234"))
        await read_frame(reader)
        pong.set_result((await read_frame(reader))[:2])
        await until_closed(reader, writer)

    client = WseClient(await raw_server(handle))
    await soon(client.connect())
    assert await soon(pong) == (PONG, b"1234")
    await soon(client.close())


async def test_a_server_that_never_answers_the_upgrade_is_a_ws_error(raw_server):
    async def handle(reader, writer):
        await reader.read()

    client = WseClient(await raw_server(handle), timeout=0.02)
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert client.status is ClientStatus.OFFLINE


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101 Yes\r\n\r\n"])
async def test_a_server_that_speaks_no_http_is_a_ws_error(raw_server, answer):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    client = WseClient(await raw_server(handle))
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


async def test_a_connect_that_was_cancelled_is_not_completed_by_a_late_answer(raw_server):
    asked, answer = asyncio.Event(), asyncio.Event()
    rest = asyncio.get_running_loop().create_future()

    async def handle(reader, writer):
        async def late():
            asked.set()
            await answer.wait()

        await upgrade(reader, writer, WELCOME, when=late)
        rest.set_result(await reader.read())

    client = WseClient(await raw_server(handle))
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    await soon(asked.wait())
    connecting.cancel()
    await asyncio.wait([connecting])
    assert connecting.cancelled()
    assert client.status is ClientStatus.OFFLINE
    answer.set()
    assert await soon(rest) == b""  # no hi, and the socket is closed
    assert log.all("connected") == []


async def test_a_server_that_does_not_answer_the_close_is_cut(raw_server, monkeypatch):
    monkeypatch.setattr("wse.transports.picows.link.CLOSE_TIMEOUT", 0.02)

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME)
        await reader.read()

    client = WseClient(await raw_server(handle))
    log = ClientLog(client)
    await soon(client.connect())
    await soon(client.close())
    assert log.all("closed") == [(1000, "wse.by-client")]


async def test_a_client_finds_that_its_server_has_gone_and_comes_back(raw_server):
    connections = asyncio.Queue()

    async def handle(reader, writer):
        await upgrade(reader, writer, WELCOME)
        connections.put_nowait(writer)
        await read_frame(reader)
        if connections.qsize() > 1:
            await until_closed(reader, writer)
        else:
            await asyncio.Event().wait()  # never a byte again

    client = WseClient(
        await raw_server(handle),
        reconnect=True,
        backoff=Backoff(base=0.01),
        heartbeat=Heartbeat(interval=0.1, timeout=0.1),
    )
    log = ClientLog(client)
    await soon(client.connect())
    assert await log.until("closed") == ("closed", 1006, "")
    await log.until("updated", ClientStatus.RE_CONNECTING)
    async with asyncio.timeout(TIMEOUT):
        while len(log.all("ready")) < 2:
            await asyncio.sleep(0.001)
    await soon(client.close())
