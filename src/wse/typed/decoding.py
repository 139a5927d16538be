"""Decodes messages straight into the types that their handlers have declared.

A message is an array that begins with its type, which is how msgspec tells the members of a union apart. So one union
of all messages that a side knows decodes each payload into the type of its handlers, without a dict in between: to
convert a decoded dict takes twice as long as to decode it. What the union does not know, or what is not of its type,
fails here, and the session decodes it as it decodes everything else. Handlers check what is no value of their type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Union

import msgspec

from wse.core.session.signals import ONE_AROUND

if TYPE_CHECKING:
    from wse.core.ports.protocol import Protocol
    from wse.types import MessageType

TAKES: Final = "wse_takes"
"""The attribute of a handler that takes values of a class as they have been decoded. It makes them of anything else."""

MOST: Final = 1000
"""Names up to which messages are decoded in this way: each costs a class."""

Decode = Callable[[Any], Iterable[Any]]
Known = Callable[[], Iterator[tuple["MessageType", Iterable[Callable[..., Any]]]]]
"""Gives the names that a side knows, with the handlers of each."""


class Decoding:
    """The messages that one side knows, for one protocol.

    Args:
        protocol: The protocol, whose codec makes decoders.
        known: The names and their handlers.
    """

    def __init__(self, protocol: Protocol, known: Known) -> None:
        self._plain: Decode = protocol.codec.decode
        self._make: Any = protocol.codec.decoder
        self._own = frozenset(name for name in protocol.reserved if isinstance(name, str))
        self._known = known
        self._classes: dict[tuple[str, Any], Any] = {}
        self._taken: dict[Any, Any] = {}  # by name, as the union has it
        self._union: Callable[[Any], Any] = self._renewed

    def decode(self, data: Any) -> Iterable[Any]:
        """The type, the payload and the stamp of a message.

        Raises:
            Exception: Any, if it is not one that is known.
        """
        message = self._union(data)
        return message.kind, message.payload, message.stamp

    def renew(self) -> None:
        """Other names are known now, or other handlers."""
        self._union = self._renewed

    def changed(self, name: MessageType, taken: Any, *, lasts: bool) -> None:
        """The handlers of a name are others now.

        Args:
            name: The name.
            taken: The class that they take; see `taken_by`.
            lasts: Whether a new name is worth knowing: one that is not known here is decoded all the same.
        """
        if taken != self._taken.get(name, Any) or (lasts and name not in self._taken):
            self.renew()

    def _renewed(self, data: Any) -> Any:
        taken: dict[str, Any] = dict.fromkeys(self._own, Any)
        for name, handlers in self._known():
            if isinstance(name, str):
                taken[name] = taken_by(handlers)
        if len(taken) <= MOST and any(each is not Any for each in taken.values()):
            self._classes = {key: self._classes.get(key) or self._class(*key) for key in taken.items()}
            union: Any = Union[tuple(self._classes.values())]  # noqa: UP007 - made of a tuple
            self._union = self._make(union).decode
        else:
            self._union = self._decode_plain
        self._taken = taken
        return self._union(data)

    def _class(self, name: str, taken: Any) -> Any:
        fields = [("payload", taken, None), ("stamp", Any, None)]
        return msgspec.defstruct("Message", fields, namespace={"kind": name}, array_like=True, tag=name, gc=False)

    def _decode_plain(self, data: Any) -> _Plain:
        return _Plain(*self._plain(data))


class _Plain(msgspec.Struct):
    kind: Any
    payload: Any
    stamp: Any


def taken_by(handlers: Iterable[Callable[..., Any]]) -> Any:
    """The class of which all these handlers take values as they have been decoded; `Any` if there is none."""
    found = {getattr(fn.fn if isinstance(fn, ONE_AROUND) else fn, TAKES, Any) for fn in handlers}
    return found.pop() if len(found) == 1 else Any
