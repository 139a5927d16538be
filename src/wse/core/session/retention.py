"""What all sessions of an endpoint keep together for peers that may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wse.core.session.ledger import Ledger


class Retention:
    """A sum of bytes with a bound.

    Args:
        bound: Bytes.
        exceeded: Called with the session that has grown, when the sum is above the bound.

    Attributes:
        used: Bytes that are kept.
    """

    __slots__ = ("_bound", "_exceeded", "used")

    def __init__(self, bound: float, exceeded: Callable[[Ledger], None]) -> None:
        self._bound = bound
        self._exceeded = exceeded
        self.used = 0

    def charge(self, ledger: Ledger, change: int) -> None:
        """A session keeps more, or less."""
        self.used += change
        if change > 0 and self.used > self._bound:
            self._exceeded(ledger)

    @property
    def is_full(self) -> bool:
        """Whether the sum is above the bound."""
        return self.used > self._bound
