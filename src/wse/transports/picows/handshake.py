"""The client's opening handshake (RFC 6455, 4.1).

picows sends the request and takes over after the handshake. The server's answer is read and checked here: picows
refuses some that the RFC allows, `Connection: Upgrade, Keep-Alive` for example, and accepts a subprotocol that was not
offered.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote, unquote, urlsplit

from multidict import CIMultiDict

from wse.reading import READ_SIZE, Reading
from wse.transports.picows.protocol import feed, give_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from picows import WSListener
    from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stubs leave it out

MAX_HEAD: Final = 16 * 1024
"""The most bytes that the head of an answer may have."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_STATUS_LINE = re.compile(r"HTTP/1\.(\d) ([1-5]\d\d)(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")  # RFC 9112, 4
_HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")  # RFC 9110, 5.5
_URL_DELIMITERS = "%:/?#[]@!$&'()*+,;="


class HandshakeError(ValueError):
    """The server does not open a WebSocket.

    Args:
        problem: The reason.
        status: The HTTP status of the answer, if there was one.
    """

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


class Address:
    """The parts of a WebSocket URL that opening one needs.

    Attributes:
        unix: The path of the Unix socket to connect to, or `None`. In a URL, a colon separates it from the path of the
            request, as in the `ws` library of Node: `ws+unix:///run/chat.sock:/path`.
        host: The host to connect to, unless there is a Unix socket.
        port: The port to connect to.
        secure: Whether the connection uses TLS.
        authority: The `Host` header, which never carries a user name or a password.
        resource: The path and the query.
    """

    __slots__ = ("authority", "host", "port", "resource", "secure", "unix")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.secure = parts.scheme in ("wss", "wss+unix")
        self.unix: str | None = None
        host, path = parts.hostname or "", parts.path
        if parts.scheme.endswith("+unix"):
            unix, _, path = path.partition(":")
            self.unix, host = unquote(unix), "localhost"
        self.host = host if host.isascii() else host.encode("idna").decode()
        self.port = parts.port or (443 if self.secure else 80)
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = name if parts.port is None else f"{name}:{parts.port}"
        self.resource = _ascii(path) or "/"
        if parts.query:
            self.resource += f"?{_ascii(parts.query)}"


def _ascii(text: str) -> str:
    return text if text.isascii() else quote(text, safe=_URL_DELIMITERS)


class Answer:
    """The head of the server's answer.

    Args:
        head: Its bytes, without the empty line at the end.

    Raises:
        HandshakeError: It is not an HTTP response.
    """

    __slots__ = ("_is_1_0", "headers", "status")

    def __init__(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        status = _STATUS_LINE.fullmatch(first)
        if status is None:
            raise HandshakeError(f"the server does not answer in HTTP/1.1: {first[:100]!r}")
        self.status = int(status[2])
        self._is_1_0 = status[1] == "0"
        self.headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            header = _HEADER_LINE.fullmatch(line)
            if header is None:
                raise HandshakeError(f"the server's answer has a malformed header: {line[:100]!r}", self.status)
            self.headers.add(header[1], header[2].strip(" \t"))

    @property
    def is_interim(self) -> bool:
        """Whether another answer follows, as after 103 Early Hints (RFC 9110, 15.2)."""
        return 100 <= self.status < 200 and self.status != 101

    def check(self, key: str, protocol: str) -> None:
        """Check that the answer opens the WebSocket that was asked for, except for its extensions.

        Args:
            key: The `Sec-WebSocket-Key` of the request.
            protocol: The subprotocol that was offered. The server need not choose it (WIRE.md section 1).

        Raises:
            HandshakeError: The answer is not what RFC 6455, 4.1, requires.
        """
        if self.status != 101:
            # A redirect is not followed: it could take the identity, cookies and tokens to a host of its choice.
            redirect = "; redirects are not followed" if 300 <= self.status < 400 else ""
            raise HandshakeError(f"the server answers with HTTP status {self.status}{redirect}", self.status)
        if self._is_1_0:
            raise HandshakeError("the server does not answer in HTTP/1.1", self.status)
        if self.joined("Upgrade").lower() != "websocket":
            raise self._wrong("Upgrade")
        if "upgrade" not in (token.strip().lower() for token in self.joined("Connection").split(",")):
            raise self._wrong("Connection")
        if self.joined("Sec-WebSocket-Accept") != accept_value(key):
            raise self._wrong("Sec-WebSocket-Accept")
        if self.headers.getall("Sec-WebSocket-Protocol", [protocol]) != [protocol]:
            raise self._wrong("Sec-WebSocket-Protocol")

    def joined(self, name: str) -> str:
        """All values of a header, joined by commas (RFC 9110, 5.3)."""
        return ",".join(self.headers.getall(name, []))

    def _wrong(self, name: str) -> HandshakeError:
        return HandshakeError(f"the server answers with {name}: {self.joined(name)[:100]!r}", self.status)


def accept_value(key: str) -> str:
    """The `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


class ClientHandshake(Reading):
    """The protocol of a client's socket until the WebSocket is open.

    Args:
        make_websocket: Makes the picows protocol of the connection from the function that makes its listener.
        make_listener: Makes the listener from the answer's extensions.
        protocol: The subprotocol that is offered.

    Attributes:
        opened: Resolved when the listener has been told that the WebSocket is open.
    """

    def __init__(
        self,
        make_websocket: Callable[[Callable[[object, object], WSListener]], WSProtocol],
        make_listener: Callable[[str], WSListener],
        protocol: str,
    ) -> None:
        super().__init__(memoryview(bytearray(READ_SIZE)))
        self._websocket = make_websocket(lambda request, response: self._listener)
        self._make_listener = make_listener
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._listener: WSListener
        self._received = bytearray()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def give_up(self) -> None:
        """Close the socket, unless the WebSocket is open: then it belongs to its session."""
        opened = self.opened
        if not opened.cancel() and not opened.cancelled() and opened.exception() is None:
            return
        if self._transport is not None:
            self._transport.abort()

    # What the socket's transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # aiofastnet's does not derive from it
        give_transport(self._websocket, transport)  # sends the request

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return  # it was given up, and the socket is about to close
        received = self._received
        received += data
        try:
            self._read(received)
        except ValueError as exc:
            self._fail(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("the server closed the connection without an answer"))

    # Inside.

    def _read(self, received: bytearray) -> None:
        begin = 0
        while (end := received.find(b"\r\n\r\n", begin)) >= 0 and end <= MAX_HEAD:
            answer = Answer(bytes(received[begin:end]))
            begin = end + 4
            if not answer.is_interim:
                self._upgrade(answer, bytes(received[begin:]))
                return
        if len(received) > MAX_HEAD:  # of all answers together
            raise HandshakeError(f"the head of the server's answer has more than {MAX_HEAD} bytes")

    def _upgrade(self, answer: Answer, rest: bytes) -> None:
        websocket, transport = self._websocket, self._transport
        assert transport is not None
        key = websocket.transport.request.headers["Sec-WebSocket-Key"]
        answer.check(key, self._protocol)
        self._listener = self._make_listener(answer.joined("Sec-WebSocket-Extensions"))
        transport.set_protocol(websocket)
        normal = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_value(key)}\r\n\r\n"
        )
        self.opened.set_result(None)
        feed(websocket, normal.encode() + rest)

    def _fail(self, exc: Exception) -> None:
        self.opened.set_exception(exc)
        assert self._transport is not None
        self._transport.abort()
