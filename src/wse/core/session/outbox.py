"""The queue of a slow receiver. It is bounded, and each message type has a policy for when it is full."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from wse.core.limits import Overflow
from wse.types import MessageKey, MessageType

if TYPE_CHECKING:
    from wse.core.packed import Packed


class _Waiting(NamedTuple):
    """A message that waits. Its size is kept, since a transport may turn packed bytes into text, which is shorter."""

    type: MessageType | None
    packed: Packed
    size: int


class Outbox:
    """The messages that wait for one connection, in order.

    Args:
        policies: The policy of each message type; all others have `Overflow.CLOSE`.

    Attributes:
        size: Bytes that wait, or characters where the protocol packs text.
    """

    __slots__ = ("_droppable", "_last", "_latest", "_policies", "_waiting", "size")

    def __init__(self, policies: Mapping[MessageType, Overflow]) -> None:
        self._policies = policies
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()  # by number, in order
        self._droppable: dict[MessageType, OrderedDict[int, None]] = {}  # numbers of those that may give way
        self._latest: dict[tuple[MessageType, MessageKey | None], int] = {}  # the number of the one that waits
        self._last = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> int:
        """The number of the oldest message; there must be one. Numbers grow, and none comes again."""
        return next(iter(self._waiting))

    @property
    def last(self) -> int:
        """The number of the newest message so far."""
        return self._last

    @property
    def newest(self) -> Packed:
        """The newest message; there must be one."""
        return self._waiting[next(reversed(self._waiting))].packed

    @property
    def messages(self) -> list[Packed]:
        """All messages, in order."""
        return [waiting.packed for waiting in self._waiting.values()]

    @property
    def typed(self) -> list[tuple[MessageType | None, Packed]]:
        """The same, with their types."""
        return [(waiting.type, waiting.packed) for waiting in self._waiting.values()]

    def withdraw(self, packed: object) -> bool:
        """Take a message out; returns whether it was there."""
        for number, waiting in self._waiting.items():
            if waiting.packed is packed:
                self._remove(number)
                return True
        return False

    def put(self, type: MessageType | None, packed: Packed, room: int) -> tuple[Overflow, int]:
        """Add a message.

        Args:
            type: Its type; `None` for a call, an answer or a message of WSE's own, which never gives way.
            packed: The message.
            room: Bytes that may wait in the outbox.

        Returns:
            The policy of its type, and how many messages were dropped, which may include this one. When one was
            dropped and the policy is `CLOSE`, the caller must close the connection.
        """
        policy = Overflow.CLOSE if type is None else self._policies.get(type, Overflow.CLOSE)
        size = len(packed.data)
        dropped = 0
        if policy is Overflow.LATEST:
            older = self._latest.get((type, packed.key))
            if older is not None:
                dropped = 1
                freed = self._waiting[older].size
                if packed.key is not None and self.size - freed + size <= room:
                    # In the place of the older one: at the end, a key that changes often would never get its turn.
                    self._waiting[older] = _Waiting(type, packed, size)
                    self.size += size - freed
                    return policy, dropped
                self._remove(older)
        if policy is Overflow.LATEST or policy is Overflow.DROP_OLDEST:
            droppable = self._droppable.get(type)
            while droppable and self.size + size > room:
                self._remove(next(iter(droppable)))
                dropped += 1
        if self.size + size > room:
            return policy, dropped + 1
        self._last = number = self._last + 1
        self._waiting[number] = _Waiting(type, packed, size)
        self.size += size
        if policy is Overflow.LATEST or policy is Overflow.DROP_OLDEST:
            self._droppable.setdefault(type, OrderedDict())[number] = None
            if policy is Overflow.LATEST:
                self._latest[type, packed.key] = number
        return policy, dropped

    def take(self) -> Packed:
        """Take the oldest message out; there must be one."""
        return self._remove(next(iter(self._waiting)))

    def _remove(self, number: int) -> Packed:
        type_, packed, size = self._waiting.pop(number)
        self.size -= size
        droppable = self._droppable.get(type_)
        if droppable is not None and number in droppable:
            del droppable[number]
            if self._latest.get((type_, packed.key)) == number:
                del self._latest[type_, packed.key]
        return packed

    def clear(self) -> int:
        """Drop all messages; returns how many there were."""
        count = len(self._waiting)
        self._waiting.clear()
        self._droppable.clear()
        self._latest.clear()
        self.size = 0
        return count
