"""A session that moves from one node to another, since its client comes back there: what the two say to each other.

    the client's new node                                  the node that has the session
    asks for it, with a proof that it knows the key
                                                           names the rooms that the session is in
    listens to all that the session hears (`Placeholder`)
    asks again: this time it hears what the other hears
                                                           lets go: its books, and what it has heard of each sender;
                                                           asked once more, since the answer was lost, it repeats it
    drops what the other has heard, and keeps the rest
    moves the device in the register (`Steps`)

A message of one sender reaches both nodes in the sender's order. So what the old node had heard when it let go, and
what the new one has heard since it listened, is everything, and what is in both can be told by its number.

A node that gives up tells the other one, so that no session waits for a client that has a new one, and no device stays
in the register that nobody has.

`Claims` is the new node's part, and `Departures` the old one's.

Nothing of this happens before a client has been accepted, unless the identify handler asks for its session.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from wse.core.hub.moving import Luggage
from wse.core.hub.tickets import Claim

if TYPE_CHECKING:
    from collections.abc import Iterable

SILENT = 2.0
"""Seconds after which a node that does not answer has nothing to hand over."""

MAX_DATA = 64 * 1024
"""Bytes of an application's own that go with a session, in MessagePack."""

SPREAD_WITHIN = 0.5
"""Seconds that the other nodes have to show that their servers know what this node listens to."""


class Question(msgspec.Struct):
    """What a node asks about a session; see `wse.core.hub.tickets.Claim`."""

    node: str
    conn_id: str
    proof: str
    user: str = ""
    protocol: str = ""
    got: int = 0
    sent: tuple[int, int] = (1, 0)
    rooms: str = ""
    """What stands for the rooms that the node listens to; empty as long as it does not listen."""
    returns: str = ""
    """How often the client had come back to the other node, when that one named the rooms."""
    is_lost: bool = False
    """Of a node that has given up: whether the client has a new session."""

    @property
    def claim(self) -> Claim:
        """The claim of its client."""
        return Claim(self.conn_id, "", self.got, self.sent, proof=self.proof)


class Transfer(msgspec.Struct, array_like=True):
    """A session on its way."""

    luggage: Luggage
    rooms: list[str]
    place: int
    generation: int
    heard: dict[str, int]
    """By sender, the number of the last message that its old node has heard."""
    states: dict[str, tuple[bytes | None, float | None]] = {}
    """By rooms with presence: what it shows there, if anything, and the seconds for which it does."""


encode_transfer = msgspec.msgpack.Encoder().encode
decode_transfer = msgspec.msgpack.Decoder(Transfer).decode
read_question = msgspec.json.Decoder(Question).decode


def digest(rooms: Iterable[str]) -> str:
    """What stands for the names of some rooms."""
    return sha256("\n".join(sorted(rooms)).encode()).hexdigest()
