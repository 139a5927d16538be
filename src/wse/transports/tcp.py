"""Bounds and reads the queues of a TCP connection, as far as the kernel allows."""

from __future__ import annotations

import math
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

UNSENT = 16 * 1024
"""Bytes that the kernel may hold for one peer and cannot send yet.

Bytes there can no longer give way to newer messages, and at 20 kB/s they take a second. Bytes that have been sent but
not acknowledged do not count, so a fast connection loses nothing."""

HIGH_WATER = 16 * 1024
"""Bytes that may wait in a transport before the session holds messages back, as old as those when they arrive."""

FAST_HIGH_WATER = 64 * 1024
"""The same for a receiver that has shown to be fast: a burst costs less when it is not held back."""

_FAST = 0.05
"""Seconds within which a fast receiver takes more."""

_TIMES_FAST = 16
"""How often it has to do so in a row: the kernel of a slow one also takes the first bytes at once."""

_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not on Windows

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform.startswith("linux") else None

_LAST_DATA_RECEIVED = struct.Struct("@52xI")
"""`tcpi_last_data_recv` in Linux's `struct tcp_info`: milliseconds."""

_SENT = struct.Struct("@120xQ16xI")
"""`tcpi_bytes_acked` and `tcpi_notsent_bytes` in the same structure."""


def bound_unsent(sock: socket.socket | None) -> None:
    """Let the kernel take only `UNSENT` bytes that it cannot send yet, where it supports that.

    The connections of a listening socket inherit the bound.
    """
    if sock is not None and _NOTSENT_LOWAT is not None:
        with suppress(OSError):  # not TCP
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT)


class Pace:
    """Finds the high-water mark of a transport from how fast the receiver takes more.

    Attributes:
        high_water: The mark.
    """

    __slots__ = ("_paused_at", "_times_fast", "high_water")

    def __init__(self) -> None:
        self.high_water = HIGH_WATER
        self._paused_at = 0.0
        self._times_fast = 0

    def paused(self, now: float) -> None:
        """Note that the mark has been exceeded."""
        self._paused_at = now

    def resumed(self, now: float) -> bool:
        """Note that the receiver takes more; returns whether the mark has changed."""
        self._times_fast = self._times_fast + 1 if now - self._paused_at < _FAST else 0
        before = self.high_water
        self.high_water = FAST_HIGH_WATER if self._times_fast >= _TIMES_FAST else HIGH_WATER
        return self.high_water != before


def seconds_since_last_byte(sock: socket.socket | None) -> float:
    """Seconds since the last byte came, part of a message or not; infinite where the kernel does not say."""
    info = _tcp_info(sock, _LAST_DATA_RECEIVED)
    return math.inf if info is None else info[0] / 1000


class Uptake:
    """Notices whether a peer takes the bytes that wait for it, however slowly.

    Only bytes that waited count. The kernel of a frozen process also takes some, and at once.
    """

    __slots__ = ("_progress_at", "_taken", "_transport", "_waiting")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._progress_at = -math.inf
        self._taken, self._waiting = self._read()

    def pause(self, now: float) -> float:
        """Seconds since the peer was last seen to take some of the bytes that waited at the previous look.

        Infinite if it never was. The first look is made when the object is made, and this makes one.
        """
        taken, waiting = self._taken, self._waiting
        self._taken, self._waiting = self._read()
        if waiting and self._taken > taken:
            self._progress_at = now
        return now - self._progress_at

    def _read(self) -> tuple[int, int]:
        waiting = self._transport.get_write_buffer_size()
        info = _tcp_info(self._transport.get_extra_info("socket"), _SENT)
        if info is None:  # then bytes that leave the transport's buffer count as taken
            return -waiting, waiting
        acknowledged, unsent = info
        return acknowledged, waiting + unsent


def _tcp_info(sock: socket.socket | None, layout: struct.Struct) -> tuple[int, ...] | None:
    """Fields of the kernel's information about a connection; `None` where there is none."""
    if sock is None or _TCP_INFO is None:
        return None
    try:
        return layout.unpack(sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, layout.size))
    except (OSError, struct.error):  # not TCP, closed meanwhile, or an older kernel
        return None
