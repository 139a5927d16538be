"""WSE inside uvicorn at the speed of the built-in listener: `uvicorn app:app --ws wse.uvicorn:WebSocketProtocol`.

uvicorn's own implementation reads the request of every WebSocket and calls the application, as without WSE. But the
scope offers the socket itself. `server.asgi` takes it, and from then on WSE reads and writes the frames. Other
endpoints of the application do not know the offer, so uvicorn's implementation goes on serving them.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from wse.transports.asgi import SOCKET_EXTENSION, TakenSocket

try:
    from uvicorn.protocols.utils import ClientDisconnected, get_client_addr, get_path_with_query_string

    if TYPE_CHECKING:
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as UvicornProtocol
    else:
        try:
            from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as UvicornProtocol
        except ImportError:  # pragma: no cover - the tests have both
            from uvicorn.protocols.websockets.wsproto_impl import WSProtocol as UvicornProtocol
except ImportError as exc:
    raise ImportError(
        'wse.uvicorn needs uvicorn 0.54 or later, and the library websockets or wsproto: pip install "wse[uvicorn]"'
    ) from exc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from uvicorn._types import ASGISendEvent

__all__ = ["WebSocketProtocol"]

_MAX_HELD = 64 * 1024
"""Bytes that are read before the application has answered the request; after them, nothing more is read."""


_UNUSED = ("conn", "request", "response", "buffer", "writable")
"""Parts of uvicorn's protocol that are large, and have no use once the socket is given away."""


class WebSocketProtocol(UvicornProtocol):
    """The WebSocket protocol of uvicorn, for its option `--ws` or the argument `ws` of `uvicorn.run`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requested = False
        self._held: bytearray | None = bytearray()  # what has come since the request, until it is answered
        self._stop: Callable[[], None] | None = None  # of the server that has taken the socket

    # What uvicorn and the transport call.

    def data_received(self, data: bytes) -> None:
        if self._held is None:
            super().data_received(data)
        elif self._requested:
            self._held += data
            if len(self._held) > _MAX_HELD:
                self.transport.pause_reading()
        else:
            self._requested = True
            super().data_received(data)  # uvicorn passes the request in one piece

    def shutdown(self) -> None:
        if self._stop is None:
            super().shutdown()
        else:
            self._stop()  # it closes all its WebSockets, and uvicorn waits until they have ended

    async def run_asgi(self) -> None:
        extensions = self.scope.setdefault("extensions", {})
        extensions[SOCKET_EXTENSION] = {"take": self._take}
        await super().run_asgi()

    async def send(self, message: ASGISendEvent) -> None:
        if self._stop is not None:
            raise ClientDisconnected  # as uvicorn does: what follows `server.asgi` comes after the connection's end
        await super().send(message)
        if self._held is not None and message["type"] == "websocket.accept":
            held, self._held = self._held, None
            if held:
                self.transport.resume_reading()
                super().data_received(bytes(held))

    # What `server.asgi` calls.

    @asynccontextmanager
    async def _take(self, stop: Callable[[], None]) -> AsyncIterator[TakenSocket]:
        """Give the socket away.

        Args:
            stop: Called when uvicorn ends.
        """
        await asyncio.sleep(0)  # uvicorn gives the transport to this protocol after it has passed the request on
        if self.transport.is_closing():
            raise ClientDisconnected
        scope, held = self.scope, self._held or b""
        self._stop, self._held = stop, None
        self.handshake_complete = True
        self.transport.resume_reading()
        self.logger.info('%s - "WebSocket %s" [accepted]', get_client_addr(scope), get_path_with_query_string(scope))
        for part in _UNUSED:
            vars(self).pop(part, None)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.default_headers]
        try:
            yield TakenSocket(self.transport, bytes(held), headers)
        finally:
            self.connections.discard(self)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
