"""permessage-deflate: RFC 7692."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wse import Compression
from wse.transports.deflate import Deflate, TooLargeError
from wse.transports.picows.assembly import Assembly, ViolationError

NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def answer_to(offer: str, **settings: object) -> str | None:
    accepted = Compression(**settings).accept(offer)  # type: ignore[arg-type]
    return None if accepted is None else accepted[0]


def pair(**settings: object) -> tuple[Deflate, Deflate]:
    """Both sides after a negotiation of equal settings."""
    compression = Compression(**settings)  # type: ignore[arg-type]
    accepted = compression.accept(compression.offer())
    assert accepted is not None
    answer, server = accepted
    return server, compression.accepted(answer)


def test_by_default_neither_side_keeps_its_window() -> None:
    assert Compression().offer() == f"{NO_TAKEOVER}; client_max_window_bits"
    assert answer_to("permessage-deflate") == NO_TAKEOVER


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate; client_max_window_bits", NO_TAKEOVER),
        ("permessage-deflate; client_max_window_bits=10", NO_TAKEOVER),
        ("permessage-deflate; server_max_window_bits=10", f"{NO_TAKEOVER}; server_max_window_bits=10"),
        ('permessage-deflate; server_max_window_bits="12"', f"{NO_TAKEOVER}; server_max_window_bits=12"),
        ("x-webkit-deflate-frame, permessage-deflate", NO_TAKEOVER),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", NO_TAKEOVER),
    ],
)
def test_the_first_offer_that_can_be_met_is_accepted(offer: str, answer: str) -> None:
    assert answer_to(offer) == answer


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; unknown",
    ],
)
def test_an_offer_that_is_malformed_or_cannot_be_met_is_declined(offer: str) -> None:
    assert answer_to(offer) is None


def test_with_context_takeover_a_client_can_still_refuse_it() -> None:
    assert answer_to("permessage-deflate", context_takeover=True) == "permessage-deflate"
    assert answer_to(NO_TAKEOVER, context_takeover=True) == NO_TAKEOVER


@pytest.mark.parametrize(
    "answer",
    [
        "permessage-bzip2",
        "permessage-deflate; unknown",
        "permessage-deflate, permessage-deflate",
        "permessage-deflate; client_max_window_bits=8",
    ],
)
def test_a_client_rejects_an_answer_that_is_none_to_its_offer(answer: str) -> None:
    with pytest.raises(ValueError):
        Compression().accepted(answer)


def test_a_client_keeps_to_the_window_that_the_server_asks_for() -> None:
    small = Compression().accepted(f"{NO_TAKEOVER}; client_max_window_bits=9")
    assert small.shared == (6, 9)


@pytest.mark.parametrize(
    "settings", [{"threshold": 125}, {"level": 0}, {"level": 10}, {"window_bits": 8}, {"window_bits": 16}]
)
def test_settings_out_of_range_are_rejected_at_once(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Compression(**settings)  # type: ignore[arg-type]


@given(messages=st.lists(st.binary(max_size=300).map(lambda data: data * 5), max_size=5), takeover=st.booleans())
def test_messages_survive_whatever_was_agreed_on(messages: list[bytes], takeover: bool) -> None:
    server, client = pair(context_takeover=takeover)
    for message in messages:
        compressed = server.deflate(message)
        if compressed is not None:
            assert client.inflate(compressed, 10_000) == message


def test_what_compression_would_not_make_smaller_is_sent_as_it_is() -> None:
    server, _ = pair()
    assert server.deflate(bytes(range(256))) is None
    assert len(server.deflate(b"a" * 256) or b"") < 10


def test_with_takeover_a_repeated_message_costs_next_to_nothing() -> None:
    server, client = pair(context_takeover=True)
    message = bytes(range(256)) * 2
    first, second = server.deflate(message), server.deflate(message)
    assert first is not None
    assert second is not None
    assert len(second) < 20 < len(first)
    assert client.inflate(first, 1000) == client.inflate(second, 1000) == message


def test_the_examples_of_the_rfc_inflate() -> None:
    """RFC 7692, 7.2.3: one block, shared window, no compression, a final block, two blocks."""
    _, alone = pair()
    assert alone.inflate(bytes.fromhex("f248cdc9c90700"), 100) == b"Hello"
    assert alone.inflate(bytes.fromhex("000500faff48656c6c6f00"), 100) == b"Hello"
    assert alone.inflate(bytes.fromhex("f348cdc9c9070000"), 100) == b"Hello"
    assert alone.inflate(bytes.fromhex("f24805000000ffffcac9c90700"), 100) == b"Hello"
    _, keeping = pair(context_takeover=True)
    assert keeping.inflate(bytes.fromhex("f248cdc9c90700"), 100) == b"Hello"
    assert keeping.inflate(bytes.fromhex("f200110000"), 100) == b"Hello"
    assert keeping.inflate(bytes.fromhex("f348cdc9c9070000"), 100) == b"Hello", "a final block"
    assert keeping.inflate(bytes.fromhex("f248cdc9c90700"), 100) == b"Hello", "a new window after it"


def test_a_compression_bomb_is_stopped_at_the_limit() -> None:
    _, client = pair()
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = (deflater.compress(bytes(50_000_000)) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")
    assert len(bomb) < 50_000
    with pytest.raises(TooLargeError):
        client.inflate(bomb, 1_000_000)
    assert client.inflate(bomb, 50_000_000) == bytes(50_000_000)


@pytest.mark.parametrize(("data", "code"), [(b"\xff\xff\xff", 1002), (b"\x02\x00", 1009), (b"\xfa\xff\x00", 1007)])
def test_an_assembly_says_what_is_wrong_with_a_compressed_message(data: bytes, code: int) -> None:
    server, client = pair()
    payload = {1002: data, 1009: server.deflate(b"a" * 200), 1007: server.deflate(b"\xff" * 50)}[code]
    assert payload is not None
    assembly = Assembly(text=True, limit=100, deflate=client)
    with pytest.raises(ViolationError) as caught:
        assembly.add(payload, last=True)
    assert caught.value.code == code


def test_a_compressed_binary_message_is_bytes() -> None:
    server, client = pair()
    compressed = server.deflate(b"\xff" * 500)
    assert compressed is not None
    assert Assembly(text=False, limit=1000, deflate=client).add(compressed, last=True) == b"\xff" * 500
