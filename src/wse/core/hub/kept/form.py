"""How a kept message is stored, and how it goes to devices.

A store has a message as its sender has packed it, in one message protocol, which may not be that of a device. The
number is not known when it is packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from wse.core.names import encode_name
from wse.core.packed import encode
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from wse.core.inbox import Inbox
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.store import Record
    from wse.types import MessageType

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, bool, bytes]).decode


def pack(protocols: Iterable[Protocol], type: MessageType, payload: Any) -> bytes:
    """Encode a message for the store, in the first of the protocols that can carry it.

    Raises:
        WseError: `MSG_PROCESSING_ERROR`, if none can.
    """
    failure: WseError | None = None
    for protocol in protocols:
        try:
            data = encode(protocol, type, payload).data
        except WseError as exc:
            failure = failure or exc
        else:
            return _encode((protocol.name, isinstance(data, str), data.encode() if isinstance(data, str) else data))
    assert failure is not None  # there is at least one protocol
    raise failure


def box_of(kind: str, name: Hashable) -> str:
    """The name of the box of a user or a room.

    Raises:
        TypeError, ValueError: As `encode_name`.
    """
    return kind + encode_name(name)


def packed_for_store(
    settings: Inbox,
    protocols: Iterable[Protocol],
    type: MessageType,
    payload: Any,
    key: str | None,
    ttl: float | None,
) -> bytes:
    """Encode a message for the store.

    Raises:
        WseError: `MSG_PROCESSING_ERROR`; `LIMIT_EXCEEDED`, if it is larger than the settings allow.
        TypeError, ValueError: The `ttl` is not a number of more than 0, or the `key` not a string, or empty.
    """
    if ttl is not None and (not isinstance(ttl, int | float) or not ttl > 0):
        raise ValueError(f"ttl is in seconds, more than 0, not {ttl!r}")
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key must be a string, not {key!r}")
    if key == "":
        raise ValueError("key must not be empty")
    data = pack(protocols, type, payload)
    if len(data) > settings.message:
        details = {"limit": "message", "allowed": settings.message, "size": len(data), "type": type}
        problem = f"the message has {len(data):,} bytes, and Inbox.message allows {settings.message:,}"
        raise WseError(ErrorCode.LIMIT_EXCEEDED, details, problem)
    return data


class Kept:
    """A message of a store, decoded.

    Args:
        record: The message.
        readers: Message protocols by name.

    Attributes:
        number: Its number.
        at: When it was kept, in Unix seconds.
        type: Its type.
        payload: Its payload.

    Raises:
        Exception: Any, if it cannot be decoded.
    """

    __slots__ = ("_numbered", "_plain", "at", "number", "payload", "type")

    def __init__(self, record: Record, readers: Mapping[str, Protocol]) -> None:
        name, is_text, data = _decode(record.data)
        protocol = readers.get(name)
        if protocol is None:
            raise ValueError(f"a kept message is packed in a protocol that this node does not have: {name}")
        self.type, self.payload, _ = protocol.unpack(data.decode() if is_text else data)
        self.number = record.number
        self.at = record.at
        self._numbered: dict[Protocol, Packed] = {}
        self._plain: dict[Protocol, Packed] = {}

    def numbered(self, protocol: Protocol) -> Packed:
        """The message with its number, for a device with an inbox."""
        packed = self._numbered.get(protocol)
        if packed is None:
            assert protocol.extensions is not None  # or its devices could not have one
            payload = [self.number, self.type, self.payload, self.at]
            packed = self._numbered[protocol] = encode(protocol, protocol.extensions.kept, payload)
        return packed

    def plain(self, protocol: Protocol) -> Packed:
        """The message like any other."""
        packed = self._plain.get(protocol)
        if packed is None:
            packed = self._plain[protocol] = encode(protocol, self.type, self.payload)
        return packed
