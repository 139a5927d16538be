"""permessage-deflate (RFC 7692): what is agreed on in the opening handshake, and the compression itself.

Without context takeover, the default, every message is compressed by itself. That costs some of the ratio, and saves
the two windows that every connection would hold (some 300 KiB with zlib's defaults); it also lets a broadcast be
compressed once for all receivers with the same parameters.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

_TAIL = b"\x00\x00\xff\xff"  # every flush ends with it, and it does not travel (RFC 7692, 7.2.1)
_MIN_BITS = 9  # zlib cannot deflate with a window of 8 bits
_MAX_BITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Compress messages with permessage-deflate (RFC 7692), if the peer can.

    Args:
        threshold: Bytes that a message has at least to be compressed; 126 is the least that makes sense.
        level: From 1, fast, to 9, small.
        window_bits: The base-two logarithm of the window, from 9 to 15: what a message in the making costs in memory.
        context_takeover: Keep the window from message to message. Better for many similar messages; costs memory on
            every connection, and every broadcast is compressed for every connection anew.

    Raises:
        ValueError: An argument out of its range.
    """

    threshold: int = 1024
    level: int = 6
    window_bits: int = _MAX_BITS
    context_takeover: bool = False

    def __post_init__(self) -> None:
        if self.threshold < 126:
            raise ValueError(f"threshold must be at least 126 bytes, not {self.threshold}")
        if not 1 <= self.level <= 9:
            raise ValueError(f"level must be from 1 to 9, not {self.level}")
        if not _MIN_BITS <= self.window_bits <= _MAX_BITS:
            raise ValueError(f"window_bits must be from {_MIN_BITS} to {_MAX_BITS}, not {self.window_bits}")

    def offer(self) -> str:
        """What a client asks for: the value of `Sec-WebSocket-Extensions` (RFC 7692, 7.1)."""
        takeover = "" if self.context_takeover else "; server_no_context_takeover; client_no_context_takeover"
        return f"permessage-deflate{takeover}; client_max_window_bits"

    def accept(self, offers: str) -> tuple[str, Deflate] | None:
        """What a server answers to the offers of a client, and what it then does; `None` for nothing acceptable."""
        for offer in _parse(offers):
            if (answer := self._accept_one(offer)) is not None:
                return answer
        return None

    def _accept_one(self, offer: dict[str, str] | None) -> tuple[str, Deflate] | None:
        if offer is None:
            return None
        bits = self.window_bits
        if "server_max_window_bits" in offer:
            bits = min(bits, int(offer["server_max_window_bits"]))
            if bits < _MIN_BITS:
                return None
        ours = self.context_takeover and "server_no_context_takeover" not in offer
        theirs = self.context_takeover and "client_no_context_takeover" not in offer
        answer = "permessage-deflate"
        answer += "" if ours else "; server_no_context_takeover"
        answer += "" if theirs else "; client_no_context_takeover"
        answer += f"; server_max_window_bits={bits}" if "server_max_window_bits" in offer else ""
        return answer, Deflate(self, bits, takeover=ours, peer_takeover=theirs)

    def accepted(self, answer: str) -> Deflate:
        """What a client does after the server's answer to its offer.

        Raises:
            ValueError: The answer is not one to the offer, and the connection must fail (RFC 7692, 7.1).
        """
        answers = _parse(answer)
        agreed = answers[0] if len(answers) == 1 else None
        if agreed is None:
            raise ValueError(f"the server answers with extensions that were not offered: {answer}")
        bits = min(self.window_bits, int(agreed.get("client_max_window_bits") or _MAX_BITS))
        if bits < _MIN_BITS:
            raise ValueError("the server asks for a window of 8 bits, which zlib cannot do")
        ours = self.context_takeover and "client_no_context_takeover" not in agreed
        return Deflate(self, bits, takeover=ours, peer_takeover="server_no_context_takeover" not in agreed)


class TooLargeError(Exception):
    """A message inflates to more than the limit."""


class Deflate:
    """The compression that one connection has agreed on.

    Attributes:
        threshold: Bytes that a message has at least to be compressed.
        shared: What connections must have in common to send the same compressed message; `None` with takeover.
    """

    __slots__ = ("_bits", "_deflater", "_inflater", "_level", "_takeover", "shared", "threshold")

    def __init__(self, settings: Compression, bits: int, *, takeover: bool, peer_takeover: bool) -> None:
        self.threshold = settings.threshold
        self._level = settings.level
        self._bits = bits
        self._takeover = takeover
        self.shared = None if takeover else (settings.level, bits)
        self._deflater = self._new_deflater() if takeover else None
        self._inflater = zlib.decompressobj(-_MAX_BITS) if peer_takeover else None

    def deflate(self, payload: bytes) -> bytes | None:
        """The compressed message (RFC 7692, 7.2.1); `None` if it would be no smaller."""
        deflater = self._deflater or self._new_deflater()
        data = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
        return data if self._takeover or len(data) < len(payload) else None

    def inflate(self, data: bytes, limit: int) -> bytes:
        """The message (RFC 7692, 7.2.2); never more than one byte above the limit is made.

        Raises:
            TooLargeError: It has more than `limit` bytes.
            zlib.error: It was not compressed by deflate, or goes on after a final block.
        """
        inflater = self._inflater or zlib.decompressobj(-_MAX_BITS)
        message = inflater.decompress(data + _TAIL, limit + 1)
        if len(message) > limit:
            raise TooLargeError
        if inflater.eof and inflater.unused_data not in (_TAIL, b"\x00" + _TAIL):
            # Legal (7.2.1) and not supported: a message of thousands of final blocks would keep us busy for nothing.
            raise zlib.error("a final block is not the last")
        if inflater.eof and self._inflater is not None:
            self._inflater = zlib.decompressobj(-_MAX_BITS)  # a final block ends the window, too (7.2.3.4)
        return message

    def _new_deflater(self) -> zlib._Compress:
        return zlib.compressobj(self._level, zlib.DEFLATED, -self._bits)


_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = ("server_max_window_bits", "client_max_window_bits")


def _parse(extensions: str) -> list[dict[str, str] | None]:
    """The parameters of each extension in the header; `None` for one that is not permessage-deflate, or malformed."""
    return [_parse_one(part) for part in extensions.split(",")]


def _parse_one(extension: str) -> dict[str, str] | None:
    name, *parameters = (part.strip() for part in extension.split(";"))
    if name != "permessage-deflate":
        return None
    result: dict[str, str] = {}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        key, value = key.strip(), value.strip().strip('"')
        if key in result:
            return None
        if key in _FLAGS and not equals:
            result[key] = ""
        elif key in _BITS and value in {"8", "9", "10", "11", "12", "13", "14", "15"}:
            result[key] = value
        elif key == "client_max_window_bits" and not equals:
            result[key] = ""
        else:
            return None
    return result
