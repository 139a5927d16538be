"""A message protocol: how a message becomes bytes, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from wse.types import MessageType

RESERVED_PREFIX = "~wse:"
"""Type names that start with this belong to WSE (WIRE.md section 7)."""


@dataclass(frozen=True, slots=True)
class InternalTypes:
    """The type names that a protocol uses for WSE's own messages.

    The defaults are the JSON protocol's. A custom protocol may use any hashable value that its messages can carry,
    small integers for example.
    """

    hi: MessageType = "~wse:hi"
    challenge: MessageType = "~wse:challenge"
    welcome: MessageType = "~wse:welcome"
    call: MessageType = "~wse:call"
    response: MessageType = "~wse:response"
    response_error: MessageType = "~wse:response-err"

    def names(self) -> frozenset[MessageType]:
        """All six, which an application may not use."""
        return frozenset((self.hi, self.challenge, self.welcome, self.call, self.response, self.response_error))


@dataclass(frozen=True, slots=True)
class ExtensionTypes:
    """The type names that a protocol uses for the messages of extensions.

    The defaults are those of `WseJSON` and `WseMsgpack`. Only peers that have agreed on an extension send them.
    """

    ext: MessageType = "~wse:ext"
    auth: MessageType = "~wse:auth"
    refused: MessageType = "~wse:refused"
    ask: MessageType = "~wse:ask"
    ack: MessageType = "~wse:ack"
    gap: MessageType = "~wse:gap"
    call: MessageType = "~wse:call"
    cancel: MessageType = "~wse:cancel"
    item: MessageType = "~wse:item"
    more: MessageType = "~wse:more"
    progress: MessageType = "~wse:progress"
    put: MessageType = "~wse:put"
    want: MessageType = "~wse:want"
    end: MessageType = "~wse:end"
    kept: MessageType = "~wse:kept"
    seen: MessageType = "~wse:seen"
    join: MessageType = "~wse:join"
    leave: MessageType = "~wse:leave"
    set: MessageType = "~wse:set"
    presence: MessageType = "~wse:presence"

    def names(self) -> frozenset[MessageType]:
        """All of them, which an application may not use."""
        return frozenset(getattr(self, field.name) for field in fields(self))


Decode = Callable[[str | bytes | memoryview], Iterable[Any]]
"""Makes the three of an incoming message; raises any exception for what is none."""


@dataclass(frozen=True, slots=True)
class Codec:
    """The shortest way from a message to its bytes and back, for the message path.

    Attributes:
        encode: Makes the payload of a WebSocket message of a tuple `(type, payload, stamp)`.
        decode: Makes the three of an incoming message. When it raises, the session tries `Protocol.unpack`.
        utf8: Whether the bytes that `encode` returns are a text message; else bytes are a binary one.
        decoder: For messages that are arrays `[type, payload, stamp]`: makes a decoder of a type, as those of msgspec.
    """

    encode: Callable[[tuple[Any, Any, Any]], str | bytes]
    decode: Decode
    utf8: bool = False
    decoder: Callable[[Any], Any] | None = None


class Protocol(ABC):
    """A message protocol: it turns a message `(type, payload, stamp)` into bytes, and back.

    One instance serves any number of connections, so it must not store the state of a connection.

    Attributes:
        name: The protocol's name, which is its WebSocket subprotocol.
        internal_types: The type names of WSE's own messages.
        extensions: The type names of the messages of extensions; without them, no extension is used.
    """

    name: str

    internal_types: InternalTypes = InternalTypes()
    extensions: ExtensionTypes | None = None

    @cached_property
    def reserved(self) -> frozenset[MessageType]:
        """The types that an application may not use with this protocol."""
        names = self.internal_types.names()
        return names if self.extensions is None else names | self.extensions.names()

    @abstractmethod
    def pack(self, type: MessageType, payload: Any = None, stamp: Any = None) -> str | bytes:
        """Encode one message; a `str` is sent as a text message, `bytes` as a binary one.

        Raises:
            Exception: Any, if the payload cannot be encoded.
        """

    @abstractmethod
    def unpack(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any]:
        """Decode one message into `(type, payload, stamp)`. Text messages arrive as `str`, binary ones as the others.

        A `memoryview` is valid only during the call.

        Raises:
            Exception: Any, if the bytes are not a message. The peer's connection is then closed.
        """

    @cached_property
    def codec(self) -> Codec:
        """The functions with which sessions encode and decode; by default they call `pack` and `unpack`."""
        return Codec(lambda message: self.pack(*message), self.unpack)
