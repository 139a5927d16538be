"""RFC 6455 over a real socket: how the listener handles legal and illegal frames."""

import asyncio
import json
import struct
import tracemalloc

import pytest

from support.net import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    TIMEOUT,
    RawSocket,
    ServerLog,
    close_payload,
    frame,
    make_server,
    text,
)
from wse import ErrorCode, Limits


@pytest.fixture
async def scene(listen):
    """A server with an echo procedure, and a log of its events."""

    class Scene:
        server = make_server()
        log = ServerLog(server)

        async def check(self):
            """Other clients are still served."""
            other = await self.place.connect("other")
            assert await other.call("echo", "still") == "still"

    scene = Scene()
    scene.server.register("echo", lambda conn, payload: payload)
    scene.place = await listen(scene.server)
    return scene


async def assert_violated(scene, socket, code):
    """The connection is closed with that code and reported, and other clients are not affected."""
    assert (await socket.closed())[0] == code
    socket.send(frame(CLOSE, close_payload(code)))
    await socket.eof()
    await scene.log.until("disconnected", "ann")
    (error, conn), *more = scene.log.all("error")
    assert more == []
    assert error.code == ErrorCode.PROTOCOL_VIOLATION
    assert error.details["from"] == f"ann#{conn.conn_id}"
    assert error.details["close"][0] == code
    await scene.check()


async def test_calls_pipelined_in_one_segment_are_answered_in_order(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(*(text("echo", n, n) for n in range(1, 33)))
        assert [await socket.hear() for _ in range(32)] == [["~wse:response", n, n] for n in range(1, 33)]


async def test_a_text_frame_followed_by_a_ping_in_one_segment_is_answered_at_once(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), frame(PING, b"are you there"))
        assert await socket.hear() == ["~wse:response", 1, 1]
        assert await socket.frame() == (PONG, b"are you there")


async def test_pongs_keep_their_place_among_the_answers(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(
            frame(PING, b"0"),
            text("echo", 1, 1),
            frame(PING, b"1"),
            text("echo", 2, 2),
            text("echo", 3, 3),
            frame(PING, b""),
        )
        heard = [await socket.frame() for _ in range(6)]
        assert [opcode for opcode, _ in heard] == [PONG, TEXT, PONG, TEXT, TEXT, PONG]
        assert [data for opcode, data in heard if opcode == PONG] == [b"0", b"1", b""]
        assert [json.loads(data)[1] for opcode, data in heard if opcode == TEXT] == [1, 2, 3]


async def test_a_text_frame_followed_by_a_pong_in_one_segment_is_answered_at_once(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), frame(PONG, b"unasked"))
        assert await socket.hear() == ["~wse:response", 1, 1]


async def test_a_text_frame_followed_by_half_a_frame_is_answered_at_once(scene):
    async with RawSocket.user(scene.place.url) as socket:
        second = text("echo", "x" * 300, 2)
        for cut in (1, 3, 5, 100):
            socket.send(text("echo", 1, 1), second[:cut])
            assert await socket.hear() == ["~wse:response", 1, 1]
            socket.send(second[cut:])
            assert await socket.hear() == ["~wse:response", "x" * 300, 2]


async def test_a_frame_may_come_byte_by_byte(scene):
    async with RawSocket.user(scene.place.url) as socket:
        for byte in text("echo", "slow", 1):
            socket.send(bytes([byte]))
            await socket.writer.drain()
        assert await socket.hear() == ["~wse:response", "slow", 1]


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537, 300_000])
async def test_messages_of_every_length_form_travel_both_ways(scene, size):
    message = '["echo","' + "x" * max(size - 13, 0) + '",1]'
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(TEXT, message))
        assert await socket.hear() == ["~wse:response", "x" * max(size - 13, 0), 1]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536])
async def test_frames_at_the_boundaries_have_the_shortest_length_form(scene, size):
    overhead = len('["n","",null]')
    async with RawSocket.user(scene.place.url) as socket:
        scene.server.broadcast("n", "x" * (size - overhead))
        scene.server.clients["ann"].send("n", "é" + "x" * (size - overhead - 2))
        for _ in range(2):
            first, second = await socket.reader.readexactly(2)
            assert first == 0x80 | TEXT
            length = {125: b"", 126: struct.pack("!H", 126), 65535: b"\xff\xff", 65536: struct.pack("!Q", 65536)}[size]
            assert second == {125: 125, 126: 126, 65535: 126, 65536: 127}[size]
            assert await socket.reader.readexactly(len(length)) == length
            payload = await socket.reader.readexactly(size)
            assert json.loads(payload)[0] == "n"


# Fragments.


async def test_a_fragmented_message_is_one_message_even_in_the_middle_of_a_character(scene):
    data = '["echo","naïve ☕ 🐍",1]'.encode()
    async with RawSocket.user(scene.place.url) as socket:
        for size in (1, 2, 3, 7):
            parts = [data[i : i + size] for i in range(0, len(data), size)]
            frames = [
                frame(TEXT if i == 0 else CONTINUATION, part, fin=i == len(parts) - 1) for i, part in enumerate(parts)
            ]
            socket.send(*frames)
            assert await socket.hear() == ["~wse:response", "naïve ☕ 🐍", 1]


async def test_fragments_may_be_empty_and_interleave_with_control_frames(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(
            frame(TEXT, fin=False),
            frame(CONTINUATION, '["echo",', fin=False),
            frame(PING, b"between"),
            frame(CONTINUATION, fin=False),
            frame(PONG),
            frame(CONTINUATION, "7,1]", fin=False),
            frame(CONTINUATION),
        )
        assert await socket.frame() == (PONG, b"between")
        assert await socket.hear() == ["~wse:response", 7, 1]


async def test_a_fragmented_binary_message_is_one_message(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(BINARY, '["echo",', fin=False), frame(CONTINUATION, "7,1]"))
        assert await socket.hear() == ["~wse:response", 7, 1]


async def test_fragments_that_are_together_too_large_are_1009(listen):
    server = make_server(limits=Limits(message_size=1000))
    log = ServerLog(server)
    place = await listen(server)
    async with RawSocket.user(place.url) as socket:
        socket.send(frame(TEXT, b"x" * 600, fin=False), frame(CONTINUATION, b"x" * 401, fin=False))
        code, _ = await socket.closed()
        assert code == 1009
        # Everything that the peer sends afterwards is dropped.
        socket.send(frame(CONTINUATION, b"x" * 600, fin=False), frame(CONTINUATION, b"x"), text("chat"))
        socket.send(frame(CLOSE, close_payload(1009)))
        await socket.eof()
    await log.until("disconnected")
    assert len(log.all("error")) == 1
    assert log.all("ignored") == []


async def test_one_frame_that_is_too_large_is_1009_before_it_has_arrived(listen):
    server = make_server(limits=Limits(message_size=1000))
    log = ServerLog(server)
    place = await listen(server)
    async with RawSocket.user(place.url) as socket:
        socket.send(frame(TEXT, b"x" * 500_000)[:100])
        code, _ = await socket.closed()
        assert code == 1009
        await socket.eof()
    error = await log.error()
    assert error.details["close"][0] == 1009


# Violations of RFC 6455.


@pytest.mark.parametrize(
    "data",
    [b'["echo","\xff",1]', b'["echo","\xed\xa0\x80",1]', b'["echo","\xf5\x80\x80\x80",1]', b'["echo","\xc3'],
    ids=["a byte of no character", "a surrogate", "beyond Unicode", "half a character"],
)
@pytest.mark.parametrize("fragmented", [False, True])
async def test_text_that_is_not_utf_8_is_1007(scene, data, fragmented):
    async with RawSocket.user(scene.place.url) as socket:
        if fragmented:
            socket.send(*(frame(CONTINUATION if i else TEXT, data[i : i + 1], fin=False) for i in range(len(data))))
            socket.send(frame(CONTINUATION))
        else:
            socket.send(frame(TEXT, data))
        await assert_violated(scene, socket, 1007)


@pytest.mark.parametrize("rsv", [1, 2, 4, 7])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
async def test_reserved_bits_are_1002(scene, rsv, opcode):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(opcode, close_payload(1000) if opcode == CLOSE else "x", rsv=rsv))
        await assert_violated(scene, socket, 1002)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
async def test_a_close_code_that_may_not_travel_is_1002(scene, code):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(CLOSE, close_payload(code)))
        await assert_violated(scene, socket, 1002)


BROKEN = {
    "a continuation of nothing": ([frame(CONTINUATION, "x")], 1002),
    "a last continuation of nothing": ([frame(CONTINUATION, "x", fin=False)], 1002),
    "a message inside a fragmented one": ([frame(TEXT, "x", fin=False), frame(TEXT, "x")], 1002),
    "a binary message inside a fragmented one": ([frame(BINARY, "x", fin=False), frame(BINARY, "x", fin=False)], 1002),
    "an unknown opcode": ([frame(3, "x")], 1002),
    "an unknown control opcode": ([frame(11, "x")], 1002),
    "a fragmented ping": ([frame(PING, "x", fin=False)], 1002),
    "a ping of 126 bytes": ([frame(PING, "x" * 126)], 1002),
    "a close of one byte": ([frame(CLOSE, b"\x03")], 1002),
    "a close whose reason is not UTF-8": ([frame(CLOSE, close_payload(1000) + b"\xff")], 1007),
    "an unmasked frame": ([frame(TEXT, '["chat"]', mask=False)], 1002),
}


@pytest.mark.parametrize(("frames", "code"), BROKEN.values(), ids=BROKEN)
async def test_broken_frames_close_only_their_connection(scene, frames, code):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(*frames)
        await assert_violated(scene, socket, code)


async def test_a_valid_call_before_an_invalid_frame_in_one_segment_harms_nobody(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), frame(3, "x"))
        opcode, payload = await socket.frame()
        if opcode == TEXT:  # RFC 6455 allows both: to answer first, or to fail the connection at once
            assert json.loads(payload) == ["~wse:response", 1, 1]
            opcode, payload = await socket.frame()
        assert opcode == CLOSE
        assert struct.unpack("!H", payload[:2]) == (1002,)
        await socket.eof()
    error = await scene.log.error()
    assert error.details["close"][0] == 1002
    await scene.check()


async def test_valid_calls_before_a_frame_that_we_reject_ourselves_are_answered(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), text("echo", 2, 2), frame(TEXT, b"\xff"), text("echo", 3, 3))
        assert await socket.hear() == ["~wse:response", 1, 1]
        assert await socket.hear() == ["~wse:response", 2, 2]
        await assert_violated(scene, socket, 1007)


# Closing.


async def test_a_close_is_answered_and_the_server_closes_the_socket(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(CLOSE, close_payload(4001, "naïve")))
        assert (await socket.closed())[0] == 4001
        await socket.eof()
    assert await scene.log.until("disconnected") == ("disconnected", "ann", 4001, "naïve")
    assert scene.log.all("error") == []


@pytest.mark.parametrize("late", [(), (text("chat", 1), text("echo", 2, 2), frame(PING, b"x"))])
async def test_an_empty_close_is_1005_and_answered_by_an_empty_one(scene, late):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), frame(CLOSE), *late)
        assert await socket.hear() == ["~wse:response", 1, 1]
        assert await socket.frame() == (CLOSE, b"")
        await socket.eof()
    assert scene.log.all("ignored") == []
    assert scene.log.all("error") == []
    assert await scene.log.until("disconnected") == ("disconnected", "ann", 1005, "")


async def test_what_comes_before_a_close_in_one_segment_is_answered(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", 1, 1), text("echo", 2, 2), frame(CLOSE, close_payload(1000)))
        assert [await socket.hear() for _ in range(2)] == [["~wse:response", 1, 1], ["~wse:response", 2, 2]]
        assert await socket.closed() == (1000, "")


@pytest.mark.parametrize(
    "late",
    [text("chat", 1), frame(PING, b"x"), frame(CLOSE, close_payload(4002)), frame(TEXT, b"\xff"), frame(3, "x")],
    ids=["a message", "a ping", "another close", "broken text", "an unknown opcode"],
)
@pytest.mark.parametrize("together", [True, False])
async def test_frames_after_a_close_are_not_heard(scene, late, together):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(CLOSE, close_payload(4001, "bye")), *([late] if together else []))
        assert (await socket.closed())[0] == 4001 if not together else True
        if not together:
            socket.send(late)
        await socket.reader.read()
    assert await scene.log.until("disconnected")
    assert scene.log.all("ignored") == []
    await scene.check()


async def test_a_message_after_a_close_in_one_segment_is_not_heard_nor_reported(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(CLOSE, close_payload(4001, "bye")), text("chat", 1), frame(PING, b"x"))
        assert (await socket.closed())[0] == 4001
        await socket.eof()
    assert await scene.log.until("disconnected") == ("disconnected", "ann", 4001, "bye")
    assert scene.log.all("ignored") == []
    assert scene.log.all("error") == []


async def test_after_our_close_the_peer_s_messages_are_not_heard_and_its_close_ends_it(scene):
    async with RawSocket.user(scene.place.url) as socket:
        conn = await scene.log.conn("ann")
        conn.drop("enough", 4001)
        assert await socket.closed() == (4001, "enough")
        socket.send(text("chat", 1), frame(PING, b"x"), frame(TEXT, b"\xff"))
        socket.send(frame(CLOSE, close_payload(4001)))
        await socket.eof()
    assert scene.log.all("ignored") == []
    assert scene.log.all("error") == []
    assert scene.log.all("disconnected") == [("ann", 4001, "enough")]


async def test_a_peer_that_does_not_answer_our_close_is_cut(scene, monkeypatch):
    monkeypatch.setattr("wse.transports.picows.link.CLOSE_TIMEOUT", 0.02)
    async with RawSocket.user(scene.place.url) as socket:
        conn = await scene.log.conn("ann")
        conn.drop("enough", 4001)
        assert await socket.closed() == (4001, "enough")
        await socket.eof()
    assert scene.log.all("disconnected") == [("ann", 4001, "enough")]


async def test_a_half_closed_socket_is_a_connection_lost(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.writer.write_eof()
        await socket.eof()
    assert await scene.log.until("disconnected") == ("disconnected", "ann", 1006, "")


async def test_a_socket_lost_in_the_middle_of_a_frame_is_1006(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(text("echo", "x" * 1000, 1)[:500])
        await socket.writer.drain()
    assert await scene.log.until("disconnected") == ("disconnected", "ann", 1006, "")
    assert scene.log.all("error") == []
    await scene.check()


async def test_pings_that_nobody_reads_the_answers_to_are_not_queued_and_the_last_is_answered(scene):
    async with RawSocket.user(scene.place.url) as socket:
        conn = await scene.log.conn("ann")
        socket.writer.transport.pause_reading()
        async with asyncio.timeout(TIMEOUT):
            for _ in range(100):
                socket.send(*[frame(PING, b"x" * 125)] * 1000)
                await socket.writer.drain()
        socket.send(frame(PING, b"the last"), text("chat"))
        await scene.log.until("ignored", "ann")
        assert 0 < conn.queued < 300_000  # of 12.7 MB
        socket.writer.transport.resume_reading()
        answers = 1
        while await socket.frame() != (PONG, b"the last"):
            answers += 1
        assert answers < 100_000


async def test_a_message_of_empty_fragments_takes_no_memory(scene):
    async with RawSocket.user(scene.place.url) as socket:
        socket.send(frame(TEXT, '["echo",', fin=False))
        tracemalloc.start()
        try:
            for _ in range(20):
                socket.send(*[frame(CONTINUATION, b"", fin=False)] * 1000, frame(PING, b"received"))
                assert await socket.frame() == (PONG, b"received")
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 100_000
        socket.send(frame(CONTINUATION, "1,1]"))
        assert await socket.hear() == ["~wse:response", 1, 1]
