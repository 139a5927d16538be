"""What waits for a receiver that does not take it: bounded, and by message type with a choice of what gives way."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wse.core.limits import Overflow
from wse.types import MessageType

if TYPE_CHECKING:
    from collections.abc import Hashable

    from wse.core.packed import Packed


class Outbox:
    """Messages in order, for one connection.

    Args:
        policies: What gives way, by message type; for all others it is `Overflow.CLOSE`.

    Attributes:
        size: Bytes that wait, or characters where a protocol makes text.
    """

    __slots__ = ("_by_slot", "_last", "_policies", "_waiting", "size")

    def __init__(self, policies: Mapping[MessageType, Overflow]) -> None:
        self._policies = policies
        # By number, in order; with the size, since a transport may turn what is packed into text, which is shorter.
        self._waiting: OrderedDict[int, tuple[Hashable, Packed, int]] = OrderedDict()
        # The numbers of those that may give way, in order, by type, or by type and key.
        self._by_slot: dict[Hashable, deque[int]] = {}
        self._last = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, type: MessageType | None, packed: Packed, room: int, key: Hashable = None) -> tuple[Overflow, int]:
        """Add a message.

        Args:
            type: Its type; `None` for what is no plain message, and never gives way.
            packed: The message; of those with a key, `LATEST` keeps the newest of each key.
            room: Bytes that the outbox may hold.

        Returns:
            The choice for its type, and how many messages have given way, this one perhaps among them. With `CLOSE` and
            one, the connection must be closed.
        """
        policy = Overflow.CLOSE if type is None else self._policies.get(type, Overflow.CLOSE)
        size = len(packed.data)
        slot: Hashable = type if packed.key is None or policy is not Overflow.LATEST else (type, packed.key)
        dropped = 0
        if policy is Overflow.LATEST or policy is Overflow.DROP_OLDEST:
            numbers = self._by_slot.setdefault(slot, deque())
            while numbers and (policy is Overflow.LATEST or self.size + size > room):
                self.size -= self._waiting.pop(numbers.popleft())[2]
                dropped += 1
            if self.size + size <= room:
                numbers.append(self._last + 1)
        if self.size + size > room:
            return policy, dropped + 1
        self._last += 1
        self._waiting[self._last] = slot, packed, size
        self.size += size
        return policy, dropped

    def take(self) -> Packed:
        """Take the oldest message out; there must be one."""
        number, (slot, packed, size) = self._waiting.popitem(last=False)
        self.size -= size
        numbers = self._by_slot.get(slot)
        if numbers and numbers[0] == number:
            numbers.popleft()
            if not numbers:
                del self._by_slot[slot]  # there may be any number of keys
        return packed

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        count = len(self._waiting)
        self._waiting.clear()
        self._by_slot.clear()
        self.size = 0
        return count
