"""A message to many receivers, encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from wse.core.ports.protocol import Protocol
    from wse.types import MessageKey, MessageType

WORTH_TRIMMING: Final = 512
"""Bytes of a message from which on it is copied to save memory."""


class Packed:
    """An encoded message, with the wire forms that transports have built from it.

    Args:
        data: The payload of the WebSocket message: `str` for a text message, `bytes` for a binary one.
        utf8: Whether `data` is a text message as UTF-8.
        key: Its key, for receivers that are slow.
        shared: Whether it may go to several receivers, which then keep one copy.

    Attributes:
        frame: The unmasked RFC 6455 frame that carries it, once a transport has built it; a server sends the same
            frame to every receiver.
    """

    __slots__ = ("_deflated", "data", "frame", "key", "shared", "utf8")

    def __init__(self, data: str | bytes, utf8: bool, key: MessageKey | None = None, shared: bool = False) -> None:
        self.data = data
        self.shared = shared
        self.utf8 = utf8
        self.key = key
        self.frame: bytes | None = None
        self._deflated: dict[object, bytes] | None = None

    @property
    def deflated(self) -> dict[object, bytes]:
        """The frames that carry it compressed, by the parameters of the compression."""
        if self._deflated is None:
            self._deflated = {}
        return self._deflated

    @property
    def message(self) -> str | bytes:
        """The message as `str` or `bytes`, for transports that build no frames; built once."""
        if self.utf8:
            assert isinstance(self.data, bytes)
            self.data = self.data.decode()
            self.utf8 = False
        return self.data


def encode(protocol: Protocol, type: MessageType, payload: Any, key: MessageKey | None = None) -> Packed:
    """Encode a message without a stamp.

    Raises:
        WseError: `MSG_PROCESSING_ERROR`, with the encoder's exception as its cause.
        TypeError: The key is neither a string nor an integer of 64 bits.
    """
    if key is not None:
        check_key(key)
    codec = protocol.codec
    try:
        return Packed(codec.encode((type, payload, None)), codec.utf8, key, True)
    except Exception as exc:
        raise unencodable(type, exc) from exc


def trimmed(data: Any) -> Any:
    """The same message for one that waits: an encoder may leave half as much again unused behind its bytes."""
    return bytes(memoryview(data)) if isinstance(data, bytes) and len(data) >= WORTH_TRIMMING else data


def check_key(key: object) -> None:
    """Reject a key that could not be compared, or could not cross to other nodes.

    Raises:
        TypeError: It is neither a string nor an integer of 64 bits.
    """
    if isinstance(key, str):
        return
    if isinstance(key, bool) or not isinstance(key, int) or not -(2**63) <= key < 2**64:
        raise TypeError(f"a message's key must be a string or an integer of 64 bits, not {key!r}")


def unencodable(type: MessageType, exc: Exception) -> WseError:
    """The error for a payload that the application cannot send."""
    return WseError(ErrorCode.MSG_PROCESSING_ERROR, {"type": type}, f"the payload cannot be encoded: {exc}")
