"""The HTTP request that opened a WebSocket."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from wse.core.ports.transport import Certificate

_ESCAPED = re.compile(r"\\([0-3][0-7]{2}|.)")
"""In a quoted cookie: a character by its octal number, or one that stands for itself."""


class HttpRequest:
    """See `wse.core.ports.transport.Request`."""

    __slots__ = ("certificate", "headers", "native", "path", "query_string", "remote_addr")

    def __init__(
        self,
        target: str,
        headers: Mapping[str, str],
        remote_addr: str,
        native: Any = None,
        certificate: Certificate | None = None,
    ) -> None:
        self.path, _, self.query_string = target.partition("?")
        self.headers = headers if isinstance(headers, CompactHeaders) else CompactHeaders(headers.items())
        self.remote_addr = remote_addr
        self.native = native
        self.certificate = certificate

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters, decoded; the first value of a repeated name."""
        return dict(reversed(parse_qsl(self.query_string, keep_blank_values=True)))

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that the client sent; the last value of a repeated name.

        Browsers send names and values that RFC 6265 does not allow. One such cookie does not affect the others.
        """
        pairs = (pair.partition("=") for line in self.headers.getall("Cookie", []) for pair in line.split(";"))
        return {name.strip(): _unquoted(value.strip()) for name, equals, value in pairs if equals and name.strip()}

    def __repr__(self) -> str:
        return f"<HttpRequest {self.path} from {self.remote_addr}>"  # a query may carry a token


class CompactHeaders(Mapping[str, str]):
    """Headers that are kept for the connection's life and seldom read: one string instead of dozens of objects.

    Names compare without case; the first value of a repeated name counts.
    """

    __slots__ = ("_block",)

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._block = "\n".join([f"{name}:{value}" for name, value in headers])  # neither holds a line feed

    def __getitem__(self, name: str) -> str:
        wanted = name.lower()
        for present, value in self._items():
            if present.lower() == wanted:
                return value
        raise KeyError(name)

    def getall(self, name: str, default: list[str]) -> list[str]:
        """All values, in order."""
        wanted = name.lower()
        return [value for present, value in self._items() if present.lower() == wanted] or default

    def __iter__(self) -> Iterator[str]:
        return iter({name.lower(): name for name, _ in reversed(self._items())}.values())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _items(self) -> list[tuple[str, str]]:
        lines = self._block.split("\n") if self._block else []
        return [(name, value) for name, _, value in (line.partition(":") for line in lines)]


def tokens(values: list[str]) -> list[str]:
    """The elements of a list header, in order, from all of its lines (RFC 9110, 5.6.1)."""
    return [element for value in values for element in (part.strip() for part in value.split(",")) if element]


def decode_header(value: bytes) -> str:
    """A header's value as text: UTF-8, which browsers and programs send, or else Latin-1, which fits any bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _unquoted(value: str) -> str:
    """A cookie's value without the quotes and escapes that some libraries write (RFC 2109)."""
    if len(value) < 2 or not value.startswith('"') or not value.endswith('"'):
        return value
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)) if len(found[1]) == 3 else found[1], value[1:-1])
