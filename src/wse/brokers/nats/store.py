"""The store on NATS, in two streams on disk:

    <prefix>-inbox-v1          subject `<prefix>-inbox.<box>`: the messages, the number and the time before the data
    <prefix>-inbox-v1-cursors  subject `<prefix>-cursor.<box>.<device>`: the number that the device has seen; and
                               `<prefix>-cursor.<box>.n`: the newest number, for when all messages have expired

JetStream bounds messages by their number for each subject, and by their age. It does not bound the bytes of a subject,
so a box has at most `Bounds.messages` times the largest message. A number is taken by compare-and-set: a message is
refused if its box has got another one since its number was chosen.

The streams are made with the first message, with as many replicas as the register has. They get the bounds of the first
message, and those of another node whose bounds differ.
"""

from __future__ import annotations

import json
import struct
import time
from base64 import b64decode
from collections import OrderedDict
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nats.errors import NoRespondersError
from nats.js import api
from nats.js.errors import APIError, NotFoundError

from wse.brokers.nats.bucket import WRONG_REVISION, OutdatedError, is_end
from wse.brokers.nats.requests import pack, read
from wse.core.names import encode_text
from wse.core.ports.store import REPEAT_WITHIN, Cursor, Page, Record, Span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wse.brokers.nats.connection import NatsConnection
    from wse.brokers.nats.wire import Message
    from wse.brokers.reconnecting import ReconnectingBroker
    from wse.core.ports.store import Bounds

T = TypeVar("T")

NUMBER = "n"
"""The part of a subject behind which the newest number stands. Those of devices begin with `k`."""

MOST_PLACES = 10_000
"""Boxes of which the place of the newest message is remembered."""

_HEAD = struct.Struct("!Qd")


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
        return int(_HEAD.unpack_from(self.data)[0]) if self.data else 0

    @property
    def record(self) -> Record:
        number, at = _HEAD.unpack_from(self.data)
        return Record(number, at, self.data[_HEAD.size :])


class NatsStore:
    """A `wse.core.ports.store.Store` on the connection of a broker.

    Args:
        broker: The broker.
        prefix: What the names of the streams start with.
        replicas: On how many servers they are.
    """

    def __init__(self, broker: ReconnectingBroker[NatsConnection], prefix: str, replicas: int) -> None:
        self._broker = broker
        self._replicas = replicas
        self._messages = f"{prefix}-inbox-v1"
        self._cursors = f"{prefix}-inbox-v1-cursors"
        self._subject = f"{prefix}-inbox."
        self._cursor_subject = f"{prefix}-cursor."
        self._prepared: Bounds | None = None
        self._newest: OrderedDict[str, tuple[int, int]] = OrderedDict()  # places and numbers; others may have added

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def keep(
        self, box: str, data: bytes, bounds: Bounds, *, key: str | None = None, ttl: float | None = None
    ) -> tuple[Record, bool]:
        head = "Nats-Expected-Last-Subject-Sequence: {}"
        if key is not None:
            head += f"\r\nNats-Msg-Id: {box}/{encode_text(key)}"
        lifetime = bounds.lifetime(ttl)
        if lifetime < bounds.ttl:
            head += f"\r\nNats-TTL: {ceil(lifetime)}s"

        async def keep(connection: NatsConnection) -> tuple[Record, bool]:
            newest = self._newest.pop(box) if box in self._newest else await self._find_newest(connection, box)
            place, number = newest
            while True:
                record = Record(number + 1, time.time(), data)
                packed = _HEAD.pack(record.number, record.at) + data
                try:
                    answer = await _put(connection, self._subject + box, packed, head.format(place))
                except OutdatedError:
                    place, number = await self._find_newest(connection, box)
                    continue
                if answer.get("duplicate"):
                    (first,) = await _get(connection, self._messages, {"seq": answer["seq"]})
                    # A message that is no longer kept has an unknown number, which is not higher than the newest.
                    return first.record if first.place else Record(number, record.at, data), False
                self._newest[box] = answer["seq"], record.number
                number_of = f"{self._cursor_subject}{box}.{NUMBER}"
                connection.requests.write(pack(number_of, b"%d" % record.number, header=_expires(bounds)))
                if len(self._newest) > MOST_PLACES:
                    self._newest.popitem(last=False)
                return record, True

        return await self._prepared_for(bounds, keep)

    async def read(self, box: str, after: int, count: int) -> Page:
        subject = self._subject + box

        async def read(connection: NatsConnection) -> Page:
            first, newest = await self._ends(connection, box)
            if first.place and newest.number <= after:
                return Page((), Span(first.number, newest.number))
            if not first.place:
                last = await self._last_seen(connection, box)
                return Page((), Span(last + 1, last))
            span = Span(first.number, newest.number)
            records: list[Record] = []
            place = first.place
            while len(records) < count and place <= newest.place:
                batch = await self._batch(connection, subject, place, count)
                # A replica that is behind has less than the leader.
                batch = batch or await _get(connection, self._messages, {"seq": place, "next_by_subj": subject})
                if not batch[-1].place:
                    break
                records += [one.record for one in batch if one.number > after]
                place = batch[-1].place + 1
            return Page(tuple(records[:count]), span)

        return await self._broker.ask(read)

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        async def cursor(connection: NatsConnection) -> Cursor:
            first, newest = await self._ends(connection, box)
            last = newest.number if newest.place else await self._last_seen(connection, box)
            subject = f"{self._cursor_subject}{box}.k{encode_text(device)}"
            (found,) = await _get(connection, self._cursors, {"last_by_subj": subject})
            after = int(found.data or last + 1)
            if after > last:
                after = last if from_now else 0
            await _put(connection, subject, b"%d" % after, _expires(bounds))
            if not found.place:
                await self._forget_devices(connection, box, bounds.devices)
            return Cursor(after, Span(first.number if first.place else last + 1, last))

        return await self._prepared_for(bounds, cursor)

    async def seen(self, box: str, device: str, number: int) -> None:
        subject = f"{self._cursor_subject}{box}.k{encode_text(device)}"

        async def seen(connection: NatsConnection) -> None:
            (newest,) = await _get(connection, self._messages, {"last_by_subj": self._subject + box})
            target = min(number, newest.number) if newest.place else number
            while True:
                (found,) = await _get(connection, self._cursors, {"last_by_subj": subject})
                if not found.place or int(found.data) >= target:
                    return
                head = f"Nats-Expected-Last-Subject-Sequence: {found.place}"
                if self._prepared is not None:
                    head += f"\r\n{_expires(self._prepared)}"
                try:
                    await _put(connection, subject, b"%d" % target, head)
                except OutdatedError:
                    continue
                return

        await self._broker.ask(seen)

    async def last(self, boxes: Sequence[str]) -> list[int]:
        questions = [{"last_by_subj": self._subject + box} for box in boxes]

        async def last(connection: NatsConnection) -> list[int]:
            return [found.number for found in await _get(connection, self._messages, *questions)]

        return await self._broker.ask(last)

    # The streams.

    async def _prepared_for(self, bounds: Bounds, step: Callable[[NatsConnection], Awaitable[T]]) -> T:
        """Make a step in streams that are there, and have these bounds."""

        async def run(connection: NatsConnection) -> T:
            if self._prepared != bounds:
                await self._prepare(connection, bounds)
            try:
                return await step(connection)
            except NoRespondersError:  # the engine has lost them
                self._newest.clear()
                await self._prepare(connection, bounds)
                return await step(connection)

        return await self._broker.ask(run)

    async def _prepare(self, connection: NatsConnection, bounds: Bounds) -> None:
        common: dict[str, Any] = {
            "storage": api.StorageType.FILE,
            "num_replicas": self._replicas,
            "allow_msg_ttl": True,
            "allow_direct": True,
        }
        await connection.requests.make_stream(
            api.StreamConfig(
                name=self._messages,
                subjects=[f"{self._subject}>"],
                max_msgs_per_subject=bounds.messages,
                max_age=bounds.ttl,
                discard=api.DiscardPolicy.OLD,
                duplicate_window=min(REPEAT_WITHIN, bounds.ttl),
                **common,
            )
        )
        await connection.requests.make_stream(
            api.StreamConfig(
                name=self._cursors, subjects=[f"{self._cursor_subject}>"], max_msgs_per_subject=1, **common
            )
        )
        self._prepared = bounds

    # What the steps ask.

    async def _ends(self, connection: NatsConnection, box: str) -> list[Stored]:
        """The oldest message of a box, and the newest."""
        subject = self._subject + box
        oldest, newest = {"seq": 1, "next_by_subj": subject}, {"last_by_subj": subject}
        return await _get(connection, self._messages, oldest, newest)

    async def _find_newest(self, connection: NatsConnection, box: str) -> tuple[int, int]:
        """The place and the number of the newest message."""
        (newest,) = await _get(connection, self._messages, {"last_by_subj": self._subject + box})
        if newest.place:
            return newest.place, newest.number
        return 0, await self._last_seen(connection, box)

    async def _batch(self, connection: NatsConnection, subject: str, place: int, count: int) -> list[Stored]:
        """Messages from that place on, of any replica, at most so many."""
        question = json.dumps({"seq": place, "next_by_subj": subject, "batch": count}).encode()
        answers = await connection.requests.several(f"$JS.API.DIRECT.GET.{self._messages}", question, is_end)
        places = [answer.field(b"Nats-Sequence") for answer in answers]
        return [Stored(int(place), answer.data) for place, answer in zip(places, answers, strict=True) if place]

    async def _numbers(self, connection: NatsConnection, box: str) -> list[tuple[str, Stored]]:
        """The cursors of a box, and its newest number, with their subjects."""
        question = json.dumps({"subjects_filter": f"{self._cursor_subject}{box}.*"}).encode()
        subjects: list[str] = []
        with suppress(NotFoundError):  # the stream is not there
            info = await connection.requests.one(f"$JS.API.STREAM.INFO.{self._cursors}", question)
            subjects += info["state"].get("subjects") or ()
        found = await _get(connection, self._cursors, *({"last_by_subj": subject} for subject in subjects))
        return list(zip(subjects, found, strict=True))

    async def _last_seen(self, connection: NatsConnection, box: str) -> int:
        return max((int(found.data or 0) for _, found in await self._numbers(connection, box)), default=0)

    async def _forget_devices(self, connection: NatsConnection, box: str, most: int) -> None:
        """Delete the cursors that were used least recently."""
        numbers = await self._numbers(connection, box)
        places = sorted(found.place for subject, found in numbers if found.place and not subject.endswith(f".{NUMBER}"))
        subject = f"$JS.API.STREAM.MSG.DELETE.{self._cursors}"
        await connection.requests.many([(subject, b'{"seq":%d}' % place, "") for place in places[:-most]])


async def _put(connection: NatsConnection, subject: str, data: bytes, head: str) -> dict[str, Any]:
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


async def _get(connection: NatsConnection, stream: str, *questions: dict[str, Any]) -> list[Stored]:
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


def _expires(bounds: Bounds) -> str:
    return f"Nats-TTL: {ceil(2 * bounds.ttl)}s"
