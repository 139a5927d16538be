"""MessagePack, `wse-msgpack`."""

from __future__ import annotations

from typing import Any

import msgspec

from wse.core.ports.protocol import Codec, ExtensionTypes, Protocol
from wse.protocols.json import to_message
from wse.types import MessageType
from wse.validation.foreign import encode_foreign


class WseMsgpack(Protocol):
    """MessagePack arrays `[type, payload, stamp]` in binary messages.

    Payloads may hold what MessagePack has, including bytes, and the further types that `WseJSON` encodes.
    """

    name = "wse-msgpack"
    extensions = ExtensionTypes()

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder(enc_hook=encode_foreign).encode
        self._decode = msgspec.msgpack.Decoder().decode
        if type(self).pack is WseMsgpack.pack:  # else a subclass encodes itself
            decoder = msgspec.msgpack.Decoder if type(self).unpack is WseMsgpack.unpack else None
            self.codec = Codec(self._encode, self.unpack, decoder=decoder)

    def pack(self, type: MessageType, payload: Any = None, stamp: Any = None) -> bytes:
        return self._encode((type, payload, stamp))

    def unpack(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any]:
        if isinstance(data, str):
            raise TypeError("MessagePack comes in binary messages")
        return to_message(self._decode(data))
