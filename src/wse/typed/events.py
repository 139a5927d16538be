"""Messages that a server sends, and procedures of its clients, declared with their types."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from wse.core.session.signals import check_name
from wse.typed.operations import Operation, codes, declared
from wse.validation.checks import check_for

if TYPE_CHECKING:
    from wse.core.session.asking import Stream
    from wse.types import MessageType

P = TypeVar("P")
Q = TypeVar("Q")
R = TypeVar("R")


class Sends(Protocol):
    """A connection, a user or a room."""

    def send(self, type: MessageType, payload: Any = None, *, key: Any = None) -> None:
        """Send a message."""


class Broadcasts(Protocol):
    """A server."""

    def broadcast(self, type: MessageType, payload: Any = None) -> None:
        """Send a message to everybody."""


class Calls(Protocol):
    """A connection or a user."""

    async def call(self, name: MessageType, payload: Any = None, *, timeout: float | None = None) -> Any:
        """Call a procedure."""


class _Declaration:
    """What a server's application says of its clients.

    Args:
        operation: What it says.

    Attributes:
        name: The type of the message, or the name of the procedure.
        operation: What it says.
    """

    def __init__(self, operation: Operation) -> None:
        check_name(operation.name, type(self).__name__)
        payload = operation.payload
        self._check = check_for(type(None) if payload is None else payload)
        self.name: Any = operation.name
        self.operation = operation
        declared.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class Event(_Declaration, Generic[P]):
    """A message that the server sends, with the type of its payload.

        note_added = Event("note-added", Note)
        note_added.send(conn, note)

    It is in the contract of the servers that include it, themselves or by a router; without any, in that of every
    server of the process.

    Args:
        name: The type of the message.
        payload: The type of the payload; `None` for no payload.
        tags: For the contract.
        doc: What it tells, for the contract.
        examples: Payloads, for the contract.

    Raises:
        TypeError: Values of the type cannot be checked.
    """

    @overload
    def __init__(
        self: Event[None],
        name: MessageType,
        payload: None = None,
        *,
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: MessageType,
        payload: type[P],
        *,
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self: Event[Any],
        name: MessageType,
        payload: Any,
        *,
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    def __init__(
        self,
        name: MessageType,
        payload: Any = None,
        *,
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None:
        super().__init__(
            Operation(
                kind="message",
                receiver="client",
                name=name,
                payload=payload,
                tags=tuple(tags),
                doc=inspect.cleandoc(doc),
                examples=tuple(examples),
            )
        )

    @overload
    def send(self: Event[None], to: Sends | Broadcasts, payload: None = None, **options: Any) -> None: ...
    @overload
    def send(self, to: Sends | Broadcasts, payload: P, **options: Any) -> None: ...
    def send(self, to: Any, payload: Any = None, **options: Any) -> None:
        """Send the message.

        Args:
            to: A connection, a user's identity, a room; a server sends it to everybody.
            payload: The payload.
            options: Those of `to.send` or `to.broadcast`, such as `key`.

        Raises:
            TypeError: The payload is not of the declared type; `to` is none of these.
            WseError: As `to.send`.
        """
        if self._check is not None:
            payload = self._check.own(payload)
        send = getattr(to, "broadcast", None) or getattr(to, "send", None)
        if send is None:
            raise _no_receiver(to, "a connection, a user, a room or a server")
        send(self.name, payload, **options)


class ClientProcedure(_Declaration, Generic[P, R]):
    """A procedure of the clients, with the types of its payload and its result.

        full_name = ClientProcedure("full-name", None, str)
        name = await full_name(conn)

    It is in the contract as an `Event` is.

    Args:
        name: The name of the procedure.
        payload: The type of the payload; `None` for no payload.
        result: The type of the result, or of the items of a stream.
        stream: Whether it is a stream, which `stream(conn)` iterates over.
        errors: The codes of the errors that it declares, for the contract.
        tags: For the contract, as all that follow.
        doc: What it does.
        examples: Payloads.

    Raises:
        TypeError: Values of a type cannot be checked.
    """

    @overload
    def __init__(
        self: ClientProcedure[None, Q],
        name: MessageType,
        payload: None,
        result: type[Q],
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self: ClientProcedure[None, None],
        name: MessageType,
        payload: None = None,
        result: None = None,
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self: ClientProcedure[Q, None],
        name: MessageType,
        payload: type[Q],
        result: None = None,
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: MessageType,
        payload: type[P],
        result: type[R],
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    @overload
    def __init__(
        self: ClientProcedure[Any, Any],
        name: MessageType,
        payload: Any,
        result: Any,
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None: ...
    def __init__(
        self,
        name: MessageType,
        payload: Any = None,
        result: Any = None,
        *,
        stream: bool = False,
        errors: Iterable[Any] = (),
        tags: Iterable[str] = (),
        doc: str = "",
        examples: Iterable[Any] = (),
    ) -> None:
        self._result = type(None) if result is None else result
        check_for(self._result)
        super().__init__(
            Operation(
                kind="procedure",
                receiver="client",
                name=name,
                payload=payload,
                result=Any if stream else result,
                item=result if stream else Any,
                yields=stream,
                errors=codes(errors),
                tags=tuple(tags),
                doc=inspect.cleandoc(doc),
                examples=tuple(examples),
            )
        )

    @overload
    async def __call__(
        self: ClientProcedure[None, R], to: Calls, payload: None = None, *, timeout: float | None = None
    ) -> R: ...
    @overload
    async def __call__(self, to: Calls, payload: P, *, timeout: float | None = None) -> R: ...
    async def __call__(self, to: Any, payload: Any = None, **options: Any) -> Any:
        """Call it.

        Args:
            to: A connection. With a user's identity, all devices are called, and the result is a list.
            payload: The payload.
            options: Those of `to.call`, such as `timeout`.

        Raises:
            TypeError: The payload is not of the declared type; `to` is none of these.
            WseError: As `to.call`; `INVALID_PAYLOAD`: the result is not of the declared type.
        """
        if not hasattr(to, "call"):
            raise _no_receiver(to, "a connection or a user")
        return await to.call(self.name, self._own(payload), result=self._result, **options)

    @overload
    def stream(self: ClientProcedure[None, R], to: Any, payload: None = None, **options: Any) -> Stream[R]: ...
    @overload
    def stream(self, to: Any, payload: P, **options: Any) -> Stream[R]: ...
    def stream(self, to: Any, payload: Any = None, **options: Any) -> Stream[Any]:
        """Iterate over its items; see `WseConnection.stream`.

        Raises:
            TypeError: The payload is not of the declared type; `to` is no connection.
            WseError: As `WseConnection.stream`; for an item, `INVALID_PAYLOAD`: it is not of the declared type.
        """
        if not hasattr(to, "stream"):
            raise _no_receiver(to, "a connection")
        stream: Stream[Any] = to.stream(self.name, self._own(payload), item=self._result, **options)
        return stream

    def _own(self, payload: Any) -> Any:
        return payload if self._check is None else self._check.own(payload)


def _no_receiver(to: Any, what: str) -> TypeError:
    return TypeError(
        f"the receiver is {what}, not {to!r:.100}; conn.identity is what the client has sent, and conn.client its user"
    )
