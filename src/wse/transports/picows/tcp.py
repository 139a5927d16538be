"""What the kernel knows of a TCP connection, and how much it holds unsent."""

from __future__ import annotations

import math
import socket
import struct
import sys
from contextlib import suppress

_LAST_DATA_RECEIVED = struct.Struct("@52xI")
"""`tcpi_last_data_recv` in Linux's `struct tcp_info`: milliseconds."""

_BYTES_ACKED = struct.Struct("@120xQ")
"""`tcpi_bytes_acked` in the same."""

_NOTSENT_LOWAT = 25
"""`TCP_NOTSENT_LOWAT` on Linux, which the socket module does not name."""

MAX_UNSENT = 64 * 1024
"""Bytes that the kernel holds for one connection and has not sent. By itself it takes megabytes, which a slow receiver
then gets before anything newer: `Overflow` and `drain` would come too late."""


def bound_unsent(sock: socket.socket | None) -> None:
    """Let the kernel hold no more than `MAX_UNSENT` bytes that it has not sent; on a listening socket, for all
    connections that it accepts. Nothing happens where the kernel cannot."""
    if sock is not None and sys.platform.startswith("linux"):
        with suppress(OSError):  # not TCP
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, MAX_UNSENT)


def bytes_taken(sock: socket.socket | None) -> int:
    """How many bytes the peer has taken since the connection was opened: a slow receiver that reads raises it. 0 where
    the kernel does not tell."""
    if sock is None or not sys.platform.startswith("linux"):
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        taken: int = _BYTES_ACKED.unpack(info)[0]
    except (OSError, struct.error):
        return 0
    return taken


def seconds_since_last_byte(sock: socket.socket | None) -> float:
    """Seconds since the last byte came, of a whole message or not; infinite where the kernel does not tell."""
    if sock is None or not sys.platform.startswith("linux"):
        return math.inf
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        milliseconds: int = _LAST_DATA_RECEIVED.unpack(info)[0]
    except (OSError, struct.error):  # not TCP, or closed meanwhile; a kernel that tells less
        return math.inf
    return milliseconds / 1000
