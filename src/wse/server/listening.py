"""Where a server listens, and how."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from wse.transports import picows

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from wse.core.ports.http import Route
    from wse.core.ports.transport import Acceptor
    from wse.server.acceptor import ServerAcceptor
    from wse.server.files import StaticFile
    from wse.transports.deflate import Compression


def checked_path(path: str) -> str:
    """The path of something that the built-in listener serves.

    Raises:
        ValueError: It does not begin with a slash.
    """
    if not path.startswith("/"):
        raise ValueError(f"a path begins with a slash, not {path!r}")
    return path


@dataclass(slots=True)
class ListenerOptions:
    """Where and how a server listens; see the arguments of `WseServer`."""

    host: str | None
    port: int | None
    path: str | None
    ssl: ssl.SSLContext | None
    compression: Compression | None
    files: Mapping[str, StaticFile] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    acceptors: dict[str, Acceptor] = field(default_factory=dict)
    reuse_port: bool = False
    unix: str | None = None
    unix_mode: int | None = None
    sock: socket.socket | None = None

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.port, self.unix, self.sock)) > 1:
            raise ValueError("a server listens at one place: give port, unix or sock")

    @property
    def listens(self) -> bool:
        """Whether it listens; otherwise it runs inside a web application."""
        return self.port is not None or self.unix is not None or self.sock is not None

    async def listen(
        self, acceptor: ServerAcceptor, handshake_timeout: float | None, port: int | None
    ) -> picows.Listener:
        """Listen.

        Args:
            acceptor: Takes over the WebSockets that the listener opens.
            handshake_timeout: Seconds that a client has for its HTTP request.
            port: The port to take; 0 takes a free one.

        Raises:
            OSError: The place is not available.
        """
        return await picows.listen(
            acceptor,
            host=self.host,
            port=port,
            reuse_port=self.reuse_port,
            unix=self.unix,
            unix_mode=self.unix_mode,
            sock=self.sock,
            path=self.path,
            ssl=self.ssl,
            handshake_timeout=handshake_timeout,
            files=self.files,
            routes=self.routes,
            acceptors=self.acceptors,
            compression=self.compression,
        )

    def url(self, port: int | None) -> str:
        """The URL for clients on this machine."""
        unix = self.unix
        if self.sock is not None and self.sock.family == getattr(socket, "AF_UNIX", None):
            unix = self.sock.getsockname()
        if unix is not None:
            place = quote(str(Path(unix).absolute()))
            return f"{'ws' if self.ssl is None else 'wss'}+unix://{place}:{self.path or '/'}"
        everywhere = {None: "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here
        host = everywhere.get(self.host, self.host)
        scheme = "ws" if self.ssl is None else "wss"
        address = f"[{host}]" if host and ":" in host else host
        return f"{scheme}://{address}:{port}{self.path or ''}"
