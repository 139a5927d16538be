"""The interfaces between the core and what surrounds it, with the guarantees that each side gives."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from wse.types import MessageType

if TYPE_CHECKING:
    import asyncio

    from wse.core.admission import Admission
    from wse.core.heartbeat import Heartbeat
    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.session import Session

RESERVED_PREFIX = "~wse:"
"""Type names that start with this belong to WSE (WIRE.md section 7)."""


@dataclass(frozen=True, slots=True)
class InternalTypes:
    """The type names that a protocol uses for WSE's own messages (WIRE.md section 2).

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
        """All six, to tell what an application may not use."""
        return frozenset((self.hi, self.challenge, self.welcome, self.call, self.response, self.response_error))


@dataclass(frozen=True, slots=True)
class Codec:
    """The shortest way from a message to its bytes and back, for the message path.

    Attributes:
        encode: Makes the payload of a WebSocket message of a tuple `(type, payload, stamp)`.
        decode: Makes the three of what came in. When it raises, `Protocol.unpack` has the last word.
        utf8: Whether the bytes that `encode` returns are a text message; else bytes are a binary one.
    """

    encode: Callable[[tuple[Any, Any, Any]], str | bytes]
    decode: Callable[[str | bytes | memoryview], Iterable[Any]]
    utf8: bool = False


class Protocol(ABC):
    """A message protocol: how one message `(type, payload, stamp)` becomes bytes, and back (WIRE.md section 2).

    One instance serves any number of connections, so it keeps no state about any of them.

    Attributes:
        name: The WebSocket subprotocol that stands for it (WIRE.md section 1).
        internal_types: The type names of WSE's own messages in it.
    """

    name: str

    internal_types: InternalTypes = InternalTypes()

    @cached_property
    def reserved(self) -> frozenset[MessageType]:
        """The types that an application may not use with this protocol."""
        return self.internal_types.names()

    @abstractmethod
    def pack(self, type: MessageType, payload: Any = None, stamp: Any = None) -> str | bytes:
        """Encode one message; a `str` goes out as a text message, `bytes` as a binary one.

        Raises:
            Exception: Any, if the payload cannot be encoded.
        """

    @abstractmethod
    def unpack(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any]:
        """Decode one message into `(type, payload, stamp)`: `str` came as a text message, the others as binary.

        A `memoryview` is valid only during the call.

        Raises:
            Exception: Any, if the bytes are not a message. The peer's connection is then closed.
        """

    @cached_property
    def codec(self) -> Codec:
        """How sessions encode and decode: by `pack` and `unpack`, unless a protocol has a shorter way."""
        return Codec(lambda message: self.pack(*message), self.unpack)


class Link(typing.Protocol):
    """One open WebSocket, as a transport gives it to a `Session`.

    Guarantees: what was written leaves in that order, before a close; after `close`, `abort` or the peer's close,
    `write` does nothing; no method raises for what the peer or the network did, and none calls the session back
    before it returns, but for `writable(False)`.

    Attributes:
        pings: Whether it is a `PingingLink`, too; web servers keep a heartbeat of their own.
    """

    pings: bool

    def write(self, data: str | bytes) -> None:
        """Send one message, text or binary. The transport may collect the writes of one turn of the event loop."""

    def write_utf8(self, data: bytes) -> None:
        """Send one text message that is at hand as UTF-8."""

    def write_shared(self, packed: Packed) -> None:
        """Send one message that goes to other links, too; its wire form is built once for all of them."""

    def close(self, code: int, reason: str) -> None:
        """Send what is still to be sent, do the closing handshake, then close the socket."""

    def abort(self) -> None:
        """Close the socket at once."""

    @property
    def buffered(self) -> int:
        """Bytes written that the socket has not yet taken."""
        ...

    @property
    def remote_addr(self) -> str:
        """The IP address of the socket's peer, or an empty string where there is none."""
        ...


class PingingLink(Link, typing.Protocol):
    """A link whose heartbeat is ours.

    Attributes:
        heard: Set by the link when a frame has come from the peer, and cleared by who looks at it.
    """

    heard: bool

    def ping(self) -> None:
        """Send a ping; the session's `pong` is called when it is answered (RFC 6455, 5.5.2)."""

    def silence(self) -> float:
        """Seconds since the last byte came from the peer, part of a message or not; infinite where nobody knows."""
        ...


class Timer(typing.Protocol):
    """A scheduled callback."""

    def cancel(self) -> None:
        """Do not run it; harmless when it has run."""


class Scheduler(typing.Protocol):
    """Time, timers, futures and tasks. Everything happens on one thread."""

    def time(self) -> float:
        """A monotonic clock, in seconds."""
        ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Timer:
        """Run the callback in the next turn of the loop."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run the callback after `delay` seconds."""
        ...

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the loop that everything runs on."""
        ...

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that handles its own exceptions: its first step at once where Python can do that. Who starts
        it holds its task.
        """
        ...

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it ends, and cancel it with all others of the endpoint."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine and adopt its task."""


class Request(typing.Protocol):
    """The HTTP request that opened the WebSocket."""

    @property
    def path(self) -> str:
        """The path, without the query."""
        ...

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters, decoded; the first value where a name occurs again."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names compare without case."""
        ...

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that the client sent."""
        ...

    @property
    def native(self) -> Any:
        """The framework's own request: an ASGI scope, an `aiohttp.web.Request`, or None without a framework.

        What a middleware has added is there: `native["user"]`, `native["session"]`.
        """
        ...

    @property
    def remote_addr(self) -> str:
        """The client's IP address (`Admission.address`), or an empty string where there is none."""
        ...


class Acceptor(typing.Protocol):
    """A server, as the transports see it."""

    @property
    def limits(self) -> Limits:
        """What a transport must enforce."""
        ...

    @property
    def admission(self) -> Admission:
        """Who may open a WebSocket: a transport asks it before it upgrades, and for the address of the client."""
        ...

    @property
    def heartbeat(self) -> Heartbeat:
        """For web servers whose own heartbeat can be set."""
        ...

    @property
    def ready(self) -> bool:
        """What `/readyz` tells."""
        ...

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The protocol for the subprotocols that a client offers, in the client's order (WIRE.md section 1)."""
        ...

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> Session:
        """Take over a WebSocket that has just been opened.

        With `protocol=None`, no offered subprotocol was known: the link is closed as WIRE.md section 1 says.
        """
        ...


class Connector(typing.Protocol):
    """Opens WebSockets for a client."""

    async def __call__(
        self,
        url: str,
        protocol: str,
        headers: Mapping[str, str],
        limits: Limits,
        open: Callable[[Link], Session],
    ) -> None:
        """Open a WebSocket to `url`, offer the subprotocol, then call `open` with the link, once.

        Nothing that the server sends is lost between the two.

        Raises:
            WseError: `WS_CLIENT_ERROR`, when no WebSocket could be opened.
        """


@typing.runtime_checkable
class Credentials(typing.Protocol):
    """An identity that takes part in the handshake itself; see `wse.auth.Scram`.

    Given as `identity` to a client, it makes what `hi` carries, answers the server's quest and checks the welcome.
    One object serves any number of connections, one after the other: each begins with `start`.
    """

    def start(self) -> Any:
        """The identity that `hi` carries."""

    async def respond(self, quest: Any) -> Any:
        """The response to the server's quest."""

    def finish(self, welcome: Any) -> Any:
        """Check the welcome payload and return the part that belongs to the application.

        Raises:
            WseError: `NOT_AUTHORIZED`, when the server has not proved itself.
        """
