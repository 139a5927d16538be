"""The default message protocol, `wse-default-json`."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from wse.core.ports.protocol import Codec, ExtensionTypes, Protocol
from wse.types import MessageType
from wse.validation.foreign import encode_foreign


class WseJSON(Protocol):
    """JSON arrays `[type, payload, stamp]` in text messages.

    Payloads may contain all JSON values. They may also contain dataclasses, msgspec Structs, datetimes, UUIDs, enums,
    decimals, sets and bytes (as base64), which arrive as the JSON that msgspec makes of them. NaN and infinities become
    null, as in JavaScript.
    """

    name = "wse-default-json"
    extensions = ExtensionTypes()

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=encode_foreign).encode
        self._decode = msgspec.json.Decoder().decode
        # Decodes what all known peers write, arrays of three, without a line of Python; `unpack` takes the rest.
        decode_three = msgspec.json.Decoder(tuple[Any, Any, Any]).decode
        if type(self).pack is WseJSON.pack and type(self).unpack is WseJSON.unpack:  # else a subclass knows better
            self.codec = Codec(self._encode, decode_three, utf8=True, decoder=msgspec.json.Decoder)

    def pack(self, type: MessageType, payload: Any = None, stamp: Any = None) -> str:
        return self._encode((type, payload, stamp)).decode()

    def unpack(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any]:
        try:
            message = self._decode(data)
        except msgspec.DecodeError:
            # Not a message, or half an emoji: JavaScript strings may hold lone surrogates.
            message = self._decode(_without_lone_surrogates(data))
        return to_message(message)


def to_message(message: Any) -> tuple[Any, Any, Any]:
    """An array of one to three elements, or more, as a message (WIRE.md section 2).

    Raises:
        ValueError: It is not a message.
    """
    if type(message) is list:
        size = len(message)
        if size >= 3:
            return message[0], message[1], message[2]
        if size:
            return message[0], message[1] if size > 1 else None, None
    raise ValueError("a message is an array [type, payload, stamp]")


_SURROGATE = re.compile(
    r"(?<!\\)((?:\\\\)*+)"  # backslashes before it that stand for themselves
    r"(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
"""The escape of a surrogate pair, or of a lone surrogate, which is group 2. Other escapes do not match: a megabyte of
them would keep the event loop busy for a fifth of a second."""


def _without_lone_surrogates(data: str | bytes | memoryview) -> str:
    """The same JSON with U+FFFD for escapes of half a character, which no UTF-8 can carry."""
    text = data if isinstance(data, str) else bytes(data).decode()
    return _SURROGATE.sub(lambda match: f"{match[1]}\\ufffd" if match[2] else match[0], text)
