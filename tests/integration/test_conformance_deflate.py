"""RFC 7692, rule by rule: what either of our transports must make of compressed messages, legal and not.

The rows are scripts as in `test_conformance.py`.
"""

import random
import zlib

import pytest

from support.net import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from support.wire import SIDES, Failed, Got, Send, code, each_byte, echoed, fragments, short
from wse import Compression, Limits

LIMIT = 70_000
GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"


def deflated(data, level=6, flush=zlib.Z_SYNC_FLUSH):
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (deflater.compress(data) + deflater.flush(flush)).removesuffix(b"\x00\x00\xff\xff")


HELLO = bytes.fromhex("f248cdc9c90700")
LONG = b"all work and no play makes jack a dull boy " * 100
NOISE = random.Random(0).randbytes(5000)
"""Does not get smaller."""


def compressed(kind, *parts):
    """A message in these parts; the first says that it is compressed (RFC 7692, 6.1)."""
    first, *rest = fragments(kind, *parts)
    return [Send(first.opcode, first.payload, fin=first.fin, rsv=4), *rest]


DEFLATE = {
    "the example: one block": [*compressed(TEXT, HELLO), Got(TEXT, b"Hello")],
    "the example: one block in two fragments": [*compressed(TEXT, HELLO[:3], HELLO[3:]), Got(TEXT, b"Hello")],
    "the example: no compression": [*compressed(TEXT, bytes.fromhex("000500faff48656c6c6f00")), Got(TEXT, b"Hello")],
    "the example: a final block": [*compressed(TEXT, bytes.fromhex("f348cdc9c9070000")), Got(TEXT, b"Hello")],
    "the example: two blocks": [*compressed(TEXT, bytes.fromhex("f2480500 0000ffff cac9c90700")), Got(TEXT, b"Hello")],
    "an empty message": [*compressed(TEXT, b"\x00"), Got(TEXT)],
    "a final block without its padding": [*compressed(TEXT, HELLO.replace(b"\xf2", b"\xf3")), Got(TEXT, b"Hello")],
    "in fragments of one byte": [*compressed(BINARY, *each_byte(HELLO)), Got(BINARY, b"Hello")],
    "with empty fragments": [*compressed(BINARY, b"", HELLO, b""), Got(BINARY, b"Hello")],
    "a ping between its fragments": [
        *(Send(TEXT, HELLO[:2], fin=False, rsv=4), Send(PING, b"p"), Send(CONTINUATION, HELLO[2:])),
        *(Got(PONG, b"p"), Got(TEXT, b"Hello")),
    ],
    "uncompressed": echoed(TEXT, b"Hello"),
    "uncompressed in fragments": [*fragments(TEXT, b"a", b"b"), Got(TEXT, b"ab")],
    "compressed and not, in turn": [
        *(*compressed(TEXT, HELLO), Send(TEXT, b"plain"), *compressed(BINARY, HELLO)),
        *(Got(TEXT, b"Hello"), Got(TEXT, b"plain"), Got(BINARY, b"Hello")),
    ],
    "a character in two fragments": [
        *compressed(TEXT, *(lambda data: (data[:4], data[4:]))(deflated(GREEK))),
        Got(TEXT, GREEK),
    ],
    "long enough to be compressed": [Send(TEXT, LONG), Got(TEXT, LONG)],
    "long and incompressible": [*compressed(BINARY, deflated(NOISE)), Got(BINARY, NOISE)],
    "not deflate": [*compressed(TEXT, b"\xff\xff\xff"), Failed(1002)],
    "more after a final block": [*compressed(TEXT, deflated(b"a", flush=zlib.Z_FINISH) + HELLO), Failed(1002)],
    "text that is not UTF-8": [*compressed(TEXT, deflated(b"a\xff")), Failed(1007)],
    "text that ends too early": [*compressed(TEXT, deflated(b"\xe2\x98")), Failed(1007)],
    "binary that is not UTF-8": [*compressed(BINARY, deflated(b"\xff")), Got(BINARY, b"\xff")],
    "a bomb": [*compressed(TEXT, deflated(b" " * 10_000_000, 9)), Failed(1009)],
    "the limit": [*compressed(BINARY, deflated(b" " * LIMIT)), Got(BINARY, b" " * LIMIT)],
    "one byte above the limit": [*compressed(BINARY, deflated(b" " * (LIMIT + 1))), Failed(1009)],
    "the marking on a continuation": [
        *(Send(TEXT, HELLO[:2], fin=False, rsv=4), Send(CONTINUATION, HELLO[2:], rsv=4)),
        Failed(1002),
    ],
    "the marking on a continuation of an uncompressed message": [
        *(Send(TEXT, b"a", fin=False), Send(CONTINUATION, b"b", rsv=4)),
        Failed(1002),
    ],
    "a fragmented message inside": [*compressed(TEXT, HELLO[:2], b"")[:-1], *compressed(TEXT, HELLO), Failed(1002)],
}
DEFLATE |= {
    f"reserved bits {rsv:03b} on opcode {opcode}": [Send(opcode, HELLO, rsv=rsv), Failed(1002)]
    for opcode in (TEXT, BINARY)
    for rsv in (1, 2, 3, 5, 6, 7)
}
DEFLATE |= {
    f"a compressed control frame {opcode}": [
        Send(opcode, code(1000) if opcode == CLOSE else HELLO, rsv=4),
        Failed(1002),
    ]
    for opcode in (CLOSE, PING, PONG)
}

AGAIN = bytes.fromhex("f200110000")
"""The RFC's second "Hello", which refers to the first (7.2.3.2)."""

TAKEOVER = {
    "the example: the window of the message before": [
        *(*compressed(TEXT, HELLO), Got(TEXT, b"Hello")),
        *(*compressed(TEXT, AGAIN), Got(TEXT, b"Hello")),
    ],
    "an uncompressed message between leaves the window alone": [
        *(*compressed(TEXT, HELLO), Send(TEXT, b"other"), *compressed(TEXT, AGAIN)),
        *(Got(TEXT, b"Hello"), Got(TEXT, b"other"), Got(TEXT, b"Hello")),
    ],
    "a final block ends the window": [
        *(*compressed(TEXT, bytes.fromhex("f348cdc9c9070000")), Got(TEXT, b"Hello")),
        *(*compressed(TEXT, HELLO), Got(TEXT, b"Hello")),
        *(*compressed(TEXT, AGAIN), Got(TEXT, b"Hello")),
    ],
    "a window that reaches back too far": [*compressed(TEXT, AGAIN), Failed(1002)],
    "the same long message again": [*echoed(TEXT, LONG), *echoed(TEXT, LONG)],
    "a bomb": [
        *compressed(TEXT, HELLO),
        Got(TEXT, b"Hello"),
        *compressed(TEXT, deflated(b" " * 10_000_000)),
        Failed(1009),
    ],
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("script", DEFLATE.values(), ids=DEFLATE)
async def test_a_rule_of_rfc_7692_holds(side, script, bytewise):
    extensions = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    async with SIDES[side](Limits(message_size=LIMIT), Compression(), extensions) as peer:
        await peer.play(script, bytewise=bytewise and short(script))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("script", TAKEOVER.values(), ids=TAKEOVER)
async def test_a_rule_of_context_takeover_holds(side, script):
    settings = Compression(context_takeover=True)
    async with SIDES[side](Limits(message_size=LIMIT), settings, "permessage-deflate") as peer:
        await peer.play(script)
