"""The interfaces between transports and the core, with the guarantees that each side gives."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wse.core.admission import Admission
    from wse.core.heartbeat import Heartbeat
    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol


Certificate = Mapping[str, Any]
"""A client's certificate; see `Request.certificate`."""


class Link(typing.Protocol):
    """One open WebSocket, as a transport gives it to a session.

    Guarantees:

    * Messages leave in the order in which they were written, and before a close.
    * After `close`, `abort` or the peer's close, `write` does nothing.
    * No method raises because of the peer or the network.
    * No method calls the session back before it returns, except `writable(False)`.

    Attributes:
        pings: Whether the link is also a `PingingLink`; web servers send their own pings.
    """

    pings: bool

    def write(self, data: str | bytes) -> None:
        """Send one message, text or binary. The transport may collect the writes of one turn of the event loop."""

    def write_utf8(self, data: bytes) -> None:
        """Send one text message that is given as UTF-8."""

    def write_shared(self, packed: Packed) -> None:
        """Send one message that also goes to other links; its wire form is built once for all of them."""

    def close(self, code: int, reason: str) -> None:
        """Send the messages that were written before, do the closing handshake, then close the socket.

        A peer that still takes messages has some time for them. A second close, with 1012, ends this time, because the
        server itself closes.
        """

    def abort(self) -> None:
        """Close the socket at once."""

    def attach(self, session: Receiver) -> None:
        """Hand everything that comes from now on to another receiver."""

    @property
    def buffered(self) -> int:
        """Bytes written that the socket has not yet taken."""
        ...

    @property
    def remote_addr(self) -> str:
        """The IP address of the socket's peer, or an empty string if there is none."""
        ...


class Pinger(typing.Protocol):
    """Finds out whether a silent peer is alive."""

    @property
    def heard(self) -> bool:
        """Whether something has come from the peer since this was set to `False`."""
        ...

    @heard.setter
    def heard(self, heard: bool) -> None: ...

    def ping(self) -> None:
        """Ask the peer for a sign of life; the session's `pong` is called when it answers (RFC 6455, 5.5.2)."""

    def silence(self) -> float:
        """Return the seconds since the last byte came from the peer; infinity if that is unknown."""
        ...


class PingingLink(Link, Pinger, typing.Protocol):
    """A link on which WSE sends the pings."""


class Receiver(typing.Protocol):
    """The receiver of the events of one open WebSocket: the core's `Session`."""

    def receive(self, data: str | bytes | memoryview) -> None:
        """Handle one whole message: `str` from a text message, anything else from a binary one."""

    def closed(self, code: int, reason: str) -> None:
        """Note that the socket has closed. `code` and `reason` are the peer's, or 1006 if it sent none (RFC 6455,
        7.1.5).
        """

    def writable(self, writable: bool) -> None:
        """Note whether the socket takes more, or its buffer is above the high-water mark."""

    def violated(self, code: int, problem: str) -> None:
        """End the connection for a violation of RFC 6455 or of a limit."""

    def pong(self) -> None:
        """Note that the peer has answered a ping."""

    def close(self, code: int, reason: str) -> None:
        """End the connection from our side; nothing happens if it has ended."""


class Request(typing.Protocol):
    """The HTTP request that opened the WebSocket."""

    @property
    def path(self) -> str:
        """The path, without the query."""
        ...

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters, decoded; the first value of a name that is repeated."""
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
    def certificate(self) -> Certificate | None:
        """The client's certificate, if the server has asked for one and checked it; else `None`.

        It is what `ssl.SSLSocket.getpeercert` returns: `certificate["subject"]`, for example. From an ASGI server with
        the extension `tls`, it has the keys `subject` and `chain`, a list of certificates as PEM.
        """
        ...

    @property
    def native(self) -> Any:
        """The framework's own request: an ASGI scope, an `aiohttp.web.Request`, or None without a framework.

        It holds what middleware has added: `native["user"]`, `native["session"]`.
        """
        ...

    @property
    def remote_addr(self) -> str:
        """The client's IP address (`Admission.address`), or an empty string if there is none."""
        ...


class StaticResource(typing.Protocol):
    """A file that a transport may send in answer to plain GETs."""

    @property
    def body(self) -> bytes:
        """Its bytes."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP headers of the response."""
        ...

    def is_fresh(self, if_none_match: str) -> bool:
        """Whether the copy that the client names in `If-None-Match` is current (RFC 9110, 13.1.2)."""
        ...


class Acceptor(typing.Protocol):
    """A server, as the transports see it."""

    @property
    def limits(self) -> Limits:
        """The limits that a transport must enforce."""
        ...

    @property
    def admission(self) -> Admission:
        """The policy for new WebSockets: a transport asks it before it upgrades, and for the address of the client."""
        ...

    @property
    def heartbeat(self) -> Heartbeat:
        """The heartbeat, for web servers that let a transport set their own."""
        ...

    @property
    def ready(self) -> bool:
        """The answer of `/readyz`."""
        ...

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The protocol for the subprotocols that a client offers, in the client's order (WIRE.md section 1)."""
        ...

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> Receiver:
        """Take over a WebSocket that has just been opened.

        With `protocol=None`, no offered subprotocol was known: the link is closed as WIRE.md section 1 says.
        """
        ...


class SocketServer(typing.Protocol):
    """Serves WebSockets on the sockets of a web server, in its place."""

    async def serve(
        self,
        transport: Any,
        received: bytes,
        key: str,
        extensions: list[str],
        protocol: Protocol | None,
        open: Callable[[Link], Receiver],
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Answer a request for a WebSocket, and return when its connection has ended.

        Cancelled, it closes the WebSocket with 1012.

        Args:
            transport: The `asyncio.Transport` of the request; another protocol gets it.
            received: What has been read after the request.
            key: The client's `Sec-WebSocket-Key`.
            extensions: The lines of its `Sec-WebSocket-Extensions`.
            protocol: The subprotocol, or `None` if the client has offered no known one.
            open: Makes the session of the link.
            headers: More headers of the answer.
        """


class Connector(typing.Protocol):
    """Opens WebSockets for a client."""

    async def __call__(
        self,
        url: str,
        protocol: str,
        headers: Mapping[str, str],
        limits: Limits,
        open: Callable[[Link], Receiver],
    ) -> None:
        """Open a WebSocket to `url`, offer the subprotocol, then call `open` with the link, once.

        Nothing that the server sends is lost between the two.

        Raises:
            WseError: `WS_CLIENT_ERROR`, when no WebSocket could be opened.
        """
