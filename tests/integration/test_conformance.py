"""RFC 6455, rule by rule: what either of our transports must make of frames, legal and not.

Each row of a table is a script: the frames that a raw peer sends, and what must come back. All run against our server
and our client, with every row's frames in one segment and, the shorter rows, in one segment for every byte.
"""

import pytest

from support.net import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from support.wire import SIDES, Closed, Failed, Got, Send, begun, code, each_byte, echoed, fragments, short
from wse import Limits

LIMIT = 70_000

# RFC 6455, 5.2: lengths and masks.

FRAMING = {
    f"{'text' if opcode == TEXT else 'binary'} of {size} bytes": echoed(opcode, b"*" * size)
    for opcode in (TEXT, BINARY)
    for size in (0, 1, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, LIMIT)
}
FRAMING |= {
    f"{size} bytes in a length of {form}": [Send(opcode, b"*" * size, form=form), Failed(1002)]
    for opcode in (TEXT, BINARY)
    for form, sizes in ((2, (0, 1, 125)), (8, (0, 125, 126, 65535)))
    for size in sizes
}
FRAMING |= {
    f"a length of 64 bits that is {size:#x}": [Send(BINARY, size=size, form=8), Failed(answer)]
    for size, answer in ((1 << 63, 1002), ((1 << 64) - 1, 1002), ((1 << 63) - 1, 1009))
}
FRAMING |= {
    f"opcode {opcode} with the other side's masking": [
        Send(opcode, code(1000) if opcode == CLOSE else b"x", wrong_mask=True),
        Failed(1002),
    ]
    for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
}
FRAMING |= {
    "many messages in one segment": [
        *(Send(TEXT, b"%d" % number) for number in range(20)),
        *(Got(TEXT, b"%d" % number) for number in range(20)),
    ],
    "texts and binaries in turn": [
        *(Send(kind, b"x") for kind in (TEXT, BINARY) * 3),
        *(Got(kind, b"x") for kind in (TEXT, BINARY) * 3),
    ],
}

# RFC 6455, 5.2: reserved bits, reserved opcodes.

RESERVED = {
    f"opcode {opcode} with reserved bits {rsv:03b}": [
        *echoed(TEXT, b"before"),
        Send(opcode, code(1000) if opcode == CLOSE else b"x", rsv=rsv),
        Failed(1002),
    ]
    for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
    for rsv in range(1, 8)
}
RESERVED |= {
    f"a continuation with reserved bits {rsv:03b}": [
        *begun(TEXT, b"a"),
        Send(CONTINUATION, b"b", rsv=rsv),
        Failed(1002),
    ]
    for rsv in range(1, 8)
}
RESERVED |= {
    f"reserved opcode {opcode} with {len(payload)} bytes{'' if fin else ', not final'}": [
        *echoed(TEXT, b"before"),
        Send(opcode, payload, fin=fin),
        Failed(1002),
    ]
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    for payload in (b"", b"x", b"x" * 125)
    for fin in (True, False)
}
RESERVED["a reserved opcode between fragments"] = [*begun(TEXT, b"a"), Send(3), Failed(1002)]

# RFC 6455, 5.5: control frames.

CONTROL = {
    f"a ping of {size} bytes": [Send(PING, b"\xfe" * size), Got(PONG, b"\xfe" * size)] for size in (0, 1, 124, 125)
}
CONTROL |= {f"a pong of {size} bytes that nobody asked for": [Send(PONG, b"\xfe" * size)] for size in (0, 1, 125)}
CONTROL |= {
    f"opcode {opcode} with a payload of {size} bytes": [Send(opcode, code(1000) + b"x" * (size - 2)), Failed(1002)]
    for opcode in (PING, PONG, CLOSE)
    for size in (126, 127, 65536)
}
CONTROL |= {
    f"opcode {opcode} with a length of {form} bytes": [Send(opcode, code(1000), form=form), Failed(1002)]
    for opcode in (PING, PONG, CLOSE)
    for form in (2, 8)
}
CONTROL |= {
    f"opcode {opcode} in fragments": [
        Send(opcode, code(1000), fin=False),
        Send(CONTINUATION),
        Failed(1002),
    ]
    for opcode in (PING, PONG, CLOSE)
}
CONTROL |= {
    "ten pings in one segment": [
        *(Send(PING, b"%d" % number) for number in range(10)),
        *(Got(PONG, b"%d" % number) for number in range(10)),
    ],
    "a ping between two messages": [
        *(Send(TEXT, b"a"), Send(PING, b"p"), Send(TEXT, b"b")),
        *(Got(TEXT, b"a"), Got(PONG, b"p"), Got(TEXT, b"b")),
    ],
    "a ping between fragments": [
        *(Send(TEXT, b"a", fin=False), Send(PING, b"p"), Send(CONTINUATION, b"b")),
        *(Got(PONG, b"p"), Got(TEXT, b"ab")),
    ],
    "control frames between all fragments": [
        *(Send(BINARY, b"a", fin=False), Send(PING), Send(PONG, b"x"), Send(CONTINUATION, b"b", fin=False)),
        *(Send(PING, b"2"), Send(PING, b"3"), Send(CONTINUATION, b"c")),
        *(Got(PONG), Got(PONG, b"2"), Got(PONG, b"3"), Got(BINARY, b"abc")),
    ],
    "a close between fragments": [*begun(TEXT, b"a"), Send(CLOSE, code(1000)), Closed(1000)],
}

# RFC 6455, 5.4: fragments.

FRAGMENTS = {
    f"{'text' if kind == TEXT else 'binary'} in fragments of {[len(part) for part in parts]} bytes": [
        *fragments(kind, *parts),
        Got(kind, b"".join(parts)),
    ]
    for kind in (TEXT, BINARY)
    for parts in (
        (b"a", b"b"),
        (b"", b""),
        (b"", b"", b""),
        (b"", b"a", b""),
        (b"a", b"", b""),
        (b"", b"", b"a"),
        (b"x" * 125, b"y" * 126, b"z" * 1),
        (b"x" * 30_000, b"y" * 40_000),
        tuple(each_byte(b"one by one")),
    )
}
FRAGMENTS |= {
    "two fragmented messages in one segment": [
        *(*fragments(TEXT, b"a", b"b"), *fragments(BINARY, b"c", b"d")),
        *(Got(TEXT, b"ab"), Got(BINARY, b"cd")),
    ],
    "a message after a fragmented one": [*fragments(TEXT, b"a", b"b"), Got(TEXT, b"ab"), *echoed(TEXT, b"c")],
}
FRAGMENTS |= {
    f"a continuation of nothing, {name}": [*before, Send(CONTINUATION, payload, fin=fin), Failed(1002)]
    for name, before, payload, fin in (
        ("final", [], b"x", True),
        ("not final", [], b"x", False),
        ("empty", [], b"", True),
        ("after a message", echoed(TEXT, b"a"), b"x", True),
        ("after a fragmented message", [*fragments(TEXT, b"a", b"b"), Got(TEXT, b"ab")], b"x", True),
        ("after a ping", [Send(PING), Got(PONG)], b"x", True),
    )
}
FRAGMENTS |= {
    f"opcode {second}{'' if fin else ', not final,'} inside a fragmented {first}": [
        *begun(first, b"a", *more),
        Send(second, b"x", fin=fin),
        Failed(1002),
    ]
    for first in (TEXT, BINARY)
    for second in (TEXT, BINARY)
    for fin in (True, False)
    for more in ((), (b"b",))
}

# RFC 6455, 8.1: UTF-8.

VALID = {
    "one byte": b"\x00\x7f",
    "two bytes": b"\xc2\x80\xdf\xbf",
    "three bytes": b"\xe0\xa0\x80\xef\xbf\xbd",
    "around the surrogates": b"\xed\x9f\xbf\xee\x80\x80",
    "four bytes": b"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
    "noncharacters": b"\xef\xbf\xbe\xef\xbf\xbf\xef\xb7\x90",
    "Greek": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5",
    "a byte order mark": b"\xef\xbb\xbfx",
}
# The first bytes of each are legal; with its last byte it can become no text any more.
IMPOSSIBLE = {
    "a continuation byte first": b"\x80",
    "a byte of no character": b"a\xff",
    "another byte of no character": b"a\xfe",
    "an overlong slash of two bytes": b"\xc0",
    "an overlong DEL of two bytes": b"\xc1",
    "an overlong slash of three bytes": b"\xe0\x80",
    "an overlong slash of four bytes": b"\xf0\x80",
    "five bytes": b"\xf8",
    "six bytes": b"\xfc",
    "the first surrogate": b"\xed\xa0\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "beyond Unicode": b"\xf4\x90",
    "far beyond Unicode": b"\xf5",
    "a character broken off by another": b"\xe2\x98a",
    "two bytes broken off by another": b"\xc3a",
    "Greek, then beyond Unicode": VALID["Greek"] + b"\xf4\x90",
}
UNFINISHED = {"half a character": b"\xc3", "two thirds": b"\xe2\x98", "three quarters": b"text\xf0\x9f\x90"}

UTF8 = {f"valid: {name}": echoed(TEXT, data) for name, data in VALID.items()}
UTF8 |= {
    f"valid, in fragments of one byte: {name}": [*fragments(TEXT, *each_byte(data)), Got(TEXT, data)]
    for name, data in VALID.items()
}
UTF8 |= {
    f"valid, cut after {cut} bytes": [
        *fragments(TEXT, VALID["four bytes"][:cut], VALID["four bytes"][cut:]),
        Got(TEXT, VALID["four bytes"]),
    ]
    for cut in range(9)
}
UTF8 |= {
    f"invalid: {name}": [Send(TEXT, data + b" and more"), Failed(1007)]
    for name, data in (IMPOSSIBLE | UNFINISHED).items()
}
UTF8 |= {
    f"invalid, fails before the message ends: {name}": [*begun(TEXT, *each_byte(data)), Failed(1007)]
    for name, data in IMPOSSIBLE.items()
}
UTF8 |= {
    f"ends too early: {name}": [*script, Failed(1007)]
    for name, data in UNFINISHED.items()
    for script in ([Send(TEXT, data)], fragments(TEXT, data, b""), fragments(TEXT, *each_byte(data)))
}
UTF8 |= {
    f"binary may be anything: {name}": [
        *echoed(BINARY, data),
        *fragments(BINARY, *each_byte(data)),
        Got(BINARY, data),
    ]
    for name, data in (IMPOSSIBLE | UNFINISHED).items()
}

# RFC 6455, 5.5.1, 7.1 and 7.4: closing.

CLOSING = {
    f"close with {number}": [Send(CLOSE, code(number)), Closed(number)]
    for number in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999)
}
CLOSING |= {
    f"close with {number}, which may not travel": [Send(CLOSE, code(number)), Failed(1002)]
    for number in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
}
CLOSING |= {
    "an empty close": [Send(CLOSE), Closed(None)],
    "a close of one byte": [Send(CLOSE, b"\x03"), Failed(1002)],
    "a reason": [Send(CLOSE, code(1000) + b"bye"), Closed(1000, b"bye")],
    "the longest reason": [Send(CLOSE, code(4000) + b"x" * 123), Closed(4000, b"x" * 123)],
    "a reason beyond ASCII": [Send(CLOSE, code(1000) + VALID["Greek"]), Closed(1000, VALID["Greek"])],
    "a close after a message": [*echoed(TEXT, b"a"), Send(CLOSE, code(1000)), Closed(1000)],
    "a close after a message in one segment": [
        *(Send(TEXT, b"a"), Send(CLOSE, code(1000))),
        *(Got(TEXT, b"a"), Closed(1000)),
    ],
}
AFTER_CLOSE = {
    "a message after the close in one segment": [Send(CLOSE, code(1000)), Send(TEXT, b"late"), Closed(1000)],
    "a ping after the close in one segment": [Send(CLOSE, code(1000)), Send(PING, b"late"), Closed(1000)],
    "broken text after the close in one segment": [Send(CLOSE, code(1000)), Send(TEXT, b"\xff"), Closed(1000)],
}
"""Not for bytes one by one: a server closes its socket after both close frames, and what comes later resets it."""
CLOSING |= {
    f"a reason that is not UTF-8: {name}": [Send(CLOSE, code(1000) + data), Failed(1007)]
    for name, data in (IMPOSSIBLE | UNFINISHED).items()
}

# RFC 6455, 10.4: limits.

LIMITS = {
    "one frame of the limit": echoed(BINARY, b"x" * LIMIT),
    "one frame above the limit": [Send(BINARY, b"x" * (LIMIT + 1)), Failed(1009)],
    "a frame above the limit, before it has come": [Send(TEXT, b"x", size=LIMIT + 1), Failed(1009)],
    "fragments of the limit together": [
        *fragments(TEXT, b"x" * (LIMIT - 1), b"y"),
        Got(TEXT, b"x" * (LIMIT - 1) + b"y"),
    ],
    "fragments above the limit together": [*begun(TEXT, b"x" * LIMIT, b"y"), Failed(1009)],
    "a fragment above the limit": [*begun(TEXT, b"x"), Send(CONTINUATION, size=LIMIT + 1, form=8), Failed(1009)],
    "each message has the limit to itself": [*echoed(TEXT, b"x" * LIMIT), *echoed(TEXT, b"y" * LIMIT)],
}

PLAIN = {
    f"{section}: {name}": script
    for section, rows in (
        ("framing", FRAMING),
        ("reserved", RESERVED),
        ("control", CONTROL),
        ("fragments", FRAGMENTS),
        ("utf-8", UTF8),
        ("closing", CLOSING),
        ("limits", LIMITS),
    )
    for name, script in rows.items()
}
BYTEWISE = {name: script for name, script in PLAIN.items() if short(script)}
PLAIN |= AFTER_CLOSE


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("script", PLAIN.values(), ids=PLAIN)
async def test_a_rule_of_rfc_6455_holds(side, script):
    async with SIDES[side](Limits(message_size=LIMIT), None, "") as peer:
        await peer.play(script)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("script", BYTEWISE.values(), ids=BYTEWISE)
async def test_it_holds_when_every_byte_comes_by_itself(side, script):
    async with SIDES[side](Limits(message_size=LIMIT), None, "") as peer:
        await peer.play(script, bytewise=True)
