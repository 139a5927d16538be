"""The message protocols of a server."""

from __future__ import annotations

from collections.abc import Iterable

from wse.core.ports.protocol import Protocol
from wse.protocols.json import WseJSON


def as_protocols(protocol: Protocol | Iterable[Protocol] | None) -> tuple[Protocol, ...]:
    """The protocols as given, JSON by default.

    Raises:
        ValueError: There is none, or two have the same name.
        TypeError: An item is not a protocol.
    """
    if protocol is None:
        return (WseJSON(),)
    protocols = (protocol,) if isinstance(protocol, Protocol) else tuple(protocol)
    for item in protocols:
        if not isinstance(item, Protocol):
            raise TypeError(f"a protocol must be a wse.Protocol, not {item!r}")
        if not getattr(item, "name", None):
            raise TypeError(f"a protocol must have a name, which is its WebSocket subprotocol: {item!r} has none")
    if not protocols or len({item.name for item in protocols}) < len(protocols):
        raise ValueError("a server needs at least one protocol, each with a name of its own")
    return protocols
