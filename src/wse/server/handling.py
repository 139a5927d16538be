"""The part of a server to which an application gives its handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, overload

from wse.core.session.signals import Channel, check_handler
from wse.errors import ErrorCode
from wse.types import F, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.hub.auth import ReauthHandler
    from wse.core.hub.handshake import AuthHandler
    from wse.core.hub.hub import Hub

A = TypeVar("A", bound="AuthHandler")
R = TypeVar("R", bound="ReauthHandler")


class Handling:
    """Authentication, listeners and procedures."""

    _hub: Hub

    # Authentication.

    def identify(self, fn: A) -> A:
        """Set the identify handler; usable as a decorator."""
        check_handler(fn, "auth")
        self._hub.identify = fn
        return fn

    def use_challenge(self, fn: A) -> A:
        """Set the challenge generator, `fn(auth)`; usable as a decorator.

        It runs before the identify handler and calls `auth.quest(value)` or `auth.refuse()`; a value other than None
        that it returns is the quest.

        Raises:
            WseError: `INVALID_CRA_GENERATOR`, which is also a `TypeError`: `fn` cannot take `(auth)`.
        """
        check_handler(fn, "auth", code=ErrorCode.INVALID_CRA_GENERATOR)
        self._hub.generator = fn
        return fn

    def reauthenticate(self, fn: R) -> R:
        """Set the handler for fresh identities, `fn(conn, identity)`; usable as a decorator.

        A client whose session expires (`Handshake.accept` with `expires`) is asked for a fresh identity a minute before
        the end, or at half of a shorter time, if it can be asked (the original's clients cannot). The handler checks
        the identity and returns the new time, a `datetime` with a time zone or Unix seconds, or `None` to let the
        session end. Raising a `WseError` of `NOT_AUTHORIZED`, for example because the identity is another user's,
        closes the connection with `wse.not-authorized`; `reason` and `retry` in its details are as for
        `Handshake.refuse`. Another exception is reported on `error`, and the session ends at its time.

        Raises:
            TypeError: `fn` cannot take `(conn, identity)`.
        """
        check_handler(fn, "conn", "identity")
        self._hub.auth.reauthenticate = fn
        return fn

    # Messages and calls.

    @property
    def channel(self) -> Channel:
        """The listeners of messages by type; they take `(conn, payload)`."""
        return self._hub.endpoint.channel

    @overload
    def register(self, name: MessageType, fn: F) -> F: ...
    @overload
    def register(self, name: MessageType) -> Callable[[F], F]: ...
    def register(self, name: MessageType, fn: F | None = None) -> F | Callable[[F], F]:
        """Let clients call `fn(conn, payload)` under that name; without `fn`, a decorator.

        Its return value is the caller's result. A `WseError` that it raises reaches the caller unchanged, any other
        exception as `RP_EXECUTION_FAILED`.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is reserved.
            TypeError: `fn` cannot take `(conn, payload)`.
        """
        procedures = self._hub.endpoint.procedures
        return procedures.register(name) if fn is None else procedures.register(name, fn)

    def unregister(self, name: MessageType) -> None:
        """Remove a procedure.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self._hub.endpoint.procedures.unregister(name)
