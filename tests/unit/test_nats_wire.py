"""The socket that WSE shares with nats-py: who gets what the server sends."""

from __future__ import annotations

import asyncio

import pytest

from wse.brokers.nats.hints import _metadata
from wse.brokers.nats.wire import Message, Parser, Wire

HEADER = b"NATS/1.0 503\r\n\r\n"
SENT = [
    b'INFO {"a": "MSG a t1 3"}\r\n',
    b"MSG wse.all t1 5\r\nhello\r\n",
    b"PING\r\n",
    b"MSG other 1 7\r\nMSG a t\r\n",
    b"HMSG wse.all t20 reply 16 18\r\n" + HEADER + b"\r\n\r\n",
    b"MSG box.1 a 0\r\n\r\n",
    b"MSG wse.u.sann t3 answer.to 2\r\nhi\r\n",
    b"HMSG box.2 a 16 16\r\n" + HEADER + b"\r\n",
    b"HMSG box.3 a box 16 18\r\n" + HEADER + b"yo\r\n",
    b"HMSG other 17 16 16\r\n" + HEADER + b"\r\n",
    b"MSG box.4 a box.5 1\r\nx\r\n",
    b"MSG box.5 p7 box.6 4\r\nlate\r\n",  # of a subscription that has ended
    b"HMSG box.5 p7 16 16\r\n" + HEADER + b"\r\n",
    b"+OK\r\n",
]
TOPICS = [(b"wse.all", b"hello"), (b"wse.all", b"\r\n"), (b"wse.u.sann", b"hi")]
ANSWERS = [
    Message("box.1", "", b"", b""),
    Message("box.2", "", HEADER, b""),
    Message("box.3", "box", HEADER, b"yo"),
    Message("box.4", "box.5", b"", b"x"),
]
LIBRARY = b"".join(part for part in SENT if b" t" not in part[:16] and b" a " not in part[:16] and b" p7 " not in part)


class Received:
    """A parser, and what came of what it was given."""

    def __init__(self):
        self.topics = []
        self.answers = []
        wire = Wire(lambda subject, data: self.topics.append((subject, data)), lambda: None)
        wire.listeners[b"a"] = self.answers.append
        self.reader = asyncio.StreamReader()
        self.parser = Parser(wire, self.reader)

    async def check(self):
        self.parser.eof_received()
        assert await self.reader.read() == LIBRARY
        assert self.topics == TOPICS
        assert self.answers == ANSWERS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 30, 1000])
async def test_each_gets_its_own_wherever_the_bytes_are_split(size):
    received = Received()
    data = b"".join(SENT)
    for start in range(0, len(data), size):
        received.parser.data_received(data[start : start + size])
    await received.check()


async def test_each_gets_its_own_at_every_split():
    data = b"".join(SENT)
    for split in range(len(data)):
        received = Received()
        received.parser.data_received(data[:split])
        received.parser.data_received(data[split:])
        await received.check()


async def test_the_library_gets_its_own_before_what_follows():
    received = Received()
    received.parser.data_received(b"PING\r\nMSG wse.all t1 5\r\nhel")
    assert await received.reader.readline() == b"PING\r\n"
    assert received.topics == []
    received.parser.data_received(b"lo\r\n")
    assert received.topics == [(b"wse.all", b"hello")]


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.KV_wse.consumer.1.17.3.1764300000000000000.42",
        "$JS.ACK._.hash.KV_wse.consumer.1.17.3.1764300000000000000.42",
        "$JS.ACK.hub.hash.KV_wse.consumer.1.17.3.1764300000000000000.42.token",
    ],
)
def test_both_forms_of_what_a_consumer_says_of_a_message_are_read(reply):
    assert _metadata(reply) == (17, 42)
