"""The protocol of picows, which is given an opening handshake in its own form after ours has read the peer's."""

from __future__ import annotations

import asyncio
import socket
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


def give_transport(protocol: WSProtocol, transport: asyncio.BaseTransport) -> None:
    """Give a protocol its transport, which need not be TCP."""
    family = transport.get_extra_info("socket").family
    protocol.connection_made(transport if family in _INTERNET else _WithoutTcp(transport))


def real_transport(transport: asyncio.Transport) -> asyncio.Transport:
    """The transport that picows has been given, without what `give_transport` may have put around it."""
    return transport.real if isinstance(transport, _WithoutTcp) else transport


_INTERNET = (socket.AF_INET, socket.AF_INET6)


class _WithoutTcp:
    """A transport whose socket has no options of TCP. picows sets some without asking whether it has them."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_extra_info(self, name: str) -> Any:
        info = self.real.get_extra_info(name)
        return _SocketWithoutTcp(info) if name == "socket" else info


class _SocketWithoutTcp:
    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def getsockopt(self, level: int, option: int) -> int:
        """An option; picows logs it."""
        return 0 if level == socket.IPPROTO_TCP else self._real.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option."""
        if level != socket.IPPROTO_TCP:
            self._real.setsockopt(level, option, value)


def feed(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Hand bytes to a protocol that provides its own buffer."""
    view = memoryview(data)
    while view:
        with memoryview(protocol.get_buffer(len(view))) as buffer:
            size = min(len(buffer), len(view))
            buffer[:size] = view[:size]
        protocol.buffer_updated(size)
        view = view[size:]
