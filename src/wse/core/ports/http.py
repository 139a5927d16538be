"""Plain HTTP requests that a server answers beside its WebSockets."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

if typing.TYPE_CHECKING:
    from wse.core.admission import Headers


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A request.

    Attributes:
        method: GET, POST, or another one.
        path: The path, decoded.
        headers: The headers.
        body: The body.
    """

    method: str
    path: str
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The answer to it.

    Attributes:
        status: The status.
        body: The body; by default the status and its phrase.
        headers: Headers beside those that every answer has.
    """

    status: HTTPStatus = HTTPStatus.OK
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Route(typing.Protocol):
    """Answers the requests to one path.

    Attributes:
        methods: The methods that it takes; a HEAD is a GET without the body.
        max_body: Bytes that a body may have.
    """

    @property
    def methods(self) -> tuple[str, ...]: ...

    @property
    def max_body(self) -> int: ...

    def answer(self, call: HttpCall) -> HttpReply | Awaitable[HttpReply]:
        """Answer a request, at once or later."""
        ...
