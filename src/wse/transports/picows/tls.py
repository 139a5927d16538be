"""TLS of aiofastnet, which is quiet about peers that hang up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from wse.transports.picows.log import logger

if TYPE_CHECKING:
    import asyncio


def tls_loop(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """The event loop as aiofastnet's TLS is to see it.

    aiofastnet reports a peer that hangs up in the TLS handshake to the loop's exception handler, as if it were a fault
    of the program: a port scanner would fill a server's log with tracebacks, and a server that restarts a client's.
    """
    return cast("asyncio.AbstractEventLoop", _TlsLoop(loop))


class _TlsLoop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if context.get("message") == "SSL handshake failed":
            logger.debug("a TLS handshake failed: %r", context.get("exception"), extra={"kind": "tls-failed"})
        else:
            self._loop.call_exception_handler(context)
