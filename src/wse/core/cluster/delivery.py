"""Carries messages of applications from node to node: one node packs them, the others hand them to connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.cluster import envelope
from wse.core.cluster.envelope import ALL, ROOM, USER
from wse.core.cluster.placeholder import Heard
from wse.core.hub.fanout import deliver, without
from wse.core.names import decode_name, encode_name
from wse.core.packed import Packed, encode
from wse.core.ports.store import Record
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.placeholder import Placeholder
    from wse.core.hub.connection import WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.ports.protocol import Protocol
    from wse.types import ClientId, MessageKey, MessageType


class Delivery:
    """Sends messages to connections of this node and of others.

    Args:
        bus: The connection to the other nodes.
        hub: The connections of this node.
        readers: Message protocols to read what nodes of other protocols have packed.

    Attributes:
        heard: What this node has heard of each sender.
        placeholders: Those that listen for sessions which are on their way here.
    """

    def __init__(self, bus: Bus, hub: Hub, readers: Iterable[Protocol]) -> None:
        self._bus = bus
        self._hub = hub
        self._endpoint = hub.endpoint
        self.heard = Heard()
        self.placeholders: dict[Placeholder, None] = {}
        self._readers = {protocol.name: protocol for protocol in (*readers, *hub.endpoint.protocols)}

    def send(
        self,
        topic: str,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
        key: MessageKey | None = None,
    ) -> None:
        """Send a message to connections of this node, and to those of other nodes that want the topic.

        Args:
            topic: Who wants it.
            conns: Who gets it here.
            type: The message's type.
            payload: What it carries.
            not_conn: A connection that does not get it elsewhere.
            not_user: A user who does not get it elsewhere.
            key: Its key, for receivers that are slow.

        Raises:
            WseError: As `WseConnection.send`, if a connection of this node cannot get it, or none anywhere.
            TypeError, ValueError: Who is excluded has a `cid` that cannot be a user's in a cluster.
        """
        self._endpoint.check_sent(type)
        packed: dict[Protocol, Packed] = {}
        failure: WseError | None = None
        for protocol in self._endpoint.protocols:
            try:
                packed[protocol] = encode(protocol, type, payload, key)
            except WseError as exc:  # one protocol may carry values that another one cannot
                failure = exc
        if failure is not None and not (packed and all(conn._session.protocol in packed for conn in conns)):
            raise failure
        excluded = None if not_user is None else encode_name(not_user)
        if conns:
            deliver(self._endpoint, conns, type, packed)
        bus = self._bus
        bus.seq = seq = bus.seq + 1  # only now: a listener that the delivery has called may have sent something
        data = envelope.message(bus.node, seq, type, packed, not_conn, excluded, key)
        bus.publish_packed(topic, data)
        if self.placeholders:
            self._keep(topic, envelope.decode(data))

    def kept(self, topic: str, record: Record) -> None:
        """Tell the other nodes of a message that this one has put into the store."""
        bus = self._bus
        bus.seq = seq = bus.seq + 1
        message = envelope.Kept(bus.node, record.number, record.at, record.data, record.epoch, seq)
        bus.publish(topic, message)
        self._keep(topic, message)

    def received_kept(self, topic: str, message: envelope.Kept) -> None:
        """Hand a message that another node has put into the store to its receivers here."""
        self.heard.note(message.origin, message.seq)
        self._keep(topic, message)
        if self._hub.kept is not None:
            self._hub.kept.heard(topic[:2], decode_name(topic[2:]), _record(message))

    def _keep(self, topic: str, message: Any) -> None:
        for placeholder in self.placeholders:
            placeholder.take(topic, message)

    def placeholder(self, conn_id: str) -> Placeholder | None:
        """What listens for a session that is on its way here."""
        for placeholder in self.placeholders:
            if placeholder.conn_id == conn_id:
                return placeholder
        return None

    def received(self, topic: str, message: envelope.Message) -> None:
        """Hand a message of another node to its receivers here."""
        self.heard.note(message.origin, message.seq)
        if self.placeholders:
            self._keep(topic, message)
        conns = self._without_excluded(self._receivers(topic), message)
        if conns:
            spoken: Iterable[Protocol] = self._endpoint.protocols
            if len(self._endpoint.protocols) > 1:
                spoken = {conn._session.protocol for conn in conns}
            forms: dict[Protocol, Packed] = {}
            for protocol in spoken:
                try:
                    forms[protocol] = self._packed(protocol, message)
                except Exception as exc:
                    self._cannot_pack(protocol, exc)
                    conns = [conn for conn in conns if conn._session.protocol is not protocol]
            if forms:
                deliver(self._endpoint, conns, message.kind, forms)

    def queue(self, conn: WseConnection, topic: str, message: envelope.Message | envelope.Kept) -> None:
        """Let a message wait for a connection that has come to this node after it."""
        if isinstance(message, envelope.Kept):
            if self._hub.kept is not None:
                self._hub.kept.queue(conn, topic, _record(message))
            return
        if not self._without_excluded((conn,), message):
            return
        session = conn._session
        try:
            packed = self._packed(session.protocol, message)
        except Exception as exc:
            self._cannot_pack(session.protocol, exc)
        else:
            session.queue(message.kind, packed)

    @staticmethod
    def _without_excluded(conns: Collection[WseConnection], message: envelope.Message) -> Collection[WseConnection]:
        if message.not_conn is None and message.not_user is None:
            return conns
        cid = None if message.not_user is None else decode_name(message.not_user)
        return without(conns, message.not_conn, cid)

    def _cannot_pack(self, protocol: Protocol, exc: Exception) -> None:
        problem = f"a message from another node cannot be packed for clients of {protocol.name}"
        self._endpoint.report(WseError(ErrorCode.MSG_PROCESSING_ERROR, {}, problem), None, exc)

    def _receivers(self, topic: str) -> Collection[WseConnection]:
        if topic == ALL:
            return self._hub.connections.values()
        if topic.startswith(USER):
            return self._hub.conns_of(decode_name(topic.removeprefix(USER)))
        return self._hub.rooms.local(decode_name(topic.removeprefix(ROOM)))

    def _packed(self, protocol: Protocol, message: envelope.Message) -> Packed:
        """The message as its sender packed it, or packed anew for a protocol that the sender does not have."""
        form = message.forms.get(protocol.name)
        if form is not None:
            return Packed(form[1], form[0], message.key)
        for name, (_, data) in message.forms.items():
            reader = self._readers.get(name)
            if reader is not None:
                type_, payload, _ = reader.unpack(data)
                return encode(protocol, type_, payload, message.key)
        raise ValueError(f"it is packed in protocols that this node does not have: {', '.join(message.forms)}")


def _record(message: envelope.Kept) -> Record:
    return Record(message.number, message.at, message.data, message.epoch)
