"""The codes and reasons that a close frame can carry (RFC 6455, 5.5 and 7.4)."""

from __future__ import annotations

_CODES = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))


def may_travel(code: int) -> bool:
    """Whether an endpoint may send the code; 1005 and 1006, for example, are never sent."""
    return code in _CODES or 3000 <= code <= 4999


FINAL = frozenset((1000, 1002, 1003, 1007, 1008, 1009, 1010))
"""Close codes after which a client does not try again, besides those of applications (3000 to 4999)."""

JUMP = 4000
"""The code with which a client leaves for another server (WIRE.md section 6)."""

OUTLIVED = frozenset((1001, 1005, 1006, JUMP))
"""Close codes of a client after which its session can go on: it goes away, says nothing, or is gone."""

RETURNS = frozenset((1012, JUMP))
"""Close codes of a server with which it asks a client to come back."""


def is_retried(code: int) -> bool:
    """Whether a reconnecting client tries again after that close code (WIRE.md section 6)."""
    return code not in FINAL and not 3000 <= code <= 4999


def check_close(code: int, reason: str) -> None:
    """Reject a code or reason that a close frame cannot carry.

    Raises:
        ValueError: The code may not be sent, or the reason is longer than 123 bytes of UTF-8.
    """
    if not may_travel(code):
        raise ValueError(f"a close code must be one of {sorted(_CODES)} or from 3000 to 4999, not {code}")
    if len(reason.encode()) > 123:
        raise ValueError("a close reason must have at most 123 bytes of UTF-8")
