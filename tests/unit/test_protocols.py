"""What the shipped protocols take beyond plain JSON, and what a custom protocol may be; see spec/vectors, too."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid

import msgspec
import pytest

from support.core import ServerSide
from wse import ExtensionTypes, InternalTypes, Protocol, WseJSON, WseMsgpack


@dataclasses.dataclass
class Point:
    x: int
    y: int | None = None


class Shape(msgspec.Struct):
    name: str
    points: list[Point]


class Tagged(msgspec.Struct, tag="circle"):
    r: float


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


WHEN = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)

RICH = [
    pytest.param(Point(1), {"x": 1, "y": None}, id="dataclass"),
    pytest.param(Shape("line", [Point(1, 2)]), {"name": "line", "points": [{"x": 1, "y": 2}]}, id="struct"),
    pytest.param(Tagged(0.5), {"type": "circle", "r": 0.5}, id="tagged-struct"),
    pytest.param(uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001", id="uuid"),
    pytest.param(Colour.RED, "red", id="enum"),
    pytest.param(Level.HIGH, 3, id="int-enum"),
    pytest.param(Word.YES, "yes", id="str-enum"),
    pytest.param(WHEN.date(), "2024-02-29", id="date"),
    pytest.param(WHEN.time(), "12:30:00", id="time"),
    pytest.param(dt.timedelta(days=1), "P1D", id="timedelta"),
    pytest.param(decimal.Decimal("1.10"), "1.10", id="decimal"),
    pytest.param({1}, [1], id="set"),
    pytest.param(frozenset("a"), ["a"], id="frozenset"),
    pytest.param((1, 2), [1, 2], id="tuple"),
]


@pytest.mark.parametrize("protocol", [WseJSON(), WseMsgpack()], ids=["json", "msgpack"])
@pytest.mark.parametrize(("payload", "arrives"), RICH)
def test_a_rich_payload_arrives_as_plain_data(protocol, payload, arrives):
    assert tuple(protocol.unpack(protocol.pack("t", {"in": payload}, 1))) == ("t", {"in": arrives}, 1)


def test_json_writes_datetimes_bytes_and_keys_as_text():
    payload = {"when": WHEN, "bytes": b"\x00\xff", 1: "key"}
    arrives = {"when": "2024-02-29T12:30:00Z", "bytes": "AP8=", "1": "key"}
    assert tuple(WseJSON().unpack(WseJSON().pack("t", payload))) == ("t", arrives, None)


def test_json_writes_null_for_what_json_has_no_number_for():
    nan, infinity = float("nan"), float("inf")
    assert WseJSON().pack("t", [nan, infinity, -infinity]) == '["t",[null,null,null],null]'


def test_msgpack_carries_datetimes_bytes_and_integer_keys():
    payload = {"when": WHEN, "bytes": b"\x00\xff", 1: "key"}
    assert tuple(WseMsgpack().unpack(WseMsgpack().pack("t", payload))) == ("t", payload, None)


@pytest.mark.parametrize("protocol", [WseJSON(), WseMsgpack()], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "payload",
    [object(), lambda: None, "\ud800", {"a": object}],
    ids=["object", "function", "half a character", "class"],
)
def test_what_cannot_be_encoded_raises(protocol, payload):
    with pytest.raises((TypeError, ValueError)):
        protocol.pack("t", payload)


def test_msgpack_raises_for_integers_that_it_does_not_have():
    with pytest.raises(OverflowError):
        WseMsgpack().pack("t", 2**64)


def test_json_goes_out_as_text_and_msgpack_as_binary():
    assert isinstance(WseJSON().pack("t"), str)
    assert isinstance(WseMsgpack().pack("t"), bytes)
    assert WseJSON().codec.utf8
    assert not WseMsgpack().codec.utf8


def test_msgpack_takes_no_text():
    with pytest.raises(TypeError, match="binary"):
        WseMsgpack().unpack("text")


def test_one_protocol_serves_connections_without_remembering_them():
    side = ServerSide(protocols=(WseJSON(), WseMsgpack()))
    side.endpoint.procedures.register("echo", lambda conn, payload: payload)
    peers = [side.join(str(index), protocol=side.endpoint.protocols[index % 2]) for index in range(1, 5)]
    for index, peer in enumerate(peers):
        peer.say("echo", index, "s")
    assert [peer.heard for peer in peers] == [[("~wse:response", index, "s")] for index in range(4)]


def test_a_protocol_needs_pack_and_unpack():
    class Half(Protocol):
        name = "half"

        def pack(self, type, payload=None, stamp=None):
            return ""

    with pytest.raises(TypeError, match="unpack"):
        Half()


class Tagging(WseJSON):
    """A subclass that writes and reads in its own way."""

    name = "tagging"

    def pack(self, type, payload=None, stamp=None):
        return "#" + super().pack(type, payload, stamp)

    def unpack(self, data):
        text = data if isinstance(data, str) else bytes(data).decode()
        return super().unpack(text.removeprefix("#"))


class Backwards(WseMsgpack):
    """The same for MessagePack."""

    name = "backwards"

    def pack(self, type, payload=None, stamp=None):
        return super().pack(type, payload, stamp)[::-1]

    def unpack(self, data):
        return super().unpack(bytes(data)[::-1])


@pytest.mark.parametrize("protocol", [Tagging(), Backwards()], ids=["json", "msgpack"])
def test_a_subclass_s_own_pack_and_unpack_are_what_sessions_use(protocol):
    side = ServerSide(protocols=(protocol,))
    side.endpoint.procedures.register("echo", lambda conn, payload: payload)
    peer = side.join()
    peer.session.send("news", 1)
    peer.say("echo", 2, 3)
    side.hub.broadcast("news", 4)
    assert peer.link.sent[-3:] == [
        protocol.pack("news", 1),
        protocol.pack("~wse:response", 2, 3),
        protocol.pack("news", 4),
    ]


def test_the_types_of_a_protocol_are_its_own():
    class Numbers(WseMsgpack):
        name = "numbers"
        internal_types = InternalTypes(hi=10, challenge=11, welcome=12, call=13, response=14, response_error=15)

    side = ServerSide(protocols=(Numbers(),))
    side.endpoint.procedures.register("fail", lambda conn, payload: 1 / 0)
    peer = side.join()
    peer.say("fail", None, 1)
    peer.say("~wse:hi", None)  # an unknown type like any other here
    assert peer.heard[0][0] == 15
    assert side.names("ignored") == [("ignored", "ann", "~wse:hi", None)]
    assert Numbers().reserved == {10, 11, 12, 13, 14, 15} | ExtensionTypes().names()
