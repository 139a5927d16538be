"""Any message survives both protocols, and bytes decode to a message or fail, whoever decodes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack

JSON, MSGPACK = WseJSON(), WseMsgpack()

floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | floats | st.text()


def trees(leaves):
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
    )


json_values = trees(scalars | st.integers())
msgpack_values = trees(scalars | st.integers(-(2**63), 2**64 - 1) | st.binary())
hostile_text = st.text(st.characters())  # half surrogates among it


def same(one, other):
    """Equal, with the same types all the way down (1, 1.0 and True are three things)."""
    return one == other and repr(one) == repr(other)


@given(st.tuples(json_values, json_values, json_values))
def test_a_message_survives_json(message):
    text = JSON.pack(*message)
    assert isinstance(text, str)
    assert same(JSON.unpack(text), message)
    assert same(JSON.unpack(memoryview(text.encode())), message)
    assert JSON.codec.encode(message) == text.encode()
    assert same(tuple(JSON.codec.decode(text)), message)
    assert same(tuple(json.loads(text)), tuple(message))


@given(st.tuples(msgpack_values, msgpack_values, msgpack_values))
def test_a_message_survives_msgpack(message):
    data = MSGPACK.pack(*message)
    assert isinstance(data, bytes)
    assert same(MSGPACK.unpack(data), message)
    assert same(MSGPACK.unpack(memoryview(data)), message)
    assert MSGPACK.codec.encode(message) == data


@given(msgpack_values)
def test_what_msgpack_decoded_outlives_the_transport_s_buffer(payload):
    buffer = bytearray(MSGPACK.pack("t", payload))
    _, decoded, _ = MSGPACK.unpack(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert same(decoded, payload)


@given(json_values)
def test_what_json_decoded_outlives_the_transport_s_buffer(payload):
    buffer = bytearray(JSON.pack("t", payload).encode())
    _, decoded, _ = JSON.unpack(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert same(decoded, payload)


def replaced(value):
    """The value with U+FFFD for every lone surrogate; `json.loads` has joined the pairs."""
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
    if isinstance(value, list):
        return [replaced(item) for item in value]
    if isinstance(value, dict):
        return {replaced(key): replaced(item) for key, item in value.items()}
    return value


@given(
    st.recursive(
        st.none() | hostile_text | st.text("\ud800\udbff\udc00\udfffu\\d8"),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=4),
        max_leaves=8,
    )
)
def test_lone_surrogates_arrive_as_replacement_characters_and_pairs_arrive_whole(payload):
    text = json.dumps(["t", payload, None])  # escapes everything outside of ASCII
    expected = replaced(json.loads(text)[1])
    assert same(JSON.unpack(text)[1], expected)
    assert same(JSON.unpack(text.encode())[1], expected)


@given(hostile_text | st.binary() | json_values.map(json.dumps))
def test_json_decodes_to_a_message_or_fails(data):
    check_any(JSON, data)


@given(st.binary() | st.binary(max_size=30).map(b"\x93".__add__))
def test_msgpack_decodes_to_a_message_or_fails(data):
    check_any(MSGPACK, data)


@given(st.tuples(json_values, json_values, json_values), st.data())
def test_a_broken_message_decodes_to_a_message_or_fails(message, data):
    for protocol in (JSON, MSGPACK):
        try:
            packed = protocol.pack(*message)
        except OverflowError:  # MessagePack has no larger integers
            continue
        if isinstance(packed, str):
            packed = packed.encode()
        at = data.draw(st.integers(0, len(packed)))
        cut = data.draw(st.integers(0, 3))
        check_any(protocol, packed[:at] + data.draw(st.binary(max_size=3)) + packed[at + cut :])


def check_any(protocol, data):
    try:
        message = protocol.unpack(data)
    except Exception:
        with pytest.raises(Exception):  # noqa: B017 - the short way accepts nothing that the long one does not
            protocol.codec.decode(data)
        return
    assert len(message) == 3
    try:
        short = tuple(protocol.codec.decode(data))
    except Exception:
        return
    if protocol is JSON:  # MessagePack may hold NaN, which is not equal to itself, and has but one way
        assert same(short, message)
