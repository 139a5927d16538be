"""A message to many receivers, encoded once."""

from __future__ import annotations


class Packed:
    """What a protocol's `pack` returned, with the wire form that a transport has made of it.

    Attributes:
        data: The payload of the WebSocket message: `str` for a text message, `bytes` for a binary one.
        frame: The unmasked RFC 6455 frame that carries it, once a transport has built it; a server sends the same
            frame to every receiver.
    """

    __slots__ = ("data", "frame")

    def __init__(self, data: str | bytes) -> None:
        self.data = data
        self.frame: bytes | None = None
