"""Decides by the HTTP request whether it may open a WebSocket, and finds the client's address; for every transport."""

from __future__ import annotations

import logging
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from time import monotonic

from wse.core.folding import Folding

logger = logging.getLogger("wse")

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::([0-9]{1,5}))?")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._~!$&'()*+,;=%-]*)(?::([0-9]*))?")  # RFC 9110, 7.2: no user, no password
_PORTS = {"http": 80, "https": 443}

_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9A-Za-z._-]+)?")
_PARAMETER = r"\s*([\w-]+)=([^\s\",;]+|\"[^\"\\]*\")\s*"
_FORWARDED_PARAMETER = re.compile(_PARAMETER, re.ASCII)
_FORWARDED_ELEMENT = re.compile(f"{_PARAMETER}(?:;{_PARAMETER})*", re.ASCII)

Origin = tuple[str, str, int | None]
"""Scheme, host and port; the port is None for a scheme without a default port."""


class Headers(typing.Protocol):
    """The headers of a request; names compare without case."""

    def get(self, name: str, /) -> str | None:
        """The first value."""

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """All values, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """The HTTP response that is sent instead of opening a WebSocket."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        return f"{self.status} {self.status.phrase}\n"


_BAD_REQUEST = Refusal(HTTPStatus.BAD_REQUEST)
_FORBIDDEN = Refusal(HTTPStatus.FORBIDDEN)
_UNAVAILABLE = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})


class Admission:
    """A server's policy for new connections.

    Args:
        origins: The origins of web pages that may connect, besides those of the server's own host.
        trusted_proxies: Addresses and networks whose forwarding headers are trusted; `"unix"` stands for peers without
            an address, which connect by a Unix socket.
        folding: Folds the log lines of refused origins.

    Attributes:
        unready: The reasons why no client may connect at present.
        refused_origins: The number of requests that were refused for their origin.

    Raises:
        ValueError: An entry is not an origin, an address or a network.
    """

    __slots__ = ("_any", "_folding", "_origins", "_proxies", "_subdomains", "_unix", "refused_origins", "unready")

    def __init__(
        self,
        origins: str | Iterable[str] | None = None,
        trusted_proxies: str | Iterable[str] | None = None,
        folding: Folding | None = None,
    ) -> None:
        self._folding = folding or Folding(monotonic)
        listed = frozenset(_entries(origins))
        self._any = "*" in listed
        named = [_listed(entry) for entry in listed - {"*"}]
        self._origins = frozenset(origin for origin in named if not origin[1].startswith("*"))
        self._subdomains = tuple((scheme, host[1:], port) for scheme, host, port in named if host.startswith("*"))
        proxies = frozenset(_entries(trusted_proxies))
        self._unix = "unix" in proxies
        self._proxies = tuple(ip_network(entry) for entry in proxies - {"unix"})
        self.unready: set[str] = set()
        self.refused_origins = 0

    def refusal(self, headers: Headers) -> Refusal | None:
        """The response that refuses a request for a WebSocket; `None` if it is not refused.

        A refused origin is counted and logged, and not reported.
        """
        if self.unready:
            return _UNAVAILABLE
        host = headers.get("Host")
        if host is not None and not is_host(host):
            return _BAD_REQUEST
        if self.admits(headers):
            return None
        origin = headers.get("Origin") or ""
        self.refused_origins += 1
        extra = {"kind": "origin-refused", "origin": origin[:200]}
        self._folding.log(
            logger,
            logging.INFO,
            ("origin", origin[:200]),
            "refused a WebSocket for its origin, %.200r",
            origin,
            extra=extra,
        )
        return _FORBIDDEN

    def admits(self, headers: Headers) -> bool:
        """Whether the page that has made a request may, or no page has made it."""
        origin = headers.get("Origin")
        return origin is None or self._any or self._admits(origin, headers.get("Host"))

    def cross_origin(self, headers: Headers) -> Mapping[str, str]:
        """The headers of a file by which a browser lets a page of an admitted origin read it."""
        if self._any:
            return {"Access-Control-Allow-Origin": "*"}
        origin = headers.get("Origin")
        if origin is None or not self._admits(origin, headers.get("Host")):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    def _admits(self, text: str, host: str | None) -> bool:
        origin = _parsed(text)
        if origin is None:
            return False
        if origin in self._origins:
            return True
        scheme, name, port = origin
        for allowed_scheme, suffix, allowed_port in self._subdomains:
            if scheme == allowed_scheme and port == allowed_port and name.endswith(suffix):
                return True
        # The Host header names no scheme, and TLS may end at a proxy: a port that it leaves out is the page's default.
        usual = _PORTS.get(scheme)
        match = _HOST.fullmatch(host.lower()) if host and usual else None
        return match is not None and (match[1], match[2] or str(usual)) == (name, str(port))

    def address(self, peer: str, headers: Headers) -> str:
        """Return the client's IP address.

        It is the first address that is not a trusted proxy's. The search begins with the socket's peer, and goes
        through `X-Forwarded-For`, or else `Forwarded` (RFC 7239), from right to left. An entry that is not an address
        ends the search at the last proxy before it.

        Args:
            peer: The socket's peer; an empty string if it has no address.
            headers: The request's headers.
        """
        if not (self._proxies or self._unix) or not self._trusts(_address(peer)):
            return peer
        found = peer
        for address in _forwarded(headers):
            if address is None:
                break
            found = str(address)
            if not self._trusts(address):
                break
        return found

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._proxies)


def is_host(text: str) -> bool:
    """Whether a `Host` header is well-formed: a host with or without a port, or nothing."""
    return _HOST.fullmatch(text.lower()) is not None


def _entries(entries: str | Iterable[str] | None) -> Iterable[str]:
    return (entries,) if isinstance(entries, str) else entries or ()


def _listed(entry: str) -> Origin:
    origin = _parsed(entry)
    if origin is not None and re.fullmatch(r"(\*\.(?=.))?[^*]*", origin[1]):
        return origin
    raise ValueError(
        f"an origin is scheme://host or scheme://host:port without a path, with *. before the host for its "
        f"subdomains; or null, or * for all origins; not {entry!r}"
    )


def _parsed(text: str) -> Origin | None:
    """An origin as browsers write it (RFC 6454, 6.2)."""
    if text == "null":
        return ("null", "", None)
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or not text.isascii():  # browsers send Punycode
        return None
    scheme, host, digits = match.groups()
    port = int(digits) if digits else _PORTS.get(scheme)
    return (scheme, host, port) if port is None or 0 < port < 65536 else None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows an IPv4 peer as a mapped address.
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _forwarded(headers: Headers) -> Iterable[IPv4Address | IPv6Address | None]:
    """The addresses that proxies have recorded, the nearest first; `None` for an entry that is not an address."""
    values = headers.getall("X-Forwarded-For", [])
    if values:
        for hop in reversed(",".join(values).split(",")):
            yield _hop(hop.strip())
        return
    # A comma within quotes gives two malformed elements, which end the search: a client may have put it there.
    for element in reversed(",".join(headers.getall("Forwarded", [])).split(",")):
        parameters = _FORWARDED_PARAMETER.findall(element) if _FORWARDED_ELEMENT.fullmatch(element) else ()
        yield next((_hop(value.strip('"')) for name, value in parameters if name.lower() == "for"), None)


def _hop(text: str) -> IPv4Address | IPv6Address | None:
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match[1] or match[2]
    return None if "%" in text else _address(text)  # a zone has a meaning on its own host only
