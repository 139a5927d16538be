"""One connection of a client, from the attempt to open it to its end."""

from __future__ import annotations

import asyncio
import logging
import typing
from collections.abc import Callable, Mapping
from functools import cache
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from wse.client.session import ClientOpening, ClientSession
from wse.core.packed import encode
from wse.core.ports.credentials import Credentials
from wse.core.session.signals import HANDLER_ERRORS
from wse.core.urls import without_secrets
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import is_cancelled

if TYPE_CHECKING:
    from wse.core.packed import Packed
    from wse.core.ports.transport import Connector, Link
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.session import Session


logger = logging.getLogger("wse")


def is_asked_for(identity: Any) -> bool:
    """Whether the identity is a function, which brings a fresh one for every attempt."""
    # A class of credentials has their methods as well; calling it makes them.
    return callable(identity) and (isinstance(identity, type) or not isinstance(identity, Credentials))


@cache
def warn_of_replacement() -> None:
    """Say what to set, once: with the server's default, a second device replaces the first."""
    logger.warning(
        "a newer connection of this user has replaced this one; the server allows more with conns_per_user",
        extra={"kind": "displaced"},
    )


class ConnectionOwner(typing.Protocol):
    """A client, as its connections see it."""

    def connection_opened(self, connection: Connection, session: ClientSession) -> None:
        """The socket is open, and the client has said hi."""

    @property
    def keeps_session(self) -> bool:
        """Whether a session waits for a connection."""
        ...

    def connection_welcomed(self, connection: Connection, welcome: Any) -> None:
        """The server has accepted the client."""

    def connection_detached(self, connection: Connection, error: WseError, code: int, reason: str) -> None:
        """The connection has ended; its session can go on over another one."""

    def connection_ended(self, connection: Connection, error: WseError, code: int, reason: str) -> None:
        """The connection has ended, before or after the welcome."""

    def socket_closed(self, session: ClientSession) -> None:
        """The socket of a session has closed."""

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        """A message came that has no listener."""


class Connection:
    """One connection of a client. It is opened once, and never used again after its end.

    Args:
        owner: The client.
        endpoint: The part that all connections of the client share.
        connector: Opens WebSockets.
        url: The address of the server.
        headers: Headers of the HTTP request.
        identity: The client's identity: a value, credentials, or a function that returns one of them.
        meta: Further facts for the server.
        respond: The application's challenge handler.

    Attributes:
        session: The session, from the opening of the socket on.
        welcomed_at: The time of the welcome.
    """

    __slots__ = (
        "_connector",
        "_endpoint",
        "_failure",
        "_headers",
        "_identity",
        "_meta",
        "_owner",
        "_respond",
        "_url",
        "_welcome",
        "session",
        "welcomed_at",
    )

    def __init__(
        self,
        owner: ConnectionOwner,
        endpoint: Endpoint,
        *,
        connector: Connector,
        url: str,
        headers: Mapping[str, str],
        identity: Any,
        meta: dict[str, Any] | None,
        respond: Callable[[Any], Any] | None,
    ) -> None:
        self._owner = owner
        self._endpoint = endpoint
        self._connector = connector
        self._url = url
        self._headers = headers
        self._identity = identity
        self._meta = meta
        self._respond = respond
        self._welcome: asyncio.Future[None] = endpoint.scheduler.create_future()
        self._failure: WseError | None = None  # the client's own, for which it ends the opening
        self.session: ClientSession | None = None
        self.welcomed_at: float | None = None

    async def open(self) -> None:
        """Connect and return after the welcome; nothing stays open when this raises or is cancelled.

        Raises:
            WseError: There is no connection, for the reason that `connection_ended` also brings if the socket was open.
            Exception: Any exception of the connector or the credentials.
        """
        deadline = asyncio.timeout(self._endpoint.timeout or None)
        try:
            async with deadline:
                await self._open()
        except TimeoutError as exc:
            if not deadline.expired():
                raise
            if self.session is None:
                raise WseError(
                    ErrorCode.WS_CLIENT_ERROR, {"url": without_secrets(self._url)}, "no answer in time"
                ) from exc
            self.session.give_up()  # fires `closed`
            raise self._error(1006, "") from exc
        finally:
            if not self._welcome.cancel() and not self._welcome.cancelled():
                self._welcome.exception()  # so that asyncio does not report it as never retrieved
            if self.welcomed_at is None:
                self._give_up()

    def close(self, code: int, reason: str) -> bool:
        """End the connection from the client's side; whether it was open."""
        session = self.session
        if session is None or session.ended:
            return False
        session.close(code, reason)
        return True

    def _give_up(self) -> None:
        session = self.session
        if session is not None and not session.ended and self._owner.keeps_session:
            session.give_up()  # a proper close would end that session at the server, which may have just taken it up
        else:
            self.close(1000, CloseReason.BY_CLIENT)

    @property
    def failed_itself(self) -> bool:
        """Whether the client ended the opening for a failure of its own, which another attempt would meet again."""
        return self._failure is not None

    # Opening.

    async def _open(self) -> None:
        identity = await self._ask_identity()
        credentials = identity if isinstance(identity, Credentials) else None
        (protocol,) = self._endpoint.protocols
        payload = {
            "identity": identity if credentials is None else credentials.start(),
            "meta": self._meta or {},
        }
        offers = self._endpoint.extensions.offers(protocol.extensions)
        if offers:
            payload["ext"] = offers
        hi = encode(protocol, protocol.internal_types.hi, payload)

        def opened(link: Link) -> Session:
            return self._say_hi(link, hi, credentials)

        await self._connector(self._url, protocol.name, self._headers, self._endpoint.limits, opened)
        await self._welcome

    async def _ask_identity(self) -> Any:
        identity = self._identity
        if not is_asked_for(identity):
            return identity
        try:
            identity = identity()
            return await identity if isawaitable(identity) else identity
        except HANDLER_ERRORS as exc:
            if is_cancelled(exc):
                raise
            problem = f"the identity function failed: {exc!r}"
            raise WseError(ErrorCode.WS_CLIENT_ERROR, {"url": without_secrets(self._url)}, problem) from exc

    def _say_hi(self, link: Link, hi: Packed, credentials: Credentials | None) -> ClientSession:
        (protocol,) = self._endpoint.protocols
        session = self.session = ClientSession(self, self._endpoint, link, protocol)
        if credentials is None:
            opening = ClientOpening(session, self, self._respond, None)
        else:
            opening = ClientOpening(session, self, credentials.respond, credentials.finish)
        session.enter(opening)
        link.write_shared(hi)
        if self._welcome.done():  # given up while the socket opened
            self._give_up()
        else:
            self._owner.connection_opened(self, session)
        return session

    def _error(self, code: int, reason: str) -> WseError:
        if self._failure is not None:
            return self._failure
        if reason == CloseReason.CLIENTS_CONCURRENCY:
            warn_of_replacement()
        details = {"code": code, "reason": reason}
        if reason != CloseReason.NOT_AUTHORIZED or self.session is None:
            return WseError(ErrorCode.CONNECTION_CLOSED, details)
        return WseError(ErrorCode.NOT_AUTHORIZED, {**details, **(self.session.refusal or {})})

    # SessionOwner: called by the session.

    def session_welcomed(self, session: ClientSession, welcome: Any) -> None:
        self.welcomed_at = self._endpoint.scheduler.time()
        if not self._welcome.done():
            self._welcome.set_result(None)
        self._owner.connection_welcomed(self, welcome)

    def identity_asked(self, session: ClientSession) -> None:
        if is_asked_for(self._identity):  # another one has nothing fresh to offer
            session.spawn(self._send_identity(session))

    async def _send_identity(self, session: ClientSession) -> None:
        types = session.protocol.extensions
        assert types is not None
        try:
            identity = await self._ask_identity()
            if session.valid:
                session.write(types.auth, identity)
        except WseError as exc:
            self._endpoint.report(exc, session)

    def session_failed(self, session: ClientSession, error: WseError) -> None:
        self._failure = error

    def session_detached(self, session: ClientSession, code: int, reason: str) -> None:
        self._owner.connection_detached(self, self._error(code, reason), code, reason)

    def session_ended(self, session: ClientSession, code: int, reason: str) -> None:
        error = self._error(code, reason)
        if not self._welcome.done():
            self._welcome.set_exception(error)
        self._owner.connection_ended(self, error, code, reason)

    def socket_closed(self, session: ClientSession) -> None:
        self._owner.socket_closed(session)

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        self._owner.message_ignored(type, payload, stamp)
