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

        It runs before the identify handler and calls `auth.quest(value)` or `auth.refuse()`. If it returns a value
        other than None, that value is the quest.

        Raises:
            WseError: `INVALID_CRA_GENERATOR`, which is also a `TypeError`: `fn` cannot take `(auth)`.
        """
        check_handler(fn, "auth", code=ErrorCode.INVALID_CRA_GENERATOR)
        self._hub.generator = fn
        return fn

    def reauthenticate(self, fn: R) -> R:
        """Set the handler for fresh identities, `fn(conn, identity)`; usable as a decorator.

        If a session expires (`Handshake.accept` with `expires`), the client is asked for a fresh identity a minute
        before the end, or halfway through a session of less than two minutes. Clients of the original JavaScript
        package cannot be asked. The handler checks the identity. It returns the new time, a `datetime` with a time zone
        or Unix seconds, or `None` to let the session end. If the identity belongs to another user, raise a `WseError`
        with `NOT_AUTHORIZED`. It closes the connection with `wse.not-authorized`; `reason` and `retry` in its details
        are as for `Handshake.refuse`. Other exceptions are reported on `error`, and the session ends at its time.

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
    def register(
        self, name: MessageType, fn: F, *, cancel: bool = False, upload: bool = False, ordered: bool = False
    ) -> F: ...
    @overload
    def register(
        self, name: MessageType, fn: None = None, *, cancel: bool = False, upload: bool = False, ordered: bool = False
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: MessageType,
        fn: F | None = None,
        *,
        cancel: bool = False,
        upload: bool = False,
        ordered: bool = False,
    ) -> F | Callable[[F], F]:
        """Register `fn(conn, payload)` as a procedure that clients can call; without `fn`, a decorator.

        Its return value is the caller's result. A `WseError` that it raises reaches the caller unchanged, any other
        exception as `RP_EXECUTION_FAILED`.

        A generator, async or plain, is a stream: the caller iterates over what it yields (`stream`).

        Args:
            name: The name for callers.
            fn: The function.
            cancel: Cancel it when its result is no longer wanted: the caller has given up or is gone, or the deadline
                has passed. Streams are always cancelled then. Any other procedure finds that in
                `current_call().cancelled`, and goes on.
            upload: It is `fn(conn, payload, items)`, where `items` is an async iterator over what the caller sends.
            ordered: It begins when the ordered handlers of the same connection that were called before have ended.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is reserved.
            TypeError: `fn` cannot take `(conn, payload)`.
        """
        procedures = self._hub.endpoint.procedures
        if fn is None:
            return procedures.register(name, cancel=cancel, upload=upload, ordered=ordered)
        return procedures.register(name, fn, cancel=cancel, upload=upload, ordered=ordered)

    def unregister(self, name: MessageType) -> None:
        """Remove a procedure.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self._hub.endpoint.procedures.unregister(name)
