"""The socket of a connection that redis-py has opened and logged in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from wse.brokers.reconnecting import cut
from wse.brokers.redis.private import transport_of
from wse.reading import READ_SIZE, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

_ERRORS = {"NOSCRIPT": NoScriptError, "READONLY": ReadOnlyError}


def _error(message: str) -> ResponseError:
    return _ERRORS.get(message.partition(" ")[0], ResponseError)(message)


class Wire(Reading):
    """Reads replies straight from the socket, and writes at once.

    redis-py reads in a coroutine that a task has to run, which takes as long again as all the rest of a message.

    Args:
        connection: The connection. redis-py must be reading no reply, and reads none from now on.
        replied: Called with each reply; with a `ResponseError` if it is an error.
        lost: Called when the connection has ended.
    """

    def __init__(
        self, connection: AbstractConnection, replied: Callable[[Any], None], lost: Callable[[Exception], None]
    ) -> None:
        super().__init__(memoryview(bytearray(4 * READ_SIZE)))
        self._connection = connection
        self._replied = replied
        self._lost = lost
        self._parser = hiredis.Reader(replyError=_error)
        self._transport = transport_of(connection)
        self._transport.set_protocol(self)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        parser, replied = self._parser, self._replied
        parser.feed(data)
        while (reply := parser.gets()) is not False:
            replied(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or ConnectionError("the server closed the connection"))

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)
        cut(self._transport)
