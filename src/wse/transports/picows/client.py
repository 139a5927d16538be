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


async def connect(
    url: str,
    protocol: str,
    headers: Mapping[str, str],
    limits: Limits,
    open: Callable[[Link], Session],
    *,
    ssl: ssl.SSLContext | None = None,
    timeout: float = 20.0,
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

    Raises:
        WseError: `WS_CLIENT_ERROR`, with the reason as its cause.
    """
    link = PicowsClientLink(Turn(asyncio.get_running_loop()), limits, open)
    try:
        async with asyncio.timeout(timeout or None):
            await picows.ws_connect(
                lambda: link,
                url,
                ssl_context=ssl,
                logger_name=logger,
                websocket_handshake_timeout=timeout or None,
                enable_auto_pong=False,
                max_frame_size=limits.message_size,
                extra_headers={**headers, "Sec-WebSocket-Protocol": protocol},
                read_buffer_init_size=2048,
            )
    except (OSError, picows.WSError, ValueError) as exc:  # TimeoutError is an OSError
        problem = str(exc) or "no answer in time"
        raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": url}, problem) from exc
