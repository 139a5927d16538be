"""Changes of users' records in the register on NATS, by compare-and-set."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from wse.brokers.nats.bucket import OutdatedError, Write
from wse.brokers.nats.records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from wse.brokers.nats.connection import NatsConnection
    from wse.brokers.placement import UserRecord
    from wse.brokers.reconnecting import ReconnectingBroker
    from wse.core.ports.broker import Transition

MAX_ATTEMPTS = 40
"""How often a step is tried when others change the same user at the same time."""

CLAIM_TTL = 60
"""Seconds for which a record without devices is kept: the node that has claimed its last transition may ask again."""

MAX_WRITTEN = 1000
"""Records that are remembered as they were written."""

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

    Args:
        broker: The way to the register.
    """

    def __init__(self, broker: ReconnectingBroker[NatsConnection]) -> None:
        self._broker = broker
        self._written: dict[str, Written] = {}  # by user, what this node wrote last

    def reset(self) -> None:
        """Forget what was written."""
        self._written.clear()

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
        guesses = {user: self._written.pop(user) for user in users if user in self._written}
        unknown = [user for user in users if user not in guesses]
        found = await connection.bucket.get_many([f"user.{user}" for user in unknown])
        known = {user: _written(user, *one) for user, one in zip(unknown, found, strict=True)}
        results: dict[str, T] = {}
        changed: list[tuple[str, T, UserRecord, Write]] = []
        again: list[str] = []
        for user in users:
            before = guesses.get(user) or known[user]
            record = before.record
            result = step(record)
            after = write_record(record)
            if after != before.value:
                changed.append((user, result, record, _write(record, after, before.revision)))
            elif user in guesses:
                again.append(user)
            else:
                results[user] = result
        outcomes = await connection.bucket.write_many([write for *_, write in changed]) if changed else []
        for (user, result, record, write), revision in zip(changed, outcomes, strict=True):
            if isinstance(revision, OutdatedError):
                again.append(user)
            else:
                results[user] = result
                self._note(record, revision, write.value)
        singly = await asyncio.gather(*[self._change(connection, user, step) for user in again])
        return results | dict(zip(again, singly, strict=True))

    async def _change(
        self, connection: NatsConnection, user: str, step: Callable[[UserRecord], T], guess: Written | None = None
    ) -> T:
        for attempt in range(MAX_ATTEMPTS):
            before = guess or _written(user, *await connection.bucket.get(f"user.{user}"))
            result = step(before.record)
            after = write_record(before.record)
            is_guess, guess = guess is not None, None
            if after == before.value:
                if is_guess:
                    continue
                return result
            write = _write(before.record, after, before.revision)
            (revision,) = await connection.bucket.write_many([write])
            if not isinstance(revision, OutdatedError):
                self._note(before.record, revision, after)
                return result
            if not is_guess:
                await asyncio.sleep(random.random() * min(0.1, 0.002 * 2**attempt))  # noqa: S311 - no secret
        raise OutdatedError(f"other nodes changed the record of this user {MAX_ATTEMPTS} times at the same moment")

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
        if written is None or not written.record.is_empty_after(node, fired):
            return None
        del self._written[fired.user]
        return written.revision


def _written(user: str, revision: int, value: bytes) -> Written:
    return Written(revision, value, read_record(user, value))


def _write(record: UserRecord, value: bytes, revision: int) -> Write:
    return Write(f"user.{record.user}", value, revision, None if record.devices or record.pending else CLAIM_TTL)
