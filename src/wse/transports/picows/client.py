"""Opening a WebSocket to a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import picows

from wse.errors import ErrorCode, WseError
from wse.transports.picows.link import PicowsClientLink, Turn
from wse.transports.picows.log import logger

if TYPE_CHECKING:
    import ssl

    from wse.core.limits import Limits
    from wse.core.ports import Link
    from wse.core.session import Session
    from wse.transports.deflate import Compression


async def connect(
    url: str,
    protocol: str,
    headers: Mapping[str, str],
    limits: Limits,
    open: Callable[[Link], Session],
    *,
    ssl: ssl.SSLContext | None = None,
    timeout: float = 20.0,
    compression: Compression | None = None,
) -> None:
    """Open a WebSocket to a server; see `wse.core.ports.Connector`.

    Args:
        url: `ws:` or `wss:`.
        protocol: The subprotocol to offer.
        headers: Sent with the HTTP request.
        limits: What the server may send.
        open: Makes the session of the link.
        ssl: For `wss:`; by default the system's certificates are trusted.
        timeout: Seconds for the whole of it; 0 for ever.
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
                max_frame_size=limits.largest_frame,
                extra_headers=wanted,
                read_buffer_init_size=2048,
            )
        if link is None:  # how picows tells that the socket closed before the server had answered
            raise ConnectionResetError("the server closed the connection without an answer")
    except (OSError, picows.WSError, ValueError) as exc:  # TimeoutError is an OSError
        problem = str(exc) or "no answer in time"
        raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": url}, problem) from exc
    finally:
        given_up = True


class _Refusal(picows.WSListener):
    """Takes a WebSocket that opens when nobody waits for it any more: picows goes on after a cancellation."""

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        transport.disconnect(False)
