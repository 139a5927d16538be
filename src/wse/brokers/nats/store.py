"""The store on NATS, in two streams on disk:

    <prefix>-inbox-v1          subject `<prefix>-inbox.<box>`: the messages, the number and the time before the data
    <prefix>-inbox-v1-cursors  subject `<prefix>-cursor.<box>.<device>`: the number that the device has seen; and
                               `<prefix>-cursor.<box>.n`: the newest number, for when all messages have expired, and
                               the epoch

JetStream bounds messages by their number for each subject, and by their age. It does not bound the bytes of a subject,
so a box has at most `Bounds.messages` times the largest message. A number is taken by compare-and-set: a message is
refused if its box has got another one since its number was chosen.

The streams are made with the first message, with as many replicas as the register has. They get the bounds of the first
message, and those of another node whose bounds differ.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from nats.errors import NoRespondersError
from nats.js import api
from nats.js.errors import NotFoundError

from wse.brokers.nats.bucket import OutdatedError, is_end
from wse.brokers.nats.requests import pack
from wse.brokers.nats.stored import HEAD, Newest, Stored, get, put
from wse.core.names import encode_text
from wse.core.ports.store import REPEAT_WITHIN, Cursor, Page, Record, Span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wse.brokers.nats.connection import NatsConnection
    from wse.brokers.reconnecting import ReconnectingBroker
    from wse.core.ports.store import Bounds

T = TypeVar("T")

NUMBER = "n"
"""The part of a subject behind which the newest number stands. Those of devices begin with `k`."""

MOST_PLACES = 10_000
"""Boxes of which the place of the newest message is remembered."""

MOST_GUESSES = 12
"""Questions after which a place is near enough."""


class Turn(asyncio.Lock):
    """Lets one message at a time be added to a box.

    Attributes:
        users: How many are being added, or wait.
    """

    users = 0


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
        self._newest: OrderedDict[str, Newest] = OrderedDict()  # others may have added more
        self._turns: dict[str, Turn] = {}  # of boxes to which something is being added
        self._read: OrderedDict[str, tuple[int, int]] = OrderedDict()  # numbers and places that pages have ended with

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
            newest = self._newest.pop(box, None)
            if newest is None:
                newest = await self._find_newest(connection, box, await self._begun(connection, box, bounds))
            while True:
                record = Record(newest.number + 1, time.time(), data, newest.epoch)
                packed = HEAD.pack(record.number, record.at) + data
                try:
                    answer = await put(connection, self._subject + box, packed, head.format(newest.place))
                except OutdatedError:
                    newest = await self._find_newest(connection, box, newest.epoch)
                    continue
                if answer.get("duplicate"):
                    (first,) = await get(connection, self._messages, {"seq": answer["seq"]})
                    # A message that is no longer kept has an unknown number, which is not higher than the newest.
                    number, at = (newest.number, record.at) if not first.place else first.parts[:2]
                    return Record(number, at, data, newest.epoch), False
                self._newest[box] = newest = Newest(answer["seq"], record.number, newest.epoch)
                connection.requests.write(pack(self._number_of(box), newest.packed, header=_expires(bounds)))
                if len(self._newest) > MOST_PLACES:
                    self._newest.popitem(last=False)
                return record, True

        # Those of one box would only refuse each other.
        turn = self._turns.setdefault(box, Turn())
        turn.users += 1
        try:
            async with turn:
                return await self._prepared_for(bounds, keep)
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[box]

    async def read(self, box: str, after: int, count: int) -> Page:
        subject = self._subject + box

        async def read(connection: NatsConnection) -> Page:
            (first, newest, last), (_, epoch) = await asyncio.gather(
                self._ends(connection, box), self._last_seen(connection, box)
            )
            span = Span(first.number if first.place else last + 1, last, epoch)
            if last <= after or not first.place:
                return Page((), span)
            found: list[Stored] = []
            place = await self._find(connection, box, after, count, first, newest)
            while len(found) < count and place <= newest.place:
                batch = await self._batch(connection, subject, place, count)
                # A replica that is behind has less than the leader.
                batch = batch or await get(connection, self._messages, {"seq": place, "next_by_subj": subject})
                if not batch[-1].place:
                    break
                found += [one for one in batch if one.number > after]
                place = batch[-1].place + 1
            del found[count:]
            if found:
                self._read.pop(box, None)
                self._read[box] = found[-1].number, found[-1].place
                if len(self._read) > MOST_PLACES:
                    self._read.popitem(last=False)
            return Page(tuple(one.record for one in found), span)

        return await self._broker.ask(read)

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        async def cursor(connection: NatsConnection) -> Cursor:
            epoch = await self._begun(connection, box, bounds)
            first, _, last = await self._ends(connection, box)
            subject = f"{self._cursor_subject}{box}.k{encode_text(device)}"
            while True:
                (found,) = await get(connection, self._cursors, {"last_by_subj": subject})
                after = int(found.data or last + 1)
                if after > last:
                    after = last if from_now else 0
                head = f"Nats-Expected-Last-Subject-Sequence: {found.place}\r\n{_expires(bounds)}"
                with suppress(OutdatedError):  # the cursor was moved meanwhile
                    await put(connection, subject, b"%d" % after, head)
                    break
            if not found.place:
                await self._forget_devices(connection, box, bounds.devices)
            return Cursor(after, Span(first.number if first.place else last + 1, last, epoch))

        return await self._prepared_for(bounds, cursor)

    async def seen(self, box: str, device: str, number: int) -> None:
        subject = f"{self._cursor_subject}{box}.k{encode_text(device)}"

        async def seen(connection: NatsConnection) -> None:
            (newest,) = await get(connection, self._messages, {"last_by_subj": self._subject + box})
            target = min(number, newest.number) if newest.place else number
            while True:
                (found,) = await get(connection, self._cursors, {"last_by_subj": subject})
                if not found.place or int(found.data) >= target:
                    return
                head = f"Nats-Expected-Last-Subject-Sequence: {found.place}"
                if self._prepared is not None:
                    head += f"\r\n{_expires(self._prepared)}"
                try:
                    await put(connection, subject, b"%d" % target, head)
                except OutdatedError:
                    continue
                return

        await self._broker.ask(seen)

    async def furthest(self, box: str) -> int:
        async def furthest(connection: NatsConnection) -> int:
            numbers = await self._numbers(connection, box)
            return max((int(found.data) for subject, found in numbers if _is_cursor(subject, found)), default=0)

        return await self._broker.ask(furthest)

    async def last(self, boxes: Sequence[str]) -> list[int]:
        questions = [{"last_by_subj": self._subject + box} for box in boxes]

        async def last(connection: NatsConnection) -> list[int]:
            return [found.number for found in await get(connection, self._messages, *questions)]

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

    async def _ends(self, connection: NatsConnection, box: str) -> tuple[Stored, Stored, int]:
        """The oldest message of a box, the newest, and the newest number that there has been."""
        subject = self._subject + box
        oldest, newest = {"seq": 1, "next_by_subj": subject}, {"last_by_subj": subject}
        number = -1
        while True:
            first, last = await get(connection, self._messages, oldest, newest)
            if first.place and last.place:
                return first, last, last.number
            before, number = number, await self._highest(connection, box)
            if not last.place and number == before:
                return first, last, number
            # Messages may have come in between, or there are none: what is read next shows it.

    async def _find_newest(self, connection: NatsConnection, box: str, epoch: str) -> Newest:
        (newest,) = await get(connection, self._messages, {"last_by_subj": self._subject + box})
        number = newest.number if newest.place else await self._highest(connection, box)
        return Newest(newest.place, number, epoch)

    async def _begun(self, connection: NatsConnection, box: str, bounds: Bounds) -> str:
        """The epoch of the box; it begins with this if there is none."""
        while True:
            _, epoch = await self._last_seen(connection, box)
            if epoch:
                return epoch
            end = Newest(0, await self._highest(connection, box), secrets.token_hex(4))
            head = f"Nats-Expected-Last-Subject-Sequence: 0\r\n{_expires(bounds)}"
            with suppress(OutdatedError):  # another node has begun one
                await put(connection, self._number_of(box), end.packed, head)
                return end.epoch

    async def _highest(self, connection: NatsConnection, box: str) -> int:
        """The highest number that is known of a box without messages: the newest one may have been lost."""
        numbers = await self._numbers(connection, box)
        return max((int(found.data.split()[0]) for _, found in numbers if found.place), default=0)

    async def _find(
        self, connection: NatsConnection, box: str, after: int, count: int, first: Stored, newest: Stored
    ) -> int:
        """A place at or before that of the first message after a number, and not many messages before it.

        The stream has the messages of all boxes, so the place of a number is not known. It is looked for between two
        that are.
        """
        low, high = (first.number, first.place), (newest.number, newest.place)
        known = self._read.get(box, low)
        if low[0] <= known[0] <= after and known[1] <= high[1]:
            low = known
        for _ in range(MOST_GUESSES):
            if after - low[0] <= count or high[0] - low[0] <= 1:
                break
            share = (after - low[0]) / (high[0] - low[0])
            guess = low[1] + max(1, int((high[1] - low[1]) * share))
            question = {"seq": min(guess, high[1]), "next_by_subj": self._subject + box}
            (found,) = await get(connection, self._messages, question)
            if not found.place:
                break
            if found.number <= after:
                low = found.number, found.place
            elif found.place < high[1]:
                high = found.number, found.place
            else:
                break
        return low[1]

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
        found = await get(connection, self._cursors, *({"last_by_subj": subject} for subject in subjects))
        return list(zip(subjects, found, strict=True))

    def _number_of(self, box: str) -> str:
        """The subject of the newest number."""
        return f"{self._cursor_subject}{box}.{NUMBER}"

    async def _last_seen(self, connection: NatsConnection, box: str) -> tuple[int, str]:
        """The newest number that is remembered, and the epoch of the box; empty if it has none."""
        (found,) = await get(connection, self._cursors, {"last_by_subj": self._number_of(box)})
        number, _, epoch = found.data.decode().partition(" ")
        return int(number or 0), epoch

    async def _forget_devices(self, connection: NatsConnection, box: str, most: int) -> None:
        """Delete the cursors that were used least recently."""
        numbers = await self._numbers(connection, box)
        places = sorted(found.place for subject, found in numbers if _is_cursor(subject, found))
        subject = f"$JS.API.STREAM.MSG.DELETE.{self._cursors}"
        await connection.requests.many([(subject, b'{"seq":%d}' % place, "") for place in places[:-most]])


def _is_cursor(subject: str, found: Stored) -> bool:
    return bool(found.place) and not subject.endswith(f".{NUMBER}")


def _expires(bounds: Bounds) -> str:
    return f"Nats-TTL: {ceil(2 * bounds.ttl)}s"
