"""What listens on this node for a session that is on its way here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wse.core.cluster.envelope import ALL, ROOM, USER, Kept, Message
from wse.core.hub.tickets import Why

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.delivery import Delivery
    from wse.core.hub.connection import WseConnection

MAX_KEPT: Final = 10_000
"""Messages that are kept for a session that is on its way."""

MAX_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes."""

RECENT: Final = 500
"""Senders of whom the last number is remembered at least."""


class Heard:
    """The number of the last message that this node has heard from each sender.

    Publishers come and go, so those that have been silent while many others sent something are forgotten.
    """

    def __init__(self) -> None:
        self._recent: dict[str, int] = {}
        self._older: dict[str, int] = {}

    def note(self, sender: str, number: int) -> None:
        """A message has come."""
        recent = self._recent
        if sender not in recent and len(recent) >= RECENT:
            self._older, self._recent = recent, {}
            recent = self._recent
        recent[sender] = number

    @property
    def last(self) -> dict[str, int]:
        """The numbers by sender."""
        return self._older | self._recent


class Placeholder:
    """Keeps what comes for a session until the session has come itself.

    Args:
        bus: The topics of this node.
        delivery: Where messages come.
        conn_id: The connection.
        user: Its user.

    Attributes:
        problem: Why the session cannot come.
        waiting: What is to be done for the session as soon as it is here.
    """

    def __init__(self, bus: Bus, delivery: Delivery, conn_id: str, user: str) -> None:
        self._bus = bus
        self._delivery = delivery
        self.conn_id = conn_id
        self.user = user
        self.problem: Why | None = None
        self.waiting: list[Callable[[WseConnection], None]] = []
        self._topics: dict[str, None] = {}
        self._kept: list[tuple[str, Message | Kept]] = []
        self._bytes = 0

    def listen(self, rooms: Iterable[str]) -> None:
        """Listen to all that the session hears: everyone, its user, and these rooms."""
        for topic in (ALL, USER + self.user, *(ROOM + room for room in rooms)):
            if topic not in self._topics:
                self._topics[topic] = None
                if topic != ALL:
                    self._bus.want(topic)
        self._delivery.placeholders[self] = None

    def take(self, topic: str, message: Message | Kept) -> None:
        """A message has come to this node."""
        if topic not in self._topics:
            return
        if not message.seq:
            self.problem = Why.UNREACHABLE  # nobody can say whether the other node has heard it
        if isinstance(message, Kept):
            self._bytes += len(message.data)
        else:
            self._bytes += sum(len(data) for _, data in message.forms.values())
        if len(self._kept) >= MAX_KEPT or self._bytes > MAX_BYTES:
            self.problem = Why.OVERFLOW
        if self.problem is None:
            self._kept.append((topic, message))

    def later(self, do: Callable[[WseConnection], None]) -> None:
        """Do something for the session as soon as it is here."""
        self.waiting.append(do)

    def unheard(self, heard: Mapping[str, int], rooms: Iterable[str]) -> list[tuple[str, Message | Kept]]:
        """The messages that the old node of the session has not heard, in order, with their topics.

        Args:
            heard: By sender, the number of the last one that it has heard.
            rooms: The rooms that the session is in.
        """
        topics = {ALL, USER + self.user, *(ROOM + room for room in rooms)}
        return [
            (topic, message)
            for topic, message in self._kept
            if topic in topics and message.seq > heard.get(message.origin, 0)
        ]

    def stop(self) -> None:
        """Keep nothing that comes from now on; the topics stay."""
        self._delivery.placeholders.pop(self, None)

    def close(self) -> None:
        """Listen no longer."""
        self.stop()
        for topic in self._topics:
            if topic != ALL:
                self._bus.unwant(topic)
        self._topics.clear()
