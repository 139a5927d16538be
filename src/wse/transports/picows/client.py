"""Open a WebSocket to a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import picows

from wse.errors import ErrorCode, WseError
from wse.transports.picows.frames import RSV1, masked_frame
from wse.transports.picows.link import PicowsLink, Turn, payload_of
from wse.transports.picows.log import logger

if TYPE_CHECKING:
    import ssl

    from wse.core.limits import Limits
    from wse.core.packed import Packed
    from wse.core.ports.transport import Link, Receiver
    from wse.transports.deflate import Compression


_MASK_OURSELVES = 2048
"""Up to this many bytes a client masks in Python and joins the frames of a turn; above, picows masks and sends."""


async def connect(
    url: str,
    protocol: str,
    headers: Mapping[str, str],
    limits: Limits,
    open: Callable[[Link], Receiver],
    *,
    ssl: ssl.SSLContext | None = None,
    timeout: float = 20.0,
    compression: Compression | None = None,
) -> None:
    """Open a WebSocket to a server; see `wse.core.ports.transport.Connector`.

    Args:
        url: `ws:` or `wss:`.
        protocol: The subprotocol to offer.
        headers: Headers of the HTTP request.
        limits: Limits on messages from the server.
        open: Makes the session of the link.
        ssl: For `wss:`; by default the system's certificates are trusted.
        timeout: Seconds until the WebSocket must be open; 0 for ever.
        compression: Offered to the server; `None` for no compression.

    Raises:
        WseError: `WS_CLIENT_ERROR`, with the reason as its cause.
    """
    wanted = {**headers, "Sec-WebSocket-Protocol": protocol}
    if compression is not None:
        wanted["Sec-WebSocket-Extensions"] = compression.offer()
    given_up = False

    def on_response(_: picows.WSUpgradeRequest, response: picows.WSUpgradeResponse) -> picows.WSListener:
        if given_up:
            return _Refusal()
        answer = ",".join(response.headers.getall("Sec-WebSocket-Extensions", []))
        deflate = None
        if answer:
            if compression is None:
                raise ValueError(f"the server answers with extensions that were not offered: {answer}")
            deflate = compression.accepted(answer)
        return PicowsClientLink(Turn(asyncio.get_running_loop()), limits, open, deflate)

    try:
        async with asyncio.timeout(timeout or None):
            _, link = await picows.ws_connect(
                on_response,
                url,
                ssl_context=ssl,
                logger_name=logger,
                websocket_handshake_timeout=timeout or None,
                enable_auto_pong=False,
                max_frame_size=limits.max_frame_size,
                extra_headers=wanted,
                read_buffer_init_size=2048,
            )
        if link is None:  # the socket closed before the server had answered
            raise ConnectionResetError("the server closed the connection without an answer")
    except (OSError, picows.WSError, ValueError) as exc:  # TimeoutError is an OSError
        problem = str(exc) or "no answer in time"
        raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": url}, problem) from exc
    finally:
        given_up = True


class _Refusal(picows.WSListener):
    """Closes a WebSocket that opens after its attempt was given up: picows goes on after a cancellation."""

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        transport.disconnect(False)


class PicowsClientLink(PicowsLink):
    """A link at a client, which masks what it sends (RFC 6455, 5.3)."""

    __slots__ = ()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        super().on_ws_disconnected(transport)
        self._turn._loop.create_task(_retrieve_exception(transport))

    def write_utf8(self, data: bytes) -> None:
        self._send(data, 0x81)

    def write_shared(self, packed: Packed) -> None:
        self._send(*payload_of(packed))

    def _put(self, payload: bytes, first: int) -> None:
        if len(payload) <= _MASK_OURSELVES:
            self._queue(masked_frame(payload, first))
        else:
            self._flush()
            kind = picows.WSMsgType.TEXT if first & 0x0F == 1 else picows.WSMsgType.BINARY
            self._transport.send(kind, payload, rsv1=bool(first & RSV1))


async def _retrieve_exception(transport: picows.WSTransport) -> None:
    """Retrieve the exception that picows keeps, or asyncio complains that nobody has."""
    with contextlib.suppress(Exception):
        await transport.wait_disconnected()
