"""Sessions that leave this node for others, since their clients have come there; see `transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wse.core.cluster.moved_link import MovedLink
from wse.core.cluster.transfer import (
    MAX_DATA,
    SILENT,
    SPREAD_WITHIN,
    Question,
    Transfer,
    digest,
    encode_transfer,
    read_question,
)
from wse.core.hub.tickets import Refusal, Why
from wse.core.names import decode_name, encode_name
from wse.core.ports.broker import Device
from wse.core.ports.scheduling import next_turn
from wse.errors import CloseReason, WseError

if TYPE_CHECKING:
    from wse.core.cluster.bus import Bus
    from wse.core.cluster.delivery import Delivery
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.presence import Presence
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.hub import Hub

MOVED_WITHIN = 10.0
"""Seconds that another node has to tell the register of a device that it has taken over. After that, this node takes
the device out if it is still registered here."""

PART = 64 * 1024
"""Bytes of the pieces in which a session travels."""


class Sent(NamedTuple):
    """A session that was let go, until the other node has it."""

    question: Question
    parts: list[bytes]
    device: Device


class Departures:
    """The sessions that leave this node.

    Args:
        bus: The connection to the other nodes.
        hub: The connections of this node.
        delivery: What this node has heard.
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
        self._left: list[ServerSession] = []  # sessions that have moved, with handlers that still run here
        # Sessions that are about to go, and whether this node has heard all that their new nodes may not have.
        self._catching_up: dict[str, tuple[Question, bool]] = {}
        self._sent: dict[str, Sent] = {}  # sessions on their way to other nodes
        rpc.queries |= {"claim": self._claimed, "find": self._found, "give-up": self._given_up}

    def _found(self, about: str) -> Any:
        """Answer who has a session."""
        resumption = self._hub.resumption
        claim = read_question(about).claim
        session = None if resumption is None else resumption.find(claim)
        if session is not None:
            return {"user": encode_name(session.conn.cid), "meta": session.conn.meta}
        to = "" if resumption is None else resumption.moved_to(claim.id)
        return {"to": to} if to else None

    def _claimed(self, about: str) -> Any:
        """Answer a node to which the client of a session has come."""
        question = read_question(about)
        resumption = self._hub.resumption
        if resumption is None:
            return Refusal(Why.UNKNOWN)._asdict()
        sent = self._sent.get(question.conn_id)
        if sent is not None and sent.question == question:
            return sent.parts
        verdict = resumption.examine(question.claim, decode_name(question.user), question.protocol)
        if isinstance(verdict, Refusal):
            return {} if self._delivery.placeholder(question.conn_id) is not None else verdict._asdict()
        conn = verdict.conn
        registration = self._presence.registration(conn)
        if registration is None:
            return {}  # another step for it is under way
        rooms = sorted(encode_name(room) for room in self._hub.rooms.of(conn))
        assert verdict.ticket is not None  # it has a key
        returns = str(verdict.ticket.returns)
        if question.rooms and question.returns != returns:  # the client has given up the connection to the other node
            return Refusal(Why.UNKNOWN, close=(1000, CloseReason.RESUMED_ELSEWHERE))._asdict()
        if question.rooms != digest(rooms):
            resumption.hold(verdict, SILENT)
            return [returns, *rooms]
        if not self._has_caught_up(question):
            return {}
        if len(encode_transfer(conn._data)) > MAX_DATA:  # then it stays here, and the error is reported
            raise ValueError(f"conn.data takes more than {MAX_DATA} bytes")
        heard = self._delivery.heard.last | {self._bus.node: self._bus.seq}
        place, generation = registration.device.place, registration.generation
        states = {encode_name(room): state for room, state in self._hub.rooms.states_of(conn).items()}
        luggage = resumption.moving.hand_over(verdict, question.got, question.node)
        self._leave(verdict)
        verdict.link = MovedLink(self._bus, question.node, conn.conn_id)
        verdict.writable(True)  # for the answers of handlers that still run here
        data = encode_transfer(Transfer(luggage, rooms, place, generation, heard, states))
        parts = [data[start : start + PART] for start in range(0, len(data), PART)]
        self._sent[conn.conn_id] = Sent(question, parts, registration.device)
        self._scheduler.call_later(MOVED_WITHIN, self._take_out, conn.conn_id)
        return parts

    def _has_caught_up(self, question: Question) -> bool:
        """Whether this node has heard all that others have sent before they knew that the new node listens.

        The servers of an engine may pass messages on at different speeds. But those of one node arrive here in order: a
        node whose answer is here has sent nothing before that is not.
        """
        others = self._bus.peers - {question.node}
        if not self._bus.broker.spreads or not others:
            return True
        conn_id = question.conn_id
        asked, is_done = self._catching_up.get(conn_id, (None, False))
        if asked != question:
            self._catching_up[conn_id] = question, False
            self._scheduler.spawn(self._catch_up(question, others))
            self._scheduler.call_later(SILENT, self._caught_up, question)
        elif is_done:
            del self._catching_up[conn_id]
        return is_done and asked == question

    async def _catch_up(self, question: Question, others: frozenset[str]) -> None:
        try:
            await self._rpc.query_nodes(others, "here", "", SPREAD_WITHIN)
        except WseError:
            return  # the broker is away: the move fails
        if question.conn_id in self._catching_up and self._catching_up[question.conn_id][0] is question:
            self._catching_up[question.conn_id] = question, True

    def _caught_up(self, question: Question) -> None:
        """Forget a question that has not been asked again."""
        if question.conn_id in self._catching_up and self._catching_up[question.conn_id][0] is question:
            del self._catching_up[question.conn_id]

    def arrived(self, conn_id: str) -> None:
        """A session is at its new node, and the register knows."""
        self._sent.pop(conn_id, None)
        self._presence.arrived(conn_id)

    def _given_up(self, about: str) -> None:
        """Another node has given up a session that it wanted to have."""
        question = read_question(about)
        sent, resumption = self._sent.get(question.conn_id), self._hub.resumption
        if sent is not None:
            if (sent.question.node, sent.question.proof) == (question.node, question.proof):
                self._take_out(question.conn_id)
        elif question.is_lost and resumption is not None:
            session = resumption.find(question.claim)
            if session is not None and not session.conn.attached:
                resumption.end(session, Why.ENDED)

    def _take_out(self, conn_id: str) -> None:
        """A session has not arrived at its new node, and its client is told there that it is lost."""
        sent = self._sent.pop(conn_id, None)
        if sent is not None:
            self._presence.take_out(sent.device)

    def _leave(self, session: ServerSession) -> None:
        """Remember a session as long as handlers of it run."""
        self._left = [other for other in self._left if other.tasks]
        self._left.append(session)

    async def close(self) -> None:
        """Cancel the handlers of sessions that have moved: from now on, no answer reaches their clients."""
        left, self._left = self._left, []
        self._sent.clear()
        tasks = [task for session in left for task in session.tasks]
        for task in tasks:
            task.cancel()
        for _ in range(2 if tasks else 0):  # until their answers have been sent
            await next_turn(self._scheduler)
