"""The queue of a slow receiver. It is bounded, and each message type has a policy for when it is full."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wse.core.limits import Overflow
from wse.types import MessageType

if TYPE_CHECKING:
    from wse.core.packed import Packed


class Outbox:
    """The messages that wait for one connection, in order.

    Args:
        policies: The policy of each message type; all others have `Overflow.CLOSE`.

    Attributes:
        size: Bytes that wait, or characters where the protocol packs text.
    """

    __slots__ = ("_by_type", "_last", "_policies", "_waiting", "size")

    def __init__(self, policies: Mapping[MessageType, Overflow]) -> None:
        self._policies = policies
        # By number, in order. The size is kept, since a transport may turn packed bytes into text, which is shorter.
        self._waiting: OrderedDict[int, tuple[MessageType, Packed, int]] = OrderedDict()
        self._by_type: dict[MessageType, deque[int]] = {}  # the numbers of those that may give way, in order
        self._last = 0
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

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
        if policy is Overflow.LATEST or policy is Overflow.DROP_OLDEST:
            numbers = self._by_type.setdefault(type, deque())
            while numbers and (policy is Overflow.LATEST or self.size + size > room):
                self.size -= self._waiting.pop(numbers.popleft())[2]
                dropped += 1
            if self.size + size <= room:
                numbers.append(self._last + 1)
        if self.size + size > room:
            return policy, dropped + 1
        self._last += 1
        self._waiting[self._last] = type, packed, size
        self.size += size
        return policy, dropped

    def take(self) -> Packed:
        """Take the oldest message out; there must be one."""
        number, (kind, packed, size) = self._waiting.popitem(last=False)
        self.size -= size
        numbers = self._by_type.get(kind)
        if numbers and numbers[0] == number:
            numbers.popleft()
        return packed

    def clear(self) -> int:
        """Drop all messages; returns how many there were."""
        count = len(self._waiting)
        self._waiting.clear()
        self._by_type.clear()
        self.size = 0
        return count
