"""The messages that nodes exchange, as bytes, and the names of users and rooms in a broker.

    topic       subscribers                              messages
    all         every node                               Message, Hello
    u.<user>    nodes that hold a device of the user     Message, Drop, Enter, Displaced, Check
    r.<room>    nodes that hold a member of the room     Message
    n.<node>    that node                                Canary, Call, Cancel, Query, Answer

A message crosses as its sender has packed it, once for each message protocol of the sender. The rest are plain values
in MessagePack. Brokers take messages up to some size, so a list of names crosses in parts: several
`Answer`s of one stamp.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.types import MessageKey, MessageType

ALL = "all"
USER = "u."
ROOM = "r."
NODE = "n."


class ClusterMessage(msgspec.Struct, array_like=True):
    """A message from one node, or from a publisher, to others."""

    origin: str


class Message(ClusterMessage, tag=0):
    """A message to everyone, to a user or to a room."""

    kind: Any
    forms: dict[str, tuple[bool, Any]]
    """By the names of message protocols: whether the bytes are text as UTF-8, and what the protocol has packed."""
    not_conn: str | None = None
    not_user: str | None = None
    key: str | int | None = None


class Drop(ClusterMessage, tag=1):
    """Disconnect all devices of the user."""

    reason: str
    code: int = 1000


class Enter(ClusterMessage, tag=2):
    """All devices of the user enter a room, or leave it."""

    room: str
    enter: bool


class Displaced(ClusterMessage, tag=3):
    """The register has put a newer device in the place of this one."""

    conn_id: str


class Check(ClusterMessage, tag=11):
    """Devices of the user may have been displaced without notice: see whether they are still in the register."""


class Hello(ClusterMessage, tag=9):
    """A node has started."""


class Canary(ClusterMessage, tag=4):
    """Shows a node that it is heard."""


class Call(ClusterMessage, tag=5):
    """Call a procedure of a device; the answer goes to the origin."""

    stamp: int
    conn_id: str
    name: Any
    payload: Any
    timeout: float | None


class Cancel(ClusterMessage, tag=10):
    """Nobody waits any more for the answer to the call that the origin has made under this stamp."""

    stamp: int


class Query(ClusterMessage, tag=6):
    """Ask a node for something that it alone knows: see `wse.core.queries`."""

    stamp: int
    what: str
    about: str


class Answer(ClusterMessage, tag=7):
    """The answer to a call or a query, or a part of a list that is one."""

    stamp: int
    value: Any = None
    error: dict[str, Any] | None = None
    parts: int = 1
    """How many answers of this stamp there are; with one of them lost, the answer never comes."""
    absent: bool = False
    """Whether the call has failed because there is no such valid connection, so that nobody was asked."""


encode = msgspec.msgpack.Encoder(enc_hook=str).encode
"""Makes bytes of what is said. Values that MessagePack does not have, in the details of errors, become strings."""

decode = msgspec.msgpack.Decoder(
    Message | Drop | Enter | Displaced | Check | Hello | Canary | Call | Cancel | Query | Answer
).decode
"""Raises a `msgspec.MsgspecError` for bytes that no node says."""

plain = msgspec.msgpack.Encoder().encode
"""Raises for values that cannot cross: a call's payload must arrive as what it is."""


def message(
    origin: str,
    type: MessageType,
    packed: Mapping[Protocol, Packed],
    not_conn: str | None = None,
    not_user: Hashable | None = None,
    key: MessageKey | None = None,
) -> bytes:
    """A message to other nodes.

    Raises:
        TypeError: Who is excluded has a `cid` that cannot cross.
    """
    forms = {protocol.name: (one.utf8, one.data) for protocol, one in packed.items()}
    return encode(Message(origin, type, forms, not_conn, None if not_user is None else encode_name(not_user), key))


PART = 256 * 1024
"""Bytes of the names that cross in one message: a quarter of what NATS takes by default."""


def in_parts(names: Iterable[str]) -> list[list[str]]:
    """Encoded names in lists of at most `PART` bytes each; there is one at least."""
    parts: list[list[str]] = [[]]
    size = 0
    for name in names:
        length = len(name) + 5  # a string's head in MessagePack has up to 5 bytes
        if size + length > PART and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += length
    return parts


def topic(kind: str, name: Hashable = None) -> str:
    """The topic of everyone, or of the user or room of that name.

    Raises:
        TypeError, ValueError: As `encode_name`.
    """
    return kind if kind == ALL else kind + encode_name(name)


MAX_NAME_LENGTH = 1000
"""Letters that a name may have when it is encoded: NATS ends connections over subjects that are four times as long."""

_SAFE = re.compile(r"[A-Za-z0-9_-]+").fullmatch


def encode_name(name: Hashable) -> str:
    """A `cid` or the name of a room, in the letters that brokers take.

    Raises:
        TypeError: It is neither a string nor an integer, which are all that crosses from node to node.
        ValueError: It is longer than `MAX_NAME_LENGTH` when it is encoded.
    """
    if isinstance(name, int):
        encoded = f"i{int(name)}"
    elif isinstance(name, str):
        name = str.__str__(name)  # the value of an enumeration's member, which it is equal to
        if _SAFE(name):
            encoded = f"s{name}"
        else:
            encoded = "b" + base64.urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode()
    else:
        raise TypeError(f"in a cluster, users and rooms are named by strings or integers, not {name!r}")
    if len(encoded) > MAX_NAME_LENGTH:
        raise ValueError(f"in a cluster, a name has at most {MAX_NAME_LENGTH} letters, and not {len(encoded)}")
    return encoded


def decode_name(name: str) -> str | int:
    """The reverse of `encode_name`.

    Raises:
        ValueError: It is none of those.
    """
    kind, rest = name[:1], name[1:]
    if kind == "s":
        return rest
    if kind == "i":
        return int(rest)
    if kind == "b":
        return base64.urlsafe_b64decode(rest).decode("utf-8", "surrogatepass")
    raise ValueError(f"{name!r} is no name of a user or a room")
