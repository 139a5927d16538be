"""Parts of the picows transport by themselves; a server on it is in the contract and integration suites."""

import json
import tracemalloc

import pytest
from websockets.asyncio.server import serve as ws_serve
from websockets.frames import Frame
from websockets.streams import StreamReader

from support.core import FakeScheduler
from support.net import JSON, ClientLog, ServerLog, accept_all, make_server, soon
from wse import ErrorCode, Limits, Protocol, WseClient, WseError
from wse.core.closing import may_travel
from wse.transports.picows.assembly import Assembly
from wse.transports.picows.frames import masked_frame, server_frame
from wse.transports.picows.link import PicowsLink, Turn

SIZES = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 2048, 65535, 65536, 100_000]


def parse(data, mask):
    """By the `websockets` library."""
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=mask)
    with pytest.raises(StopIteration) as result:
        next(parsing)
    assert reader.buffer == b"", "the frame is longer than it says"
    return result.value.value


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [0x81, 0x82])
def test_a_server_s_frame_says_what_it_holds(size, first):
    payload = bytes(i % 251 for i in range(size))
    frame = parse(server_frame(payload, first), mask=False)
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (first & 0x0F, True, payload)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [0x81, 0x82])
def test_a_client_s_frame_is_masked_and_says_what_it_holds(size, first):
    payload = bytes(i % 251 for i in range(size))
    data = masked_frame(payload, first)
    frame = parse(data, mask=True)
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (first & 0x0F, True, payload)


def test_masks_differ_and_come_without_end():
    masks = {masked_frame(b"", 0x81)[2:6] for _ in range(5000)}
    assert len(masks) > 4900


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_codes_that_a_close_frame_may_carry(code):
    assert may_travel(code)


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535])
def test_codes_that_a_close_frame_may_not_carry(code):
    assert not may_travel(code)


class FakeSocket:
    """The transport of picows and of asyncio, of a peer that takes what the test says."""

    is_close_frame_sent = False
    disconnected = False
    waiting = 100_000

    def __init__(self):
        self.underlying_transport = self

    def set_write_buffer_limits(self, high):
        pass

    def get_write_buffer_size(self):
        return self.waiting

    def get_extra_info(self, name):
        return None

    def write(self, data):
        pass

    def send_ping(self):
        pass

    def send_close(self, code, reason):
        pass

    def disconnect(self, graceful):
        self.disconnected = True


def closing_link():
    """A link that a ping has been sent on and that closes, its socket, and its clock."""
    clock, sock = FakeScheduler(), FakeSocket()
    link = PicowsLink(Turn(clock), Limits(), lambda link: None)
    link.on_ws_connected(sock)
    link.ping()
    sock.waiting -= 1000
    link.close(1000, "")
    return link, sock, clock


def test_a_slow_peer_is_not_cut_because_the_heartbeat_has_just_looked_as_well():
    link, sock, clock = closing_link()
    for _ in range(59):
        clock.advance(0.9)
        sock.waiting -= 1000
        assert link.silence() < 0.1
        clock.advance(0.1)
        assert not sock.disconnected
    clock.advance(1)
    assert sock.disconnected  # after a minute, whatever it takes


def test_a_slow_peer_is_alive_for_the_heartbeat_when_the_close_has_just_begun():
    link, _, _ = closing_link()
    assert link.silence() < 0.1


@pytest.mark.parametrize("looks", [False, True])
def test_a_peer_that_takes_nothing_is_cut_in_time_whoever_looks(looks):
    link, sock, clock = closing_link()
    clock.advance(2)
    if looks:
        link.silence()
    clock.advance(2.9)
    assert not sock.disconnected
    clock.advance(0.2)
    assert sock.disconnected


class TextProtocol(Protocol):
    """One that packs into `str`, as a user's own may."""

    name = JSON

    def pack(self, type, payload=None, stamp=None) -> str:
        return json.dumps([type, payload, stamp], ensure_ascii=False)

    def unpack(self, data):
        message = json.loads(data if isinstance(data, str) else bytes(data))
        return message[0], message[1], message[2]


async def test_a_protocol_of_str_travels_in_text_messages_both_ways(listen):
    server = make_server(protocol=TextProtocol())
    server.register("echo", lambda conn, payload: payload)
    place = await listen(server)
    client = await place.connect("ann", protocol=TextProtocol())
    peer = await place.peer()
    await peer.login("ben")
    log = ClientLog(client)
    for size in (1, 200, 3000, 70_000):
        assert await soon(client.call("echo", "é" * size)) == "é" * size
        server.broadcast("news", "é" * size)
        assert await log.until("ignored", "news", "é" * size, None)
        data = await peer.receive()
        assert isinstance(data, str)
        assert json.loads(data) == ["news", "é" * size, None]


async def test_abort_cuts_the_socket_and_is_1006_at_both_ends(listen):
    server = make_server()
    log = ServerLog(server)
    place = await listen(server)
    client = await place.connect("ann")
    heard = ClientLog(client)
    conn = await log.conn("ann")
    link = conn._session.link
    link.abort()
    link.abort()
    conn.send("late")
    server.broadcast("late")
    link.close(1000, "late")
    assert await heard.until("closed") == ("closed", 1006, "")
    assert await log.until("disconnected") == ("disconnected", "ann", 1006, "")
    assert heard.all("ignored") == []


async def test_what_a_closed_link_is_told_to_write_goes_nowhere(listen):
    server = make_server()
    log = ServerLog(server)
    place = await listen(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    link = conn._session.link
    link.close(4001, "bye")
    link.write("[1]")
    link.write(b"[1]")
    link.write_utf8(b"[1]")
    server.broadcast("late")
    with pytest.raises(ConnectionError):
        await peer.receive()
    assert await peer.closed() == (4001, "bye")


async def test_buffered_counts_what_waits_for_the_end_of_the_turn(listen):
    server = make_server()
    log = ServerLog(server)
    place = await listen(server)
    client = await place.connect("ann")
    heard = ClientLog(client)
    conn = await log.conn("ann")
    assert conn._session.link.buffered == 0
    conn.send("n", "x" * 1000)
    assert 1000 < conn._session.link.buffered < 1100
    await heard.until("ignored")
    assert conn._session.link.buffered == 0
    assert conn._session.link.remote_addr == "127.0.0.1"


async def test_an_extension_that_was_not_offered_is_a_ws_error():
    def answer(connection, request, response):
        response.headers["Sec-WebSocket-Extensions"] = "x-unheard-of"
        return response

    async def handle(socket):
        await socket.wait_closed()

    async with ws_serve(handle, "127.0.0.1", 0, subprotocols=[JSON], process_response=answer) as server:
        client = WseClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(WseError) as caught:
            await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


async def test_ipv6_addresses_are_served_and_reported():
    server = make_server(accept_all, host="::1")
    try:
        await server.start()
    except OSError:
        pytest.skip("no IPv6 here")
    log = ServerLog(server)
    async with WseClient(server.url, identity="ann"):
        assert (await log.conn("ann")).remote_addr == "::1"
    await server.close()


def test_fragments_without_end_take_no_memory_but_for_their_bytes():
    assembly = Assembly(text=True, limit=1000, deflate=None)
    tracemalloc.start()
    try:
        for _ in range(50_000):
            assembly.add(b"", last=False)
        for _ in range(1000):
            assembly.add(b"x", last=False)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
    assert assembly.add(b"", last=True) == "x" * 1000
