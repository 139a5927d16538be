"""What a server or client says of its procedures and messages: for people, and for the contract."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from wse.errors import WseError
from wse.types import MessageType

Kind = Literal["procedure", "message"]
Receiver = Literal["server", "client"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A procedure that can be called, or a message that can be sent.

    Attributes:
        kind: Which of both.
        receiver: The side that answers the call, or gets the message.
        name: The name of the procedure, or the type of the message.
        payload: The type of the payload; `Any` if none is declared, `None` if there is none.
        result: The type of the result of a procedure, as `payload`.
        item: The type of the items that a stream yields; `Any` if none is declared.
        upload: The type of the items that an upload sends, as `item`.
        yields: Whether it is a stream.
        uploads: Whether it takes an upload.
        errors: The codes of the errors that it declares.
        tags: Its tags, those of its routers first.
        doc: Its docstring, without indentation.
        examples: Payloads, as examples.
        source: The function; `None` for what is only declared.
    """

    kind: Kind
    receiver: Receiver
    name: MessageType
    payload: Any = Any
    result: Any = Any
    item: Any = Any
    upload: Any = Any
    yields: bool = False
    uploads: bool = False
    errors: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    doc: str = ""
    examples: tuple[Any, ...] = ()
    source: Any = None


@dataclass(frozen=True, slots=True)
class Opening:
    """How a client comes in.

    Attributes:
        identity: The type of the identity; `Any` if none is declared.
        meta: The type of the meta, the same.
        welcome: The type of the welcome, the same.
        doc: The docstring of the handler.
    """

    identity: Any = Any
    meta: Any = Any
    welcome: Any = Any
    doc: str = ""

    def __bool__(self) -> bool:
        """Whether something is declared."""
        return (self.identity, self.meta, self.welcome) != (Any, Any, Any)


def hint_of(hint: Any) -> Any:
    """A hint as an operation has it."""
    return None if hint is type(None) else hint


def doc_of(fn: Any) -> str:
    """The docstring of a function; "" if it has none of its own."""
    if not (inspect.isroutine(fn) or isinstance(fn, type)):
        fn = getattr(fn, "func", None) or type(fn).__call__
    return inspect.getdoc(fn) or ""


def codes(errors: Iterable[Any]) -> tuple[str, ...]:
    """The codes of declared errors: strings, or errors that have one.

    Raises:
        TypeError: Neither.
    """
    if isinstance(errors, str):
        raise TypeError(f"errors is a list of codes, not {errors!r}")
    found = []
    for error in errors:
        code = error.code if isinstance(error, WseError) else error
        if not isinstance(code, str):
            raise TypeError(f"an error is declared by its code, a string, not {error!r}")
        found.append(str(code))
    return tuple(found)


class Declared:
    """Messages and procedures of the other side that an application has declared, and the servers that have them.

    What no server or router includes is in the contract of every server of the process.
    """

    def __init__(self) -> None:
        self._all: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()  # whether it is included

    def add(self, declaration: Any) -> None:
        """It exists."""
        self._all[declaration] = False

    def include(self, declaration: Any) -> None:
        """It belongs to the servers that include it."""
        self._all[declaration] = True

    def loose(self) -> list[Any]:
        """Those that nothing includes, in the order in which they were made."""
        return [each for each, included in self._all.items() if not included]


declared: Final = Declared()
