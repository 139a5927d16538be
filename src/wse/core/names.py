"""The names of users and rooms, in the characters that engines take."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_NAME_LENGTH = 1000
"""The largest length of an encoded name. NATS ends connections over subjects that are four times as long."""

_SAFE = re.compile(r"[A-Za-z0-9_-]+").fullmatch


def encode_text(text: str) -> str:
    """Encode any text in the same characters; two texts never have the same code."""
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


def encode_name(name: Hashable) -> str:
    """Encode a `cid` or the name of a room in the characters that brokers take.

    Raises:
        TypeError: The name is neither a string nor an integer; no other types of names exist in a cluster.
        ValueError: The encoded name is longer than `MAX_NAME_LENGTH`.
    """
    if isinstance(name, int):
        encoded = f"i{int(name)}"
    elif isinstance(name, str):
        name = str.__str__(name)  # a member of an enumeration equals its value
        if _SAFE(name):
            encoded = f"s{name}"
        else:
            encoded = "b" + encode_text(name)
    else:
        raise TypeError(f"in a cluster, users and rooms are named by strings or integers, not {name!r}")
    if len(encoded) > MAX_NAME_LENGTH:
        raise ValueError(f"in a cluster, a name has at most {MAX_NAME_LENGTH} characters, not {len(encoded)}")
    return encoded


def decode_name(name: str) -> str | int:
    """Reverse `encode_name`.

    Raises:
        ValueError: `encode_name` does not return such names.
    """
    kind, rest = name[:1], name[1:]
    if kind == "s":
        return rest
    if kind == "i":
        return int(rest)
    if kind == "b":
        return base64.urlsafe_b64decode(rest).decode("utf-8", "surrogatepass")
    raise ValueError(f"{name!r} is not an encoded name of a user or a room")
