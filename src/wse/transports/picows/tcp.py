"""Asks the kernel about a TCP connection."""

from __future__ import annotations

import math
import socket
import struct
import sys

_LAST_DATA_RECEIVED = struct.Struct("@52xI")
"""`tcpi_last_data_recv` in Linux's `struct tcp_info`: milliseconds."""


def seconds_since_last_byte(sock: socket.socket | None) -> float:
    """Seconds since the last byte came, part of a message or not; infinite where the kernel does not say."""
    if sock is None or not sys.platform.startswith("linux"):
        return math.inf
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        milliseconds: int = _LAST_DATA_RECEIVED.unpack(info)[0]
    except (OSError, struct.error):  # not TCP, closed meanwhile, or an older kernel
        return math.inf
    return milliseconds / 1000
