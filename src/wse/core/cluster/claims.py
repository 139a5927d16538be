"""Sessions that move between this node and others, since their clients come back elsewhere.

    the client's new node                                  the node that has the session
    asks for it, with a proof that it knows the key
                                                           names the rooms that the session is in
    listens to all that the session hears (`Placeholder`)
    asks again: this time it hears what the other hears
                                                           lets go: its books, and what it has heard of each sender;
                                                           asked once more, since the answer was lost, it repeats it
    drops what the other has heard, and keeps the rest
    moves the device in the register (`Steps`)

A message of one sender reaches both nodes in the sender's order. So what the old node had heard when it let go, and
what the new one has heard since it listened, is everything, and what is in both can be told by its number.

A node that gives up tells the other one, so that no session waits for a client that has a new one, and no device stays
in the register that nobody has.

Nothing of this happens before a client has been accepted, unless the identify handler asks for its session.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from wse.core.cluster.envelope import CallWith, Query, decode_name, encode_name
from wse.core.cluster.moved_link import MovedLink
from wse.core.cluster.placeholder import Placeholder
from wse.core.cluster.turns import Turns
from wse.core.hub.handshake import Returning
from wse.core.hub.moving import Luggage
from wse.core.hub.tickets import Claim, Refusal, Why, proof_of
from wse.core.packed import Packed
from wse.core.ports.broker import Device
from wse.core.ports.scheduling import sleep
from wse.errors import CloseReason, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.delivery import Delivery
    from wse.core.cluster.envelope import Call, ToDevice
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.presence import Presence
    from wse.core.cluster.remote_asking import Place
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.types import ClientId, RoomName

SILENT = 2.0
"""Seconds after which a node that does not answer has nothing to hand over."""

ASKED = 2
"""How often it is asked within that time: an answer may be lost."""

MAX_HOPS = 3
"""How often a session is looked for at another node than the one that should have it."""

MAX_ROUNDS = 40
"""How often a node is asked whose session enters rooms, or has not come there itself, at the same moment."""

SPREAD_WITHIN = 0.5
"""Seconds that the other nodes have to show that their servers know what this node listens to."""

GIVE_UP_AFTER = 1.0
"""Seconds until a node is told that the session of a client is lost. By then the client has a new one, and its user has
been there all the time."""

MOST_COMING = 256
"""Sessions for which this node listens at a time. Each may keep messages, and each message is looked at for all of
them; others wait, if many clients come at once."""

PAUSE = 0.05
"""Seconds until a node is asked again that is busy with the session."""

MOVED_WITHIN = 10.0
"""Seconds that another node has to tell the register of a device that it has taken over. After that, this node takes
the device out if it is still registered here."""

PART = 64 * 1024
"""Bytes of the pieces in which a session travels."""


class Question(msgspec.Struct):
    """What a node asks about a session; see `wse.core.hub.tickets.Claim`."""

    node: str
    conn_id: str
    proof: str
    user: str = ""
    protocol: str = ""
    got: int = 0
    sent: tuple[int, int] = (1, 0)
    rooms: str = ""
    """What stands for the rooms that the node listens to; empty as long as it does not listen."""
    returns: str = ""
    """How often the client had come back to the other node, when that one named the rooms."""
    is_lost: bool = False
    """Of a node that has given up: whether the client has a new session."""

    @property
    def claim(self) -> Claim:
        """The claim of its client."""
        return Claim(self.conn_id, "", self.got, self.sent, proof=self.proof)


class Transfer(msgspec.Struct, array_like=True):
    """A session on its way."""

    luggage: Luggage
    rooms: list[str]
    place: int
    generation: int
    heard: dict[str, int]
    """By sender, the number of the last message that its old node has heard."""


class Sent(NamedTuple):
    """A session that was let go, until the other node has it."""

    question: Question
    parts: list[bytes]
    device: Device


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Transfer).decode
_read = msgspec.json.Decoder(Question).decode
_read_ids = msgspec.json.Decoder(list[str]).decode


class Claims:
    """The sessions that come to this node, and go from it.

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
        self._left: list[ServerSession] = []  # sessions that have moved, with handlers that still run here
        self._turns = Turns(self._scheduler, MOST_COMING)
        # Sessions that are about to go, and whether this node has heard all that their new nodes may not have.
        self._catching_up: dict[str, tuple[Question, bool]] = {}
        self._sent: dict[str, Sent] = {}  # sessions on their way to other nodes
        rpc.queries |= {"claim": self._claimed, "find": self._found, "give-up": self._given_up}

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
                    transfer = _decode(b"".join(answer))
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

    # A session goes.

    def _found(self, about: str) -> Any:
        """Answer who has a session."""
        resumption = self._hub.resumption
        claim = _read(about).claim
        session = None if resumption is None else resumption.find(claim)
        if session is not None:
            return {"user": encode_name(session.conn.cid), "meta": session.conn.meta}
        to = "" if resumption is None else resumption.moved_to(claim.id)
        return {"to": to} if to else None

    def _claimed(self, about: str) -> Any:
        """Answer a node to which the client of a session has come."""
        question = _read(about)
        resumption = self._hub.resumption
        if resumption is None:
            return Refusal(Why.UNKNOWN)._asdict()
        sent = self._sent.get(question.conn_id)
        if sent is not None and sent.question == question:
            return sent.parts
        verdict = resumption.examine(question.claim, decode_name(question.user), question.protocol)
        if isinstance(verdict, Refusal):
            return {} if self._placeholder(question.conn_id) is not None else verdict._asdict()
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
        _encode(conn._data)  # or it stays here, and the error is reported
        heard = self._delivery.heard.last | {self._bus.node: self._bus.seq}
        place, generation = registration.device.place, registration.generation
        luggage = resumption.moving.hand_over(verdict, question.got, question.node)
        self._leave(verdict)
        verdict.link = MovedLink(self._bus, question.node, conn.conn_id)
        verdict.writable(True)  # for the answers of handlers that still run here
        data = _encode(Transfer(luggage, rooms, place, generation, heard))
        parts = [data[start : start + PART] for start in range(0, len(data), PART)]
        self._sent[conn.conn_id] = Sent(question, parts, registration.device)
        self._scheduler.call_later(MOVED_WITHIN, self._take_out, conn.conn_id)
        return parts

    def _has_caught_up(self, question: Question) -> bool:
        """Whether this node has heard all that others have sent before they knew that the new node listens.

        The servers of an engine may pass messages on at different speeds. But those of one node arrive here in order:
        so a node whose answer is here has sent nothing before that is not.
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
        question = _read(about)
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
            turn = self._scheduler.create_future()
            self._scheduler.call_soon(wake, turn)
            await turn

    # What comes for sessions that are on their way, or have gone.

    def redirect(self, call: Call) -> bool:
        """Send a call on whose device has moved, or keep it for one that is on its way; whether that was so.

        One with options is not sent on: its caller must know the node to which it has gone.
        """
        conn_id = call.conn_id
        if conn_id in self._hub.connections:
            return False
        placeholder = self._placeholder(conn_id)
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
        if self._placeholder(conn_id) is not None:
            return ""
        resumption = self._hub.resumption
        return (None if resumption is None else resumption.moved_to(conn_id)) or None

    def to_device(self, message: ToDevice) -> None:
        """Write what a handler at the session's old node has answered."""
        conn = self._hub.connections.get(message.conn_id)
        if conn is not None:
            conn._session.write_packed(Packed(message.data, message.utf8))
            return
        placeholder = self._placeholder(message.conn_id)
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

    def _placeholder(self, conn_id: str) -> Placeholder | None:
        for placeholder in self._delivery.placeholders:
            if placeholder.conn_id == conn_id:
                return placeholder
        return None

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
        device = Device(placeholder.user, conn.conn_id, "", transfer.place)
        self._presence.adopt(conn, device, transfer.generation, self._origin)
        for message in placeholder.unheard(transfer.heard, transfer.rooms):
            self._delivery.queue(conn, message)
        placeholder.close()

    def catch_up(self, conn: WseConnection) -> None:
        for do in self._placeholder.waiting:
            do(conn)


def _refusal(answer: dict[str, Any]) -> Refusal:
    close = answer["close"]
    return Refusal(answer["why"], answer["got"], None if close is None else (close[0], close[1]), answer["to"])


def digest(rooms: Iterable[str]) -> str:
    """What stands for the names of some rooms."""
    return sha256("\n".join(sorted(rooms)).encode()).hexdigest()
