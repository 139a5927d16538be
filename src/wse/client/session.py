"""The client's side of one connection."""

from __future__ import annotations

import typing
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from wse.core.session.session import Session
from wse.core.session.signals import run_handler
from wse.errors import CloseReason, ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link
    from wse.core.session.endpoint import Endpoint


class SessionOwner(typing.Protocol):
    """A client, as its sessions see it."""

    def session_welcomed(self, session: ClientSession, welcome: Any) -> None:
        """The server has accepted the client."""

    def session_failed(self, session: ClientSession, error: WseError) -> None:
        """The client itself ends the opening: the handshake cannot go on."""

    def session_ended(self, session: ClientSession, code: int, reason: str) -> None:
        """The connection has ended, before or after the welcome."""

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        """A message came that has no listener."""


class ClientSession(Session):
    """A session at the client."""

    __slots__ = ("_owner", "_socket_closed")

    def __init__(self, owner: SessionOwner, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._owner = owner
        self._socket_closed: asyncio.Future[None] | None = None

    def describe(self) -> str:
        return "server"

    async def wait_closed(self) -> None:
        """Return when the socket has closed."""
        if self.ready_state != self.ready_state.CLOSED:
            if self._socket_closed is None:
                self._socket_closed = self.endpoint.scheduler.create_future()
            await self._socket_closed

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        self._owner.message_ignored(type_, payload, stamp)

    def _on_end(self, code: int, reason: str) -> None:
        self._owner.session_ended(self, code, reason)

    def _on_closed(self) -> None:
        if self._socket_closed is not None and not self._socket_closed.done():
            self._socket_closed.set_result(None)


class ClientOpening:
    """The phase of a client's session before the welcome (WIRE.md section 3).

    Args:
        session: The connection.
        owner: The client.
        respond: Answers a quest, plain or async; without it quests are ignored.
        finish: Checks the welcome and returns the part of it that belongs to the application.
    """

    __slots__ = ("_finish", "_owner", "_respond", "_session")

    ignores_input = False

    @property
    def max_size(self) -> int:
        return self._session.endpoint.limits.message_size

    def __init__(
        self,
        session: ClientSession,
        owner: SessionOwner,
        respond: Callable[[Any], Any] | None,
        finish: Callable[[Any], Any] | None,
    ) -> None:
        self._session = session
        self._owner = owner
        self._respond = respond
        self._finish = finish

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        types = self._session.protocol.internal_types
        if type == types.welcome:
            self._welcome(payload)
        elif type == types.challenge and self._respond is not None:
            run_handler(self._session, self._answer, (self._respond, payload), self._failed)
        # Anything else is ignored (WIRE.md section 3).

    def stop(self) -> None: ...

    def _welcome(self, payload: Any) -> None:
        if self._finish is not None:
            try:
                payload = self._finish(payload)
            except Exception as exc:
                self._failed(exc, CloseReason.NOT_AUTHORIZED)
                return
        self._session.enter(None)
        self._owner.session_welcomed(self._session, payload)

    def _answer(self, respond: Callable[[Any], Any], quest: Any) -> Any:
        response = respond(quest)
        if response is not None and isawaitable(response):
            return self._answer_later(response)
        self._send(response)
        return None

    async def _answer_later(self, awaitable: Any) -> None:
        self._send(await awaitable)

    def _send(self, response: Any) -> None:
        if not self._session.ended:
            self._session.write(self._session.protocol.internal_types.challenge, response)

    def _failed(self, exc: Exception, reason: str = CloseReason.BY_CLIENT) -> None:
        error = exc if isinstance(exc, WseError) else WseError(ErrorCode.INVALID_CRA_HANDLER)
        if error is not exc:
            error.__cause__ = exc
        self._owner.session_failed(self._session, error)
        self._session.close(1000, reason)
