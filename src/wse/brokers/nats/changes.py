"""Changes of users' records in the register on NATS, by compare-and-set."""

from __future__ import annotations

import asyncio
import random
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wse.brokers.nats.bucket import OutdatedError, Write
from wse.brokers.nats.records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from wse.brokers.nats.connection import NatsConnection
    from wse.brokers.placement import UserRecord
    from wse.brokers.reconnecting import ReconnectingBroker
    from wse.core.ports.broker import Transition

MAX_ATTEMPTS = 40
"""How often a step is tried when others change the same user at the same time."""

CLAIM_TTL = 60
"""Seconds for which a record without devices is kept: the node that has claimed its last transition may ask again."""

MANY = 8
"""Users of whom it pays to ask some server at first, whose records may be out of date."""

MAX_WRITTEN = 1000
"""Records that are remembered as they were written."""

NOTHING = b"n 0 0"
"""A record that says nothing, which stands in the way of a late write that expects none."""

LATE = 10
"""Seconds after which a write without an answer is not made any longer, once a later one has been answered: the server
does not hang then, and a connection that has failed is closed, with all that waits for it."""

MAX_UNANSWERED = 100_000
"""Users for whom it is remembered that a write was not answered."""

T = TypeVar("T")


class Written(NamedTuple):
    """A record as it was written or read."""

    revision: int
    value: bytes
    record: UserRecord


class Changes:
    """Makes steps, each of which changes a user's record from what nobody else has changed meanwhile.

    Most users that join have no record, and what this node wrote last is mostly still there. So a step starts from such
    a guess, and reads the record only if that was wrong or the step changes nothing.

    A write without an answer may be made later: the server that hangs has it, and a read can overtake it there. So the
    next step of such a user writes the record also if it changes nothing, and for a while none deletes it. The late
    write then finds another revision than it expects.

    Args:
        broker: The way to the register.
    """

    def __init__(self, broker: ReconnectingBroker[NatsConnection]) -> None:
        self._broker = broker
        self._written: dict[str, Written] = {}  # by user, what this node wrote last
        self._unanswered: dict[str, float] = {}  # users with a write that may still be made, and until when

    def reset(self) -> None:
        """Forget what was written."""
        self._written.clear()
        self._unanswered.clear()

    async def change(self, user: str, step: Callable[[UserRecord], T], *, likely_none: bool = False) -> T:
        """Make a step of a user."""

        async def change(connection: NatsConnection) -> T:
            guess = self._written.pop(user, None)
            if guess is None and likely_none:
                guess = Written(0, b"", read_record(user, b""))
            return await self._change(connection, user, step, guess)

        return await self._broker.ask(change)

    async def change_many(self, users: Iterable[str], step: Callable[[UserRecord], T]) -> dict[str, T]:
        """Make a step of each of these users, in two round trips if nobody else changes them."""
        return await self._broker.ask(lambda connection: self._change_many(connection, [*users], step))

    async def _change_many(
        self, connection: NatsConnection, users: Sequence[str], step: Callable[[UserRecord], T]
    ) -> dict[str, T]:
        """Make the steps from guesses, which may be out of date, then from what the register has of the other users."""
        guesses = {user: self._written.pop(user) for user in users if user in self._written}
        unknown = [user for user in users if user not in guesses]
        if len(unknown) >= MANY:
            for key, seen in (await connection.bucket.glance([f"user.{user}" for user in unknown])).items():
                user = key.removeprefix("user.")
                guesses[user] = _written(user, *seen)
        results, _ = await self._write(connection, guesses, step)
        rest = [user for user in users if user not in results]
        found = await connection.bucket.get_many([f"user.{user}" for user in rest])
        known = {user: _written(user, *one) for user, one in zip(rest, found, strict=True)}
        changed, unchanged = await self._write(connection, known, step)
        results |= changed | unchanged
        last = [user for user in rest if user not in results]
        singly = await asyncio.gather(*[self._change(connection, user, step) for user in last])
        return results | dict(zip(last, singly, strict=True))

    async def _write(
        self, connection: NatsConnection, before: Mapping[str, Written], step: Callable[[UserRecord], T]
    ) -> tuple[dict[str, T], dict[str, T]]:
        """Make the steps from these records; the results of those that were made, and of those that change nothing."""
        changes: list[tuple[UserRecord, T, Write]] = []
        unchanged: dict[str, T] = {}
        for user, (read, value, record) in before.items():
            result = step(record)
            after = write_record(record)
            if not _is_same(value, after):
                changes.append((record, result, _write(record, after, read)))
            elif not self._is_unanswered(user):  # else it is left to `_change`
                unchanged[user] = result
        made: dict[str, T] = {}
        outcomes = await self._write_all(connection, [(record.user, write) for record, _, write in changes])
        for (record, result, write), revision in zip(changes, outcomes, strict=True):
            if not isinstance(revision, OutdatedError):
                made[record.user] = result
                self._note(record, revision, write.value)
        return made, unchanged

    async def _change(
        self, connection: NatsConnection, user: str, step: Callable[[UserRecord], T], guess: Written | None = None
    ) -> T:
        for attempt in range(MAX_ATTEMPTS):
            before = guess or _written(user, *await connection.bucket.get(f"user.{user}"))
            result = step(before.record)
            after = write_record(before.record)
            is_guess, guess = guess is not None, None
            if _is_same(before.value, after):
                if is_guess:
                    continue
                if not self._is_unanswered(user):
                    return result
            write = _write(before.record, after, before.revision)
            (revision,) = await self._write_all(connection, [(user, write)])
            if not isinstance(revision, OutdatedError):
                self._note(before.record, revision, after)
                return result
            if not is_guess:
                await asyncio.sleep(random.random() * min(0.1, 0.002 * 2**attempt))  # noqa: S311 - no secret
        raise OutdatedError(f"other nodes changed the record of this user {MAX_ATTEMPTS} times at the same moment")

    async def _write_all(
        self, connection: NatsConnection, writes: Sequence[tuple[str, Write]]
    ) -> list[int | OutdatedError]:
        """Make these writes, each of a user; see `Bucket.write_many`."""
        if not writes:
            return []
        try:
            outcomes = await connection.bucket.write_many(
                [
                    write
                    if write.value or not self._is_unanswered(user)
                    else Write(write.key, NOTHING, write.revision, LATE)
                    for user, write in writes
                ]
            )
        except BaseException:
            self._unanswered |= dict.fromkeys((user for user, _ in writes), inf)
            while len(self._unanswered) > MAX_UNANSWERED:
                del self._unanswered[next(iter(self._unanswered))]
            raise
        if self._unanswered:
            for (user, _), outcome in zip(writes, outcomes, strict=True):
                if not isinstance(outcome, OutdatedError) and self._unanswered.get(user) == inf:
                    self._unanswered[user] = monotonic() + LATE
        return outcomes

    def _is_unanswered(self, user: str) -> bool:
        """Whether an earlier write may still be made."""
        until = self._unanswered.get(user, 0.0)
        if until < monotonic():
            self._unanswered.pop(user, None)
            return False
        return True

    def _note(self, record: UserRecord, revision: int, value: bytes) -> None:
        """Remember what was written."""
        if value:
            self._written[record.user] = Written(revision, value, record)
            if len(self._written) > MAX_WRITTEN:
                del self._written[next(iter(self._written))]

    def take_fired(self, node: str, fired: Transition) -> int | None:
        """The revision of a record that this node wrote last and that is empty now that this event has fired.

        None if there is none. The record is to be deleted.
        """
        written = self._written.get(fired.user)
        if written is None or self._is_unanswered(fired.user) or not written.record.is_empty_after(node, fired):
            return None
        del self._written[fired.user]
        return written.revision


def _written(user: str, revision: int, value: bytes) -> Written:
    return Written(revision, value, read_record(user, value))


def _is_same(before: bytes, after: bytes) -> bool:
    return after == before or (not after and before == NOTHING)


def _write(record: UserRecord, value: bytes, revision: int) -> Write:
    return Write(f"user.{record.user}", value, revision, None if record.devices or record.pending else CLAIM_TTL)
