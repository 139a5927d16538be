"""A protocol of asyncio that reads into a buffer of its own."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

READ_SIZE: Final = 16 * 1024
"""Bytes of a buffer that suffices for most reads."""


class Reading(asyncio.BufferedProtocol, ABC):
    """A protocol that gets bytes like `asyncio.Protocol`, for which transports would allocate 256 KiB for each read.

    Args:
        buffer: May be that of other connections of the event loop as well.
    """

    __slots__ = ("_buffer",)

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))

    @abstractmethod
    def data_received(self, data: bytes) -> None:
        """So much has been read."""
