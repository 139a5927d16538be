"""Checks of what goes into the HTTP request that opens the WebSocket.

A line feed in a URL or a header would begin a header of its own, so it is refused before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110, 5.5
_URL = re.compile(r"[^\x00-\x20\x7f\\]*")

_UNIX_PATHS = re.compile(r"/[^:]*[^:/](:(/.*)?)?")
"""The path of a socket, and of a request."""

_PROXIES = ("http", "https", "socks4", "socks5")

_HANDSHAKE_HEADERS = frozenset(("connection", "upgrade", "content-length", "transfer-encoding"))
"""Headers that the handshake writes itself, or that would announce a body, besides those of `Sec-WebSocket-`."""


def checked_url(url: str) -> str:
    """The URL, if a WebSocket can be opened to it.

    Raises:
        ValueError: It cannot.
    """
    parts = urlsplit(url)
    if parts.scheme in ("ws+unix", "wss+unix"):
        if parts.netloc or not _UNIX_PATHS.fullmatch(parts.path) or parts.fragment:
            raise ValueError(f"the URL of a Unix socket is ws+unix:///path/of/socket:/path, not {url!r}")
    elif parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError(f"a WebSocket URL is ws://host or wss://host, not {url!r}")
    if not _URL.fullmatch(url):
        raise ValueError(f"a WebSocket URL has neither spaces, backslashes nor control characters: {url!r}")
    try:
        has_port = parts.port != 0
    except ValueError:
        has_port = False
    if not has_port:
        raise ValueError(f"a WebSocket URL with a wrong port: {url!r}")
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError as exc:
        raise ValueError(f"a WebSocket URL with a wrong host: {url!r}") from exc
    return url


def checked_proxy(url: str | None) -> str | None:
    """The URL of a proxy, if it is one.

    Raises:
        ValueError: It is not. The message does not show the URL, which may hold a password.
    """
    if url is not None:
        parts = urlsplit(url)
        try:
            complete = parts.scheme in _PROXIES and parts.hostname and parts.port and _URL.fullmatch(url)
        except ValueError:  # of the port
            complete = False
        if not complete:
            raise ValueError(f"the URL of a proxy is scheme://host:port, where the scheme is one of {_PROXIES}")
    return url


def checked_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers, if HTTP can carry them.

    Raises:
        ValueError: It cannot. The message does not show the value, which may be secret.
    """
    headers = dict(headers or {})
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a header")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"the handshake itself decides about the header {name}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the header {name} has a control character in its value")
    return headers


def checked_subprotocol(name: str) -> str:
    """The name of a message protocol, if it can be a subprotocol.

    Raises:
        ValueError: It cannot.
    """
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a WebSocket subprotocol")
    return name
