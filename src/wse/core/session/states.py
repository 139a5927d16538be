"""The states that devices show in rooms, as both sides see them: plain values, with a size and perhaps an end."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from wse.errors import ErrorCode, WseError

decode_state = msgspec.msgpack.Decoder().decode
"""Makes the state of its bytes."""

_encode = msgspec.msgpack.Encoder().encode


def encode_state(state: Any, allowed: float) -> bytes:
    """A state in MessagePack, in which it crosses to other nodes, and in which its size counts.

    Raises:
        TypeError: It is `None`, or cannot be encoded.
        WseError: `LIMIT_EXCEEDED`: it has more bytes than are allowed.
    """
    if state is None:
        raise TypeError("a state is not None; presence.clear takes it away")
    try:
        data = _encode(state)
    except Exception as exc:
        raise TypeError(f"a state consists of plain values: {exc}") from exc
    if len(data) > allowed:
        raise WseError(ErrorCode.LIMIT_EXCEEDED, {"limit": "state_size", "allowed": allowed, "size": len(data)})
    return data


def is_same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same; for `==`, `True` is 1 as well."""
    return bool(one == other) and _encode(one) == _encode(other)


def check_ttl(ttl: Any) -> None:
    """Reject what is not a time.

    Raises:
        ValueError: It is neither `None` nor a number of seconds above 0 that a float can hold; JSON has larger
            integers.
    """
    if ttl is not None and not (
        isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl <= sys.float_info.max
    ):
        raise ValueError(f"ttl is in seconds, more than 0, not {ttl!r}")
