"""A message that comes in several frames, or compressed (RFC 6455, 5.4; RFC 7692)."""

from __future__ import annotations

import codecs
import zlib
from typing import TYPE_CHECKING

from wse.transports.deflate import TooLargeError

if TYPE_CHECKING:
    from wse.transports.deflate import Deflate


class ViolationError(Exception):
    """What the peer sent is against the rules.

    Attributes:
        code: The close code for it (RFC 6455, 7.4.1).
    """

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


class Assembly:
    """One message in the making.

    Args:
        text: Whether it is a text message; it is checked part by part, so that a fault shows at once.
        limit: Bytes that it may have, before and after inflation.
        deflate: What inflates it, if it is compressed.
    """

    __slots__ = ("_decoder", "_deflate", "_limit", "_parts", "_size", "_text")

    def __init__(self, *, text: bool, limit: int, deflate: Deflate | None) -> None:
        self._text = text
        self._limit = limit
        self._deflate = deflate
        self._decoder = codecs.getincrementaldecoder("utf-8")() if text and deflate is None else None
        self._parts: list[str | bytes] = []
        self._size = 0

    def add(self, part: bytes, *, last: bool) -> str | bytes | None:
        """Add a frame's payload; returns the message when it was the last.

        Raises:
            ViolationError: 1009, it is above the limit; 1007, a text is not UTF-8; 1002, it cannot be inflated.
        """
        self._size += len(part)
        if self._size > self._limit:
            raise self._too_large()
        try:
            self._parts.append(part if self._decoder is None else self._decoder.decode(part, last))
            if not last:
                return None
            if self._decoder is not None:
                return "".join(self._parts)  # type: ignore[arg-type]  # the decoder made all of them
            data = b"".join(self._parts)  # type: ignore[arg-type]  # all are what came
            if self._deflate is not None:
                data = self._deflate.inflate(data, self._limit)
                if self._text:
                    return data.decode()
        except UnicodeDecodeError:
            raise ViolationError(1007, "a text message is not UTF-8") from None
        except TooLargeError:
            raise self._too_large() from None
        except zlib.error as exc:
            raise ViolationError(1002, f"a message cannot be inflated: {exc}") from None
        return data

    def _too_large(self) -> ViolationError:
        return ViolationError(1009, f"a message is larger than {self._limit} bytes")
