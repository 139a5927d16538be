"""Puts together messages that come in several frames, or compressed (RFC 6455, 5.4; RFC 7692)."""

from __future__ import annotations

import codecs
import zlib
from typing import TYPE_CHECKING

from wse.transports.deflate import TooLargeError

if TYPE_CHECKING:
    from wse.transports.deflate import Deflate


class ViolationError(Exception):
    """The peer has broken a rule of RFC 6455, or a limit.

    Attributes:
        code: The close code to answer with (RFC 6455, 7.4.1).
    """

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


class Assembly:
    """A message whose last frame has not come.

    Args:
        text: Whether it is a text message. Its UTF-8 is checked part by part, so that a fault is found at once.
        limit: The size in bytes that it may have, both before and after it is inflated.
        deflate: The compression of the connection, if the message is compressed.
    """

    __slots__ = ("_decoder", "_deflate", "_limit", "_received", "_text")

    def __init__(self, *, text: bool, limit: int, deflate: Deflate | None) -> None:
        self._text = text
        self._limit = limit
        self._deflate = deflate
        self._decoder = codecs.getincrementaldecoder("utf-8")() if text and deflate is None else None
        # One piece: a list of parts would need many times the memory for tiny parts, and would grow without end for
        # empty ones.
        self._received = bytearray()

    def add(self, part: bytes, *, last: bool) -> str | bytes | None:
        """Add a frame's payload; returns the message when it was the last.

        Raises:
            ViolationError: 1009 for a message above the limit, 1007 for a text that is not UTF-8, 1002 for one that
                cannot be inflated.
        """
        if len(self._received) + len(part) > self._limit:
            raise self._too_large()
        self._received += part
        try:
            if self._decoder is not None:
                self._decoder.decode(part, last)  # only to check it
            if not last:
                return None
            if self._deflate is None:
                return self._received.decode() if self._text else bytes(self._received)
            data = self._deflate.inflate(bytes(self._received), self._limit)
            return data.decode() if self._text else data
        except UnicodeDecodeError:
            raise ViolationError(1007, "a text message is not UTF-8") from None
        except TooLargeError:
            raise self._too_large() from None
        except zlib.error as exc:
            raise ViolationError(1002, f"a message cannot be inflated: {exc}") from None

    def _too_large(self) -> ViolationError:
        return ViolationError(1009, f"a message is larger than {self._limit} bytes")
