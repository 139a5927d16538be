"""Extensions of the wire protocol: offered by a client in `hi`, and answered by a server before the welcome (WIRE.md
section 7).

A side has an object for each extension that it knows, in `Endpoint.extensions`. A session keeps an `Agreement`: the
names that both sides know, and the functions that take their messages. A peer that offers nothing gets `NOTHING`, and
its session does nothing that it would not do without extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from wse.types import MessageType

if TYPE_CHECKING:
    from wse.core.ports.protocol import ExtensionTypes

Control: TypeAlias = Callable[[Any, Any, Any], None]
"""Takes a message of an extension: `fn(session, payload, stamp)`."""


class Extension:
    """One extension at one side. The methods of the other side are not called.

    Attributes:
        name: Its name in `hi`.
    """

    name: ClassVar[str]

    # At a client.

    def offer(self) -> Any:
        """The parameters that `hi` carries."""
        return {}

    def answered(self, session: Any, params: Any) -> None:
        """The server knows the extension; these are the parameters of its answer."""

    # At a server.

    def offered(self, session: Any, params: Any) -> bool:
        """A client has offered these parameters; returns whether the server agrees.

        The parameters come from a client that is not authenticated yet: anything that makes no sense is declined.
        """
        return True

    def answer(self, session: Any) -> Any:
        """The parameters of the answer, asked for when the client is accepted."""
        return {}

    # At both.

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        """The functions that take the extension's messages, by type. No message comes before the welcome."""
        return {}


class Agreement:
    """The agreement of the two sides of a session. Sessions with the same extensions share one object.

    Attributes:
        names: The extensions.
        controls: The functions that take their messages, by type.
    """

    __slots__ = ("controls", "names")

    def __init__(self, names: frozenset[str], controls: Mapping[MessageType, Control]) -> None:
        self.names = names
        self.controls = controls


NOTHING = Agreement(frozenset(), {})
"""The agreement with a peer that offers no extension, or none that this side knows."""


class Extensions:
    """The extensions that a side knows, by name, in the order in which they were added."""

    __slots__ = ("_agreements", "_known")

    def __init__(self) -> None:
        self._known: dict[str, Extension] = {}
        self._agreements: dict[tuple[ExtensionTypes, frozenset[str]], Agreement] = {}

    def add(self, extension: Extension) -> None:
        """Add an extension; sessions that open from now on may agree on it."""
        self._known[extension.name] = extension
        self._agreements.clear()

    # At a client.

    def offers(self, types: ExtensionTypes | None) -> dict[str, Any]:
        """What `hi` says under `ext`; nothing with a protocol that has no names for extensions."""
        return {} if types is None else {name: extension.offer() for name, extension in self._known.items()}

    def take_answers(self, session: Any, types: ExtensionTypes, answers: Any) -> Agreement:
        """Take the answer of the server; extensions that this side did not offer are ignored."""
        taken = list(self._common(answers))
        for extension, params in taken:
            extension.answered(session, params)
        return self._agreement(types, (extension for extension, _ in taken))

    # At a server.

    def take_offers(self, session: Any, types: ExtensionTypes | None, offers: Any) -> Agreement:
        """A client has said hi, with this under `ext`, which may be anything."""
        if types is None:
            return NOTHING
        common = self._common(offers)
        return self._agreement(types, (extension for extension, params in common if extension.offered(session, params)))

    def answers(self, session: Any, agreement: Agreement) -> dict[str, Any]:
        """The answer to the offers of a client that is accepted."""
        return {name: self._known[name].answer(session) for name in self._known if name in agreement.names}

    # Inside.

    def _common(self, params: Any) -> Iterator[tuple[Extension, Any]]:
        if isinstance(params, dict):
            for name, extension in self._known.items():
                if name in params:
                    yield extension, params[name]

    def _agreement(self, types: ExtensionTypes, extensions: Iterable[Extension]) -> Agreement:
        agreed = tuple(extensions)
        if not agreed:
            return NOTHING
        key = types, frozenset(extension.name for extension in agreed)
        agreement = self._agreements.get(key)
        if agreement is None:
            controls = {kind: take for extension in agreed for kind, take in extension.controls(types).items()}
            agreement = self._agreements[key] = Agreement(key[1], controls)
        return agreement
