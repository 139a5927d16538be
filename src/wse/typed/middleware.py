"""Middleware: functions around every call and message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isawaitable
from typing import Any, Literal

from wse.types import MessageType

Kind = Literal["call", "stream", "message"]

Next = Callable[..., Awaitable[Any]]
"""Goes on to the next middleware, or to the handler; takes the call, or nothing for the same one."""

Middleware = Callable[["Call", Next], Awaitable[Any]]
"""`async def m(call, next)`: what it returns is the result."""


class Call:
    """A call or a message, as middleware sees it.

    Attributes:
        kind: `"call"`, `"stream"` or `"message"`.
        name: The procedure, or the message's type.
        conn: The connection.
        payload: The payload as it has come, before any check; a middleware may replace it.
    """

    __slots__ = ("_rest", "conn", "kind", "name", "payload")

    def __init__(self, kind: Kind, name: MessageType, conn: Any, payload: Any, rest: Any) -> None:
        self.kind: Kind = kind
        self.name: Any = name
        self.conn = conn
        self.payload = payload
        self._rest = rest  # the items of an upload

    def __repr__(self) -> str:
        return f"<Call {self.kind} {self.name!r}>"


def through(middleware: list[Middleware], call: Call, handler: Callable[..., Any]) -> Awaitable[Any]:
    """Pass a call through all middleware, the first one first, and to its handler."""

    async def step(index: int, call: Call) -> Any:
        if index == len(middleware):
            result = handler(call.conn, call.payload, *call._rest)
            return await result if isawaitable(result) else result

        def next(changed: Call | None = None) -> Awaitable[Any]:  # noqa: A001 - the name that middleware gives it
            return step(index + 1, call if changed is None else changed)

        return await middleware[index](call, next)

    return step(0, call)


def around(
    middleware: list[Middleware],
    kind: Kind,
    name: MessageType,
    handler: Callable[..., Any],
) -> Callable[..., Any]:
    """A handler that every call reaches through the middleware."""
    if kind == "stream":

        async def stream(conn: Any, payload: Any, *rest: Any) -> AsyncIterator[Any]:
            items = await through(middleware, Call("stream", name, conn, payload, rest), handler)
            try:
                if hasattr(items, "__aiter__"):
                    async for item in items:
                        yield item
                else:
                    for item in items:
                        yield item
            finally:
                if hasattr(items, "aclose"):
                    await items.aclose()
                elif hasattr(items, "close"):
                    items.close()

        return stream

    def call(conn: Any, payload: Any, *rest: Any) -> Awaitable[Any]:
        return through(middleware, Call(kind, name, conn, payload, rest), handler)

    return call
