"""The HTTP request that opened a WebSocket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl


class HttpRequest:
    """See `wse.core.ports.transport.Request`."""

    __slots__ = ("headers", "native", "path", "query_string", "remote_addr")

    def __init__(self, target: str, headers: Mapping[str, str], remote_addr: str, native: Any = None) -> None:
        self.path, _, self.query_string = target.partition("?")
        self.headers = headers
        self.remote_addr = remote_addr
        self.native = native

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters, decoded; the first value of a repeated name."""
        return dict(reversed(parse_qsl(self.query_string, keep_blank_values=True)))

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies that the client sent."""
        jar: SimpleCookie = SimpleCookie(self.headers.get("Cookie", ""))
        return {name: morsel.value for name, morsel in jar.items()}

    def __repr__(self) -> str:
        return f"<HttpRequest {self.path} from {self.remote_addr}>"  # a query may carry a token


class CompactHeaders(Mapping[str, str]):
    """Headers that are kept for the connection's life and seldom read: one string instead of dozens of objects.

    Names compare without case; the first value of a repeated name counts.
    """

    __slots__ = ("_block",)

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._block = "\n".join(f"{name}:{value}" for name, value in headers)  # neither holds a line feed

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


def offered_subprotocols(values: list[str]) -> list[str]:
    """The names in the `Sec-WebSocket-Protocol` headers, in the client's order (RFC 6455, 11.3.4)."""
    return [name for value in values for name in (part.strip() for part in value.split(",")) if name]
