"""Messages of the store as JetStream has them."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nats.js.errors import APIError, NotFoundError

from wse.brokers.nats.bucket import WRONG_REVISION, OutdatedError
from wse.brokers.nats.requests import read
from wse.core.ports.store import Record

if TYPE_CHECKING:
    from wse.brokers.nats.connection import NatsConnection
    from wse.brokers.nats.wire import Message

HEAD: Final = struct.Struct("!Qd")


class Stored(NamedTuple):
    """A message in a stream.

    Attributes:
        place: Its place in the stream; 0 if there is none.
        data: The number and the time, then the message.
    """

    place: int = 0
    data: bytes = b""

    @property
    def number(self) -> int:
        return int(HEAD.unpack_from(self.data)[0]) if self.data else 0

    @property
    def parts(self) -> tuple[int, float, bytes]:
        number, at = HEAD.unpack_from(self.data)
        return number, at, self.data[HEAD.size :]

    @property
    def record(self) -> Record:
        return Record(*self.parts)


class Newest(NamedTuple):
    """The end of a box.

    Attributes:
        place: The place of the newest message; 0 if it is no longer there.
        number: Its number.
        epoch: The epoch of the box.
    """

    place: int
    number: int
    epoch: str

    @property
    def packed(self) -> bytes:
        return f"{self.number} {self.epoch}".encode()


async def put(connection: NatsConnection, subject: str, data: bytes, head: str) -> dict[str, Any]:
    """Store a message; the answer.

    Raises:
        OutdatedError: The subject has another message than the head expects.
    """
    try:
        return await connection.requests.one(subject, data, head)
    except APIError as exc:
        if exc.err_code in WRONG_REVISION:
            raise OutdatedError(str(exc)) from None
        raise


async def get(connection: NatsConnection, stream: str, *questions: dict[str, Any]) -> list[Stored]:
    """The message for each question; one without a place if there is none."""
    subject = f"$JS.API.STREAM.MSG.GET.{stream}"
    answers = await connection.requests.many([(subject, json.dumps(q).encode(), "") for q in questions])
    return [_stored(answer) for answer in answers]


def _stored(answer: Message) -> Stored:
    try:
        found = read(answer)["message"]
    except NotFoundError:  # the message, or the whole stream
        return Stored()
    return Stored(found["seq"], b64decode(found.get("data", "")))
