"""The protocol of picows, which is given an opening handshake in its own form after ours has read the peer's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from picows import WSAutoPingStrategy
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # its stubs leave it out

from wse.transports.picows.log import logger


def websocket_protocol(
    new_listener: Callable[..., Any],
    max_frame_size: int,
    *,
    authority: str | None = None,
    resource: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> WSProtocol:
    """A new protocol: of a client, if there is an authority.

    Args:
        new_listener: As picows calls it: with the request, and at a client with the response.
        max_frame_size: In bytes.
        authority: The `Host` header of a client's request.
        resource: Its path and query.
        headers: Its headers.
    """
    return WSProtocol(
        authority,
        resource,
        authority is not None,
        new_listener,
        logger,
        True,  # disconnect after an exception in the listener
        None,  # whoever opens the connection has a deadline for it
        False,  # no pings of its own
        0,
        0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # no pongs of its own: one must not overtake answers that are still queued
        max_frame_size,
        headers,
        2048,  # the read buffer at first
    )


def feed(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Hand bytes to a protocol that provides its own buffer."""
    view = memoryview(data)
    while view:
        with memoryview(protocol.get_buffer(len(view))) as buffer:
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
        protocol.buffer_updated(size)
        view = view[size:]
