"""The messages that nodes exchange, as bytes, and the names of users and rooms in a broker.

    topic       subscribers                              messages
    all         every node                               Message, Hello
    u.<user>    nodes that hold a device of the user     Message, Kept, Watched, Drop, Enter, Displaced, Check
    r.<room>    nodes that hold a member of the room     Message, Kept, Present
    n.<node>    that node                                Canary, Call, Cancel, Query, Answer, ToDevice, Arrived,
                                                         Reached, Unread; about a `CallWith`: More, Put, End, Waiting
                                                         to the node of the device, Item, Want, Progress, Running from
                                                         there

A message crosses as its sender has packed it, once for each message protocol of the sender. The rest are plain values
in MessagePack. Brokers take messages up to some size, so a list of names crosses in parts: several
`Answer`s of one stamp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from wse.core.names import encode_name
from wse.validation.foreign import encode_foreign

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.types import MessageKey, MessageType

ALL = "all"
USER = "u."
ROOM = "r."
NODE = "n."

OUTSIDE = "out-"
"""How the names of publishers begin. They call devices like nodes, but have no lease, and nobody asks them anything."""


class ClusterMessage(msgspec.Struct, array_like=True):
    """A message from one node, or from a publisher, to others."""

    origin: str


class Message(ClusterMessage, tag=0):
    """A message to everyone, to a user or to a room."""

    kind: Any
    forms: dict[str, tuple[bool, Any]]
    """By the names of message protocols: whether the bytes are text in UTF-8, and the packed bytes."""
    not_conn: str | None = None
    not_user: str | None = None
    key: str | int | None = None
    seq: int = 0
    """The number of the message among all that its origin has published; 0 from an origin that does not count."""


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
    """A message that a node sends itself, to see that the broker delivers."""


class Call(ClusterMessage, tag=5):
    """Call a procedure of a device; the answer goes to the origin."""

    stamp: int
    conn_id: str
    name: Any
    payload: Any
    timeout: float | None
    trace: dict[str, str] | None = None
    """The context of the caller's trace, as in the options of `~wse:call`."""


class CallWith(Call, tag=14):
    """A call that has more than an answer, or wants more: a stream, progress or an upload. It is sent only to a node
    that has said that it knows this.
    """

    options: dict[str, Any] = {}
    """As in `~wse:call`."""


class FromCaller(ClusterMessage):
    """About a call of the origin to a device."""

    stamp: int


class More(FromCaller, tag=15):
    """The caller takes more items of a stream."""

    total: int
    """How many in all, so that the next message repairs the loss of one."""


class Put(FromCaller, tag=16):
    """An item of an upload."""

    number: int
    """Counts from 1, so that a loss is noticed."""
    item: Any


class End(FromCaller, tag=17):
    """The upload is complete."""

    count: int


class FromCallee(ClusterMessage):
    """About a call of the receiver to a device of the origin."""

    stamp: int


class Item(FromCallee, tag=18):
    """An item of a stream."""

    number: int
    item: Any


class Want(FromCallee, tag=19):
    """The procedure takes more items of an upload."""

    total: int


class Progress(FromCallee, tag=20):
    """The progress of a call."""

    value: Any


class Flow(msgspec.Struct, array_like=True):
    """How far one side of a call is.

    Attributes:
        granted: Items that it takes, in all.
        sent: Items that it has sent.
        ended: Whether it sends no more.
    """

    granted: int
    sent: int
    ended: bool = False


class Waiting(ClusterMessage, tag=21):
    """Calls of the origin to devices of the receiver, by their stamps."""

    calls: dict[int, Flow]


class Running(ClusterMessage, tag=22):
    """Calls of the receiver to devices of the origin, by their stamps; `None` for those that it does not know."""

    calls: dict[int, Flow | None]


class ToDevice(ClusterMessage, tag=12):
    """An answer for a client whose session has moved, from a handler that still runs at the old node."""

    conn_id: str
    data: Any
    utf8: bool


class Arrived(ClusterMessage, tag=13):
    """The register knows that a session has moved to the origin."""

    conn_id: str


class Kept(ClusterMessage, tag=30):
    """The store has a new message for the user or the room."""

    number: int
    at: float
    data: bytes
    """The message as the store has it; empty if it must be read from there."""
    epoch: str = ""
    seq: int = 0
    """As in a `Message`."""


class Unread(ClusterMessage, tag=33):
    """A publisher has kept a message for the user. The receiver looks whether anybody reads it."""

    user: str
    number: int
    epoch: str


class Watched(ClusterMessage, tag=31):
    """The origin wants to know whether a device of the receiver gets all that it has sent to the user until now."""

    number: int
    """Of the question."""


class Reached(ClusterMessage, tag=32):
    """Whether one does."""

    number: int
    reached: bool


class Present(ClusterMessage, tag=34):
    """What members of the origin show each other in the room; see `wse.core.cluster.boards`."""

    number: int
    """The number of the change among those of the origin in the room; that of the last one, if there is no entry."""
    entries: list[tuple[str, str, bytes | None]]
    """A user, a device and its state in MessagePack, or nothing in its place."""
    is_whole: bool = False
    """Whether these are all states that the origin holds."""
    is_last: bool = False
    """Whether the origin takes part no longer."""


class Cancel(ClusterMessage, tag=10):
    """The origin no longer waits for the answer to its call with this stamp."""

    stamp: int


class Query(ClusterMessage, tag=6):
    """Ask a node for something that it alone knows: see `NodeRpc.queries`."""

    stamp: int
    what: str
    about: str


class Answer(ClusterMessage, tag=7):
    """The answer to a call or a query, or one part of it when it is a list."""

    stamp: int
    value: Any = None
    error: dict[str, Any] | None = None
    parts: int = 1
    """How many answers with this stamp there are. If one of them is lost, the caller gets no answer."""
    absent: bool = False
    """Whether the call has failed because there is no such connection, so that no client was asked."""


encode = msgspec.msgpack.Encoder(enc_hook=str).encode
"""Encodes a message. Values that MessagePack does not have, in the details of errors, become strings."""

decode = msgspec.msgpack.Decoder(
    Message
    | Drop
    | Enter
    | Displaced
    | Check
    | Hello
    | Canary
    | Call
    | CallWith
    | More
    | Put
    | End
    | Item
    | Want
    | Progress
    | Waiting
    | Running
    | Cancel
    | Query
    | Answer
    | ToDevice
    | Arrived
    | Kept
    | Watched
    | Reached
    | Unread
    | Present
).decode
"""Decodes a message; raises a `msgspec.MsgspecError` for bytes that are not one."""

encode_value = msgspec.msgpack.Encoder().encode
"""Encodes a piece of an answer, of plain values."""

decode_value = msgspec.msgpack.Decoder().decode
"""Reverses `encode_value`."""

plain = msgspec.msgpack.Encoder(enc_hook=encode_foreign).encode
"""Encodes a message; raises for values that MessagePack does not have: a call's payload must arrive unchanged."""


def message(
    origin: str,
    seq: int,
    type: MessageType,
    packed: Mapping[Protocol, Packed],
    not_conn: str | None = None,
    not_user: str | None = None,
    key: MessageKey | None = None,
) -> bytes:
    """Encode a message to other nodes; the name of the excluded user is encoded already."""
    forms = {protocol.name: (one.utf8, one.data) for protocol, one in packed.items()}
    return encode(Message(origin, type, forms, not_conn, not_user, key, seq))


Name = TypeVar("Name", str, bytes)

MAX_PART_BYTES = 256 * 1024
"""Bytes of the names in one message: a quarter of the largest message that NATS takes by default."""


def in_parts(names: Iterable[Name]) -> list[list[Name]]:
    """Split encoded names, or bytes, into lists of at most `MAX_PART_BYTES` bytes each, at least one list."""
    parts: list[list[Name]] = [[]]
    size = 0
    for name in names:
        length = len(name) + 5  # a string's head in MessagePack has up to 5 bytes
        if size + length > MAX_PART_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += length
    return parts


def topic(kind: str, name: Hashable = None) -> str:
    """The topic of everyone, or of the user or room with that name.

    Raises:
        TypeError, ValueError: As `encode_name`.
    """
    return kind if kind == ALL else kind + encode_name(name)
