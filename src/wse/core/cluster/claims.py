"""Sessions that come to this node from others, since their clients have come here; `transfer` has all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from wse.core.cluster.envelope import CallWith, Kept, Query
from wse.core.cluster.placeholder import Placeholder
from wse.core.cluster.transfer import SILENT, SPREAD_WITHIN, Question, decode_transfer, digest
from wse.core.cluster.turns import Turns
from wse.core.hub.handshake import Returning
from wse.core.hub.tickets import Refusal, Why, proof_of
from wse.core.names import decode_name, encode_name
from wse.core.packed import Packed
from wse.core.ports.broker import Device
from wse.core.ports.scheduling import sleep
from wse.errors import WseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.delivery import Delivery
    from wse.core.cluster.envelope import Call, ToDevice
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.presence import Presence
    from wse.core.cluster.remote_asking import Place
    from wse.core.cluster.transfer import Transfer
    from wse.core.hub.connection import WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.hub.tickets import Claim
    from wse.types import ClientId, RoomName

ASKED = 2
"""How often it is asked within that time: an answer may be lost."""

MAX_HOPS = 3
"""How often a session is looked for at another node than the one that should have it."""

MAX_ROUNDS = 40
"""How often a node is asked whose session enters rooms, or has not come there itself, at the same moment."""

GIVE_UP_AFTER = 1.0
"""Seconds until a node is told that the session of a client is lost. By then the client has a new one, and its user has
been there all the time."""

MOST_COMING = 256
"""Sessions for which this node listens at a time. Each may keep messages, and each message is looked at for all of
them; others wait, if many clients come at once."""

PAUSE = 0.05
"""Seconds until a node is asked again that is busy with the session."""

_read_ids = msgspec.json.Decoder(list[str]).decode


class Claims:
    """The sessions that come to this node.

    Args:
        bus: The connection to the other nodes.
        hub: The connections of this node.
        delivery: Hands messages to connections.
        rpc: Asks other nodes, and answers them.
        presence: The devices of this node.
    """

    def __init__(self, bus: Bus, hub: Hub, delivery: Delivery, rpc: NodeRpc, presence: Presence) -> None:
        self._bus = bus
        self._hub = hub
        self._scheduler = hub.endpoint.scheduler
        self._delivery = delivery
        self._rpc = rpc
        self._presence = presence
        self._turns = Turns(self._scheduler, MOST_COMING)

    # A session comes.

    async def fetch(
        self, holder: str, claim: Claim, cid: ClientId, protocol: str, is_wanted: Callable[[], bool]
    ) -> Fetched | Refusal:
        """See `wse.core.hub.network.Network.fetch`."""
        try:
            question = Question(
                self._bus.node, claim.id, proof_of(claim.key), encode_name(cid), protocol, claim.got, claim.sent
            )
            for _ in range(MAX_HOPS):
                fetched = await self._fetch(await self._locate(holder, question), question, is_wanted)
                if not isinstance(fetched, Refusal) or not fetched.to or fetched.to == self._bus.node:
                    return fetched
                holder = fetched.to
        except (TypeError, ValueError):  # a user of a cluster cannot have this `cid`
            return Refusal(Why.UNKNOWN)
        except WseError:  # the broker is away
            pass
        return Refusal(Why.UNREACHABLE)

    async def find(self, holder: str, claim: Claim) -> Returning | None:
        """See `wse.core.hub.network.Network.find`."""
        question = Question(self._bus.node, claim.id, proof_of(claim.key))
        try:
            for _ in range(MAX_HOPS):
                answer = await self._ask(holder, "find", question)
                if not isinstance(answer, dict):
                    return None
                if "user" in answer:
                    return Returning(decode_name(answer["user"]), answer["meta"])
                holder = answer["to"]
        except WseError:
            pass
        return None

    async def _locate(self, holder: str, question: Question) -> str:
        """The node to ask: if the one that should have the session is not there, the register may know another."""
        if holder in self._bus.peers or holder in await self._bus.broker.nodes():
            return holder
        for device in await self._bus.broker.devices(question.user):
            if device.conn_id == question.conn_id:
                return device.node
        return ""

    async def _fetch(self, holder: str, question: Question, is_wanted: Callable[[], bool]) -> Fetched | Refusal:
        if not holder:
            return Refusal(Why.UNKNOWN)
        placeholder = Placeholder(self._bus, self._delivery, question.conn_id, question.user)
        is_here = is_settled = has_turn = False
        was_peer = holder in self._bus.peers
        try:
            for _ in range(MAX_ROUNDS):
                if not is_wanted():
                    break  # the client may have come to another node meanwhile
                has_died = was_peer and holder not in self._bus.peers
                answer = None if has_died else await self._ask(holder, "claim", question, ASKED)
                if placeholder.problem is not None or not isinstance(answer, dict | list):
                    return Refusal(placeholder.problem or Why.UNREACHABLE)
                if isinstance(answer, dict):
                    if answer:
                        is_settled = True
                        return _refusal(answer)
                    await sleep(self._scheduler, PAUSE)
                elif answer and isinstance(answer[0], bytes):
                    transfer = decode_transfer(b"".join(answer))
                    is_here = is_settled = True
                    return Fetched(self._presence, self._hub, self._delivery, placeholder, holder, transfer)
                else:
                    returns, *rooms = answer
                    if not has_turn:
                        await self._turns.take()
                        has_turn = True
                    placeholder.listen(rooms)
                    await self._bus.broker.flush()
                    if self._bus.broker.spreads:  # who has got a question knows of the subscriptions before it
                        await self._rpc.query_nodes(self._bus.peers, "here", "", SPREAD_WITHIN)
                    question = msgspec.structs.replace(question, rooms=digest(rooms), returns=returns)
            return Refusal(Why.UNREACHABLE)
        finally:
            if has_turn:
                self._turns.give()
            if not is_here:
                placeholder.close()
            if not is_settled:
                given_up = msgspec.structs.replace(question, is_lost=is_wanted())
                self._scheduler.call_later(GIVE_UP_AFTER, self._give_up, holder, given_up)

    async def _ask(self, node: str, what: str, question: Question, times: int = 1) -> Any:
        """The answer of a node; `None` if there is none."""
        about = msgspec.json.encode(question).decode()
        for _ in range(times):
            if not self._bus.is_current:
                return None  # it would overtake what this node has sent before
            answers = await self._rpc.query_nodes([node], what, about, SILENT / times)
            if answers:
                return answers[0]
        return None

    def _give_up(self, holder: str, question: Question) -> None:
        """Tell the other node that nobody waits for a session."""
        about = msgspec.json.encode(question).decode()
        self._bus.send_to(holder, Query(self._bus.node, 0, "give-up", about))

    # What comes for sessions that are on their way, or have gone.

    def redirect(self, call: Call) -> bool:
        """Send a call on whose device has moved, or keep it for one that is on its way; whether that was so.

        One with options is not sent on: its caller must know the node to which it has gone.
        """
        conn_id = call.conn_id
        if conn_id in self._hub.connections:
            return False
        placeholder = self._delivery.placeholder(conn_id)
        if placeholder is not None:
            placeholder.later(lambda conn: self._rpc.called(call))
            return True
        return not isinstance(call, CallWith) and self._send_on(conn_id, call)

    def places(self, about: str) -> dict[str, Any]:
        """Where the devices of some connections are; see `wse.core.cluster.remote_asking.Place`."""
        return {"node": self._bus.node, "places": {conn_id: self._place(conn_id) for conn_id in _read_ids(about)}}

    def _place(self, conn_id: str) -> Place:
        conn = self._hub.connections.get(conn_id)
        if conn is not None:
            session = conn._session
            return 0 if session.terms is None else session.window(session.terms.window)
        if self._delivery.placeholder(conn_id) is not None:
            return ""
        resumption = self._hub.resumption
        return (None if resumption is None else resumption.moved_to(conn_id)) or None

    def to_device(self, message: ToDevice) -> None:
        """Write what a handler at the session's old node has answered."""
        conn = self._hub.connections.get(message.conn_id)
        if conn is not None:
            conn._session.write_packed(Packed(message.data, message.utf8))
            return
        placeholder = self._delivery.placeholder(message.conn_id)
        if placeholder is not None:
            placeholder.later(lambda conn: conn._session.write_packed(Packed(message.data, message.utf8)))
        else:
            self._send_on(message.conn_id, message)

    def entered(self, user: str, room: RoomName, *, enter: bool) -> None:
        """A user's devices have entered a room, or left it."""
        rooms = self._hub.rooms
        for placeholder in self._of(user):
            placeholder.later(lambda conn: rooms.add(room, conn) if enter else rooms.discard(room, conn))

    def dropped(self, user: str, reason: str, code: int) -> None:
        """A user's devices have been disconnected."""
        for placeholder in self._of(user):
            placeholder.later(lambda conn: conn.drop(reason, code))

    def connection_lost(self) -> None:
        """What was on its way through the broker may be lost."""
        for placeholder in self._delivery.placeholders:
            placeholder.problem = Why.UNREACHABLE

    def _of(self, user: str) -> list[Placeholder]:
        return [placeholder for placeholder in self._delivery.placeholders if placeholder.user == user]

    def _send_on(self, conn_id: str, message: Call | ToDevice) -> bool:
        resumption = self._hub.resumption
        to = "" if resumption is None else resumption.moved_to(conn_id)
        if to:
            self._bus.send_to(to, message)  # its sender gets the answer
        return bool(to)


class Fetched:
    """A session that has come; a `wse.core.hub.network.Fetched`.

    Args:
        presence: The devices of this node.
        hub: The connections of this node.
        delivery: Hands messages to connections.
        placeholder: What has come for it meanwhile.
        origin: Its old node.
        transfer: The session.
    """

    def __init__(
        self,
        presence: Presence,
        hub: Hub,
        delivery: Delivery,
        placeholder: Placeholder,
        origin: str,
        transfer: Transfer,
    ) -> None:
        self.luggage = transfer.luggage
        self._presence = presence
        self._hub = hub
        self._delivery = delivery
        self._placeholder = placeholder
        self._origin = origin
        self._transfer = transfer

    def settle(self, conn: WseConnection) -> None:
        transfer, placeholder = self._transfer, self._placeholder
        placeholder.stop()  # now the connection hears by itself
        for room in transfer.rooms:
            self._hub.rooms.add(decode_name(room), conn, silent=True)
        for room, state in transfer.states.items():
            self._hub.rooms.show(decode_name(room), conn, state)
        device = Device(placeholder.user, conn.conn_id, "", transfer.place)
        self._presence.adopt(conn, device, transfer.generation, self._origin)
        for topic, message in placeholder.unheard(transfer.heard, transfer.rooms):
            if not (isinstance(message, Kept) and self.luggage.reads_itself(topic)):
                self._delivery.queue(conn, topic, message)
        placeholder.close()

    def catch_up(self, conn: WseConnection) -> None:
        for do in self._placeholder.waiting:
            do(conn)


def _refusal(answer: dict[str, Any]) -> Refusal:
    close = answer["close"]
    return Refusal(answer["why"], answer["got"], None if close is None else (close[0], close[1]), answer["to"])
