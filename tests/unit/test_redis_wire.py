"""The socket of a connection of redis-py: what comes of the replies that the engine sends."""

from __future__ import annotations

import argparse

import pytest
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from wse.brokers.redis.wire import Wire

SENT = b"+PONG\r\n:1\r\n$5\r\nhello\r\n*3\r\n$7\r\nmessage\r\n$3\r\nall\r\n$4\r\n\r\n\r\n\r\n$-1\r\n"
REPLIES = [b"PONG", 1, b"hello", [b"message", b"all", b"\r\n\r\n"], None]


class Transport:
    """Of a socket that takes everything."""

    def __init__(self):
        self.protocol = None
        self.waiting = 0
        self.aborted = False

    def set_protocol(self, protocol):
        self.protocol = protocol

    def write(self, data): ...

    def get_write_buffer_size(self):
        return self.waiting

    def abort(self):
        self.aborted = True


class Connection:
    """A connection of redis-py that is open."""

    def __init__(self):
        self._writer = argparse.Namespace(transport=Transport())
        self.ended = False

    async def disconnect(self, *, nowait):
        self.ended = nowait


class Received:
    def __init__(self):
        self.replies = []
        self.lost = []
        self.connection = Connection()
        self.transport = self.connection._writer.transport
        self.wire = Wire(self.connection, self.replies.append, self.lost.append)
        self.protocol = self.transport.protocol


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_each_reply_is_handed_on_wherever_the_bytes_are_split(size):
    received = Received()
    for start in range(0, len(SENT), size):
        received.protocol.data_received(SENT[start : start + size])
    assert received.replies == REPLIES


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-NOSCRIPT No matching script.\r\n", NoScriptError),
        (b"-READONLY You can't write against a read only replica.\r\n", ReadOnlyError),
        (b"-OOM command not allowed\r\n", ResponseError),
    ],
)
def test_errors_are_those_of_redis_py(line, kind):
    received = Received()
    received.protocol.data_received(line)
    (error,) = received.replies
    assert type(error) is kind
    assert str(error) == line[1:-2].decode()


def test_the_end_of_the_connection_is_told_with_its_cause():
    received = Received()
    cause = OSError("broken")
    received.protocol.connection_lost(cause)
    received.protocol.connection_lost(None)
    assert received.lost[0] is cause
    assert isinstance(received.lost[1], ConnectionError)


@pytest.mark.parametrize("waiting", [0, 100])
async def test_closing_does_not_wait_for_an_engine_that_takes_nothing(waiting):
    received = Received()
    received.transport.waiting = waiting
    await received.wire.close()
    assert received.connection.ended
    assert received.transport.aborted == bool(waiting)
