"""permessage-deflate (RFC 7692): the agreement in the opening handshake, and the compression itself.

Without context takeover, the default, every message is compressed by itself. Messages get a little larger, but no
connection holds the two windows of some 300 KiB (with zlib's defaults), and a broadcast is compressed once for all
receivers with the same parameters.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

_TAIL = b"\x00\x00\xff\xff"  # the end of every flush, which is not sent (RFC 7692, 7.2.1)
_MIN_BITS = 9  # zlib cannot deflate with a window of 8 bits
_MAX_BITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Compress messages with permessage-deflate (RFC 7692), if the peer supports it.

    Args:
        threshold: The size in bytes from which a message is compressed; at least 126.
        level: From 1, fast, to 9, small.
        window_bits: The base-two logarithm of the window's size, 9 to 15. A larger one compresses better, and needs
            more memory while it does.
        context_takeover: Keep the window from message to message. It is better for many similar messages, but needs
            memory for every connection, and a broadcast is compressed once for every receiver.

    Raises:
        ValueError: An argument is out of its range.
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
        """Return the offer of a client: the value of `Sec-WebSocket-Extensions` (RFC 7692, 7.1)."""
        takeover = "" if self.context_takeover else "; server_no_context_takeover; client_no_context_takeover"
        return f"permessage-deflate{takeover}; client_max_window_bits"

    def accept(self, offers: str) -> tuple[str, Deflate] | None:
        """Return a server's answer to the offers of a client, and its compression; `None` if it can accept none."""
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
        """Return the compression of a client whose offer was answered.

        Raises:
            ValueError: The answer does not fit the offer, and the connection must fail (RFC 7692, 7.1).
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
    """The compression of one connection.

    Attributes:
        threshold: The size in bytes from which a message is compressed.
        shared: A key: connections with the same one can send the same compressed message; `None` with takeover.
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
        """Compress a message (RFC 7692, 7.2.1); returns `None` if it would not be smaller."""
        deflater = self._deflater or self._new_deflater()
        data = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_TAIL)
        return data if self._takeover or len(data) < len(payload) else None

    def inflate(self, data: bytes, limit: int) -> bytes:
        """Inflate a message (RFC 7692, 7.2.2), to at most one byte above the limit.

        Raises:
            TooLargeError: It has more than `limit` bytes.
            zlib.error: It was not compressed with deflate, or continues after a final block.
        """
        inflater = self._inflater or zlib.decompressobj(-_MAX_BITS)
        message = inflater.decompress(data + _TAIL, limit + 1)
        if len(message) > limit:
            raise TooLargeError
        if inflater.eof and inflater.unused_data not in (_TAIL, b"\x00" + _TAIL):
            # Legal (7.2.1) but not supported: a message of thousands of final blocks would cost much time for nothing.
            raise zlib.error("a final block is not the last")
        if inflater.eof and self._inflater is not None:
            self._inflater = zlib.decompressobj(-_MAX_BITS)  # a final block also ends the window (7.2.3.4)
        return message

    def _new_deflater(self) -> zlib._Compress:
        return zlib.compressobj(self._level, zlib.DEFLATED, -self._bits)


_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_BITS = ("server_max_window_bits", "client_max_window_bits")


def _parse(extensions: str) -> list[dict[str, str] | None]:
    """Return the parameters of each extension in the header; `None` for one that is malformed or has another name."""
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
