"""HTTP/1.x at the built-in listener: reads a request, and builds the answers that do not open a WebSocket.

picows reads only requests in the form that browsers send. This accepts what RFC 9110 and RFC 9112 allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote

from multidict import CIMultiDict

from wse.core.admission import is_host
from wse.transports.request import CompactHeaders, decode_header, tokens

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
_BEGINNING = re.compile(_TOKEN)
_REQUEST_LINE = re.compile(rb"(%b) ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])(?=\r\n|\Z)" % _TOKEN)
_FIELD_LINE = re.compile(  # its quantifiers are possessive, so that a line which does not match costs no more
    rf"\r\n({_TOKEN.decode()}):[ \t]*+((?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?+)[ \t]*+(?=\r\n|\Z)"
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)")
_LENGTHS = re.compile(r"[0-9]{1,15}(?:[ \t]*,[ \t]*[0-9]{1,15})*")

_VERSIONS = ("13", "8", "7")
"""Of the WebSocket protocol: RFC 6455, and two drafts whose frames are the same."""

_HANDSHAKE_HEADERS = frozenset(("connection", "upgrade", "sec-websocket-key", "sec-websocket-version"))
"""Headers of the handshake alone, which are not kept for the connection's life."""


class HttpError(Exception):
    """A request that is refused, with the status and headers of the answer."""

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or {}


def is_hopeless(received: bytes | bytearray) -> bool:
    """Whether these bytes cannot become a request: they are TLS, for example, or a line ends with a line feed only."""
    return _BEGINNING.match(received) is None or received.count(b"\n") > received.count(b"\r\n")


class HttpHead:
    """The head of a request: the request line and the headers.

    Attributes:
        method: GET, HEAD, or another one, as the client wrote it.
        target: The path and the query, as the client wrote them.
        path: The path, decoded.
        body_size: The bytes of the body that follows.
        headers: The headers. Of a target in absolute form, the authority replaces `Host` (RFC 9112, 3.2.2).

    Raises:
        HttpError: The request is malformed, or has a body whose size it does not say.
    """

    __slots__ = ("_is_1_0", "body_size", "headers", "method", "path", "target")

    def __init__(self, head: bytes) -> None:
        match = _REQUEST_LINE.match(head)
        if match is None:
            raise HttpError(HTTPStatus.BAD_REQUEST)
        text = head.decode() if head.isascii() else "\r\n".join(map(decode_header, head.split(b"\r\n")))
        fields = _FIELD_LINE.findall(text)
        if len(fields) != text.count("\r\n"):
            raise HttpError(HTTPStatus.BAD_REQUEST)
        if match[3] != b"1":
            raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        self.method = match[1].decode()
        self.target = match[2].decode("utf-8", "replace")
        self._is_1_0 = match[4] == b"0"
        self.headers: CIMultiDict[str] = CIMultiDict(fields)
        self._check_host()
        self.body_size = self._find_body()
        self.path = unquote(self.target.partition("?")[0])

    def _check_host(self) -> None:
        hosts = self.headers.getall("Host", [])
        if len(hosts) > 1 or not (hosts or self._is_1_0) or not all(map(is_host, hosts)):
            raise HttpError(HTTPStatus.BAD_REQUEST)  # RFC 9112, 3.2
        if self.target.startswith("/"):
            return
        absolute = _ABSOLUTE.fullmatch(self.target)
        if absolute is None or not absolute[1] or not is_host(absolute[1]):
            raise HttpError(HTTPStatus.BAD_REQUEST)
        self.headers["Host"] = absolute[1]
        self.target = absolute[2] if absolute[2].startswith("/") else f"/{absolute[2]}"

    def _find_body(self) -> int:
        lengths = self.headers.getall("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not all(map(_LENGTHS.fullmatch, lengths)):
            raise HttpError(HTTPStatus.BAD_REQUEST)
        if not lengths:
            return 0
        sizes = {int(size) for size in tokens(lengths)}
        if len(sizes) > 1:
            raise HttpError(HTTPStatus.BAD_REQUEST)  # RFC 9112, 6.3
        return next(iter(sizes), 0)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits with the body until it is told to go on (RFC 9110, 10.1.1)."""
        return self.headers.get("Expect", "").lower() == "100-continue"

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for a WebSocket; in HTTP/1.0 it cannot (RFC 9110, 7.8)."""
        return not self._is_1_0 and self._lists("Upgrade", "websocket")

    def _lists(self, name: str, token: str) -> bool:
        """Whether a token is in a list header, which may be in several lines (RFC 9110, 5.3)."""
        if self.headers.get(name, "").lower() == token:
            return True
        return token in [element.lower() for element in tokens(self.headers.getall(name, []))]

    def websocket_key(self) -> str:
        """The `Sec-WebSocket-Key` of a handshake that is in order (RFC 6455, 4.2.1); picows checks the key itself.

        Raises:
            HttpError: The handshake is not in order.
        """
        versions = self.headers.getall("Sec-WebSocket-Version", [])
        keys = self.headers.getall("Sec-WebSocket-Key", [])
        if self.method != "GET" or not self._lists("Connection", "upgrade") or len(keys) != 1 or len(versions) != 1:
            raise HttpError(HTTPStatus.BAD_REQUEST)
        if versions[0] not in _VERSIONS:
            raise HttpError(HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
        return keys[0]

    def kept_headers(self) -> CompactHeaders:
        """The headers for the connection's life."""
        return CompactHeaders([item for item in self.headers.items() if item[0].lower() not in _HANDSHAKE_HEADERS])


def answer(status: HTTPStatus, headers: Mapping[str, str], body: bytes | None = None, *, head_only: bool) -> bytes:
    """A whole answer, after which the connection is closed.

    Args:
        status: The status.
        headers: Headers besides `Date`, `Connection` and `Content-Length`.
        body: By default, the status and its phrase.
        head_only: Leave the body out, for HEAD.
    """
    if body is None:
        body = f"{status} {status.phrase}\n".encode()
    lines = [f"HTTP/1.1 {status} {status.phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append("Connection: Upgrade, close" if "Upgrade" in headers else "Connection: close")
    if status == HTTPStatus.NOT_MODIFIED:
        body = b""
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else body)
