"""Builds the frames that picows does not build for us (RFC 6455, 5.2)."""

from __future__ import annotations

import os

RSV1 = 0x40
"""Marks a compressed message (RFC 7692, 6)."""

SHORT_TEXT = [bytes((0x81, size)) for size in range(126)]
"""The heads of unmasked frames that carry a whole text message, for 0 to 125 bytes."""

_masks: list[bytes] = []
"""Masking keys from the system's entropy (RFC 6455, 10.3), a thousand per system call."""


def server_frame(payload: bytes, first: int) -> bytes:
    """Build an unmasked frame with the whole message (RFC 6455, 5.2)."""
    return _head(first, len(payload), 0) + payload


def masked_frame(payload: bytes, first: int) -> bytes:
    """Build a masked frame with the whole message (RFC 6455, 5.3)."""
    size = len(payload)
    if not _masks:
        random = os.urandom(4096)
        _masks.extend(random[i : i + 4] for i in range(0, 4096, 4))
    mask = _masks.pop()
    key = (mask * ((size + 3) // 4))[:size]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return _head(first, size, 0x80) + mask + masked.to_bytes(size, "little")


def _head(first: int, size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes((first, mask_bit | size))
    if size < 65536:
        return bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")
