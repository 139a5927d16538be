"""One message to many connections, encoded once for each message protocol that they speak."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from wse.core.hub.connection import WseConnection, WseIdentity
from wse.core.packed import encode
from wse.core.session.output import EASY_SIZE
from wse.types import ClientId, MessageKey, MessageType

if TYPE_CHECKING:
    from wse.core.hub.connection import Exclude, ServerSession
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.session.endpoint import Endpoint


def send_to_all(
    endpoint: Endpoint,
    conns: Collection[WseConnection],
    type: MessageType,
    payload: Any,
    key: MessageKey | None = None,
) -> None:
    """Send one message to many valid connections, encoded once for each message protocol that they speak.

    Raises:
        WseError: As `WseConnection.send`; then none has got it.
    """
    endpoint.check_sent(type)
    protocols = endpoint.protocols
    if len(protocols) == 1:
        _write(endpoint, conns, type, encode(protocols[0], type, payload, key))
    else:
        spoken = {conn._session.protocol for conn in conns} or protocols[:1]
        deliver(endpoint, conns, type, {protocol: encode(protocol, type, payload, key) for protocol in spoken})


def deliver(
    endpoint: Endpoint, conns: Collection[WseConnection], type: MessageType, by_protocol: Mapping[Protocol, Packed]
) -> None:
    """Send one message to many valid connections, in the form of the message protocol that each speaks."""
    if len(by_protocol) == 1:
        (packed,) = by_protocol.values()
        _write(endpoint, conns, type, packed)
        return
    for protocol, packed in by_protocol.items():
        _write(endpoint, [conn for conn in conns if conn._session.protocol is protocol], type, packed)


def _write(endpoint: Endpoint, conns: Collection[WseConnection], type: MessageType, packed: Packed) -> None:
    counters = endpoint.counters
    counters.messages_out += len(conns)
    size = len(packed.data)
    counters.bytes_out += len(conns) * size
    others: list[ServerSession] = []  # holding a message may close the connection, which changes `conns`
    if size <= EASY_SIZE:
        for conn in conns:
            session = conn._session
            if session._direct:
                session.link.write_shared(packed)
            else:
                others.append(session)
    else:
        others = [conn._session for conn in conns]
    for session in others:
        if not session.takes(packed.data):
            session.skip(packed.data, {"type": type})
        elif session._writable:
            session.link.write_shared(packed)
        else:
            session.hold(type, packed)


def excluded(exclude: Exclude) -> tuple[str | None, ClientId | None]:
    """The `conn_id` or the `cid` that is left out, if any."""
    if isinstance(exclude, WseConnection):
        return exclude.conn_id, None
    return None, exclude.cid if isinstance(exclude, WseIdentity) else exclude


def without(conns: Collection[WseConnection], conn_id: str | None, cid: ClientId | None) -> list[WseConnection]:
    """All connections except that one, or that user's."""
    return [conn for conn in conns if conn.conn_id != conn_id and conn.cid != cid]
