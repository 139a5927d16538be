"""Traces of calls, for an observer outside; `wse.otel` is one."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from wse.types import MessageType

if TYPE_CHECKING:
    import asyncio

TRACE = "trace"
"""The name of the extension (WIRE.md section 7)."""

PARENT, STATE = "tp", "ts"
"""The keys of a call's options: `traceparent` and `tracestate` of the W3C."""


class CallSpan(typing.Protocol):
    """The span of one call that this side makes.

    Attributes:
        headers: What the peer is told of it: `PARENT`, and `STATE` if there is one.
    """

    headers: Mapping[str, str]

    def watch(self, future: asyncio.Future[Any]) -> None:
        """End the span when the call is answered or given up."""

    def fail(self, exc: BaseException) -> None:
        """End the span: the call could not be made."""


class Tracer(typing.Protocol):
    """Makes the spans of one server or client."""

    def begin(self, name: MessageType) -> CallSpan:
        """Begin the span of a call that this side makes."""
        ...

    def headers(self) -> Mapping[str, str]:
        """What another node has to know to go on with the span that is current here."""
        ...

    def continuing(self, headers: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Let the spans that begin inside the block have a peer's or another node's span as their parent, if the
        headers make sense.
        """
        ...

    def serve(self, name: MessageType, fn: Callable[..., Any], *, yields: bool) -> Callable[..., Any]:
        """A procedure whose calls have spans.

        Args:
            name: Its name.
            fn: The procedure.
            yields: Whether it is a generator, plain or async.
        """
        ...
