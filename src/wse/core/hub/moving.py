"""Sessions that move from one node of a cluster to another, because their clients come back there.

The client is authenticated like any other. Then this node asks the one that has the session (`Network.fetch`). That one
hands it over: for its application the connection ends with `4000 wse.moved`. Here the session is put together from what
came with it, and goes on over the new socket as if it had been here before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from wse.core.closing import JUMP
from wse.core.hub.kept.inboxes import Device
from wse.core.hub.network import ROOM, USER
from wse.core.hub.tickets import Refusal, Ticket
from wse.core.session.ledger import NO_LINK
from wse.core.session.phase import Ignoring
from wse.core.session.snapshot import Snapshot, restore, take
from wse.errors import CloseReason, ErrorCode, WseError

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.handshake import Handshake
    from wse.core.hub.hub import Hub
    from wse.core.hub.network import Fetched
    from wse.core.hub.resumption import Resumption
    from wse.core.hub.tickets import Claim
    from wse.core.packed import Packed
    from wse.types import ClientId

FETCHING = Ignoring()
"""The phase between acceptance and welcome, while another node is asked for the session."""


class Luggage(msgspec.Struct, array_like=True):
    """What goes with a session to another node."""

    session: Snapshot
    window: float
    data: dict[str, Any] | None
    inbox: tuple[str, int] | None = None
    """The name of a device with an inbox, and the number of the last message that it was sent."""
    epoch: str = ""
    """The epoch of that number."""
    reads: dict[str, tuple[int, str]] = {}
    """By the encoded names of rooms whose kept messages it reads: the number of the last one that it was sent, and the
    epoch."""

    def reads_itself(self, topic: str) -> bool:
        """Whether the session gets what is kept for a user or a room from the store."""
        if topic.startswith(USER):
            return self.inbox is not None
        return topic.removeprefix(ROOM) in self.reads


class Arrival(NamedTuple):
    """A client that has been accepted, and has no welcome yet.

    Attributes:
        session: The session that its socket came with.
        ticket: What it has asked for.
        claim: The session that it wants to go on with.
        auth: The handshake.
        cid: Its user.
        welcome: The welcome.
        expires: When the acceptance ends.
    """

    session: ServerSession
    ticket: Ticket
    claim: Claim
    auth: Handshake
    cid: ClientId
    welcome: Packed
    expires: float | None


class Moving:
    """The sessions that come from other nodes, and go to them.

    Args:
        hub: The connections of this node.
        resumption: The sessions that outlive their connections.
    """

    def __init__(self, hub: Hub, resumption: Resumption) -> None:
        self._hub = hub
        self._resumption = resumption

    # Coming.

    def begin(self, arrival: Arrival, holder: str) -> None:
        """Fetch a session from another node; then the client is welcomed, with it or without."""
        arrival.session.enter(FETCHING)
        self._hub.endpoint.scheduler.spawn(self._fetch(arrival, holder))

    async def _fetch(self, arrival: Arrival, holder: str) -> None:
        hub, session = self._hub, arrival.session
        fetched = await hub.network.fetch(
            holder, arrival.claim, arrival.cid, session.protocol.name, lambda: not session.ended
        )
        if not isinstance(fetched, Refusal):
            self._arrived(arrival, fetched)
        elif not session.ended and not (fetched.to and self._resumption.resume_here(arrival)):
            self._refuse(arrival, fetched)

    def _arrived(self, arrival: Arrival, fetched: Fetched) -> None:
        """The session is this node's now, even if its client has gone meanwhile."""
        hub, conn = self._hub, arrival.session.conn
        session = hub.make_session(NO_LINK, conn.request, arrival.session.protocol)
        luggage = fetched.luggage
        session.conn.conn_id = arrival.claim.id
        session.conn._data = luggage.data
        session.conn.identity, session.conn.meta = arrival.auth.sent
        session.conn.state = arrival.auth.state
        session.agree_as(arrival.session)
        session.limit_output(arrival.session._max_out)
        session.ticket = ticket = Ticket(luggage.window, None, None)
        ticket.key, ticket.is_moved = arrival.claim.key, True
        self._resumption.keep(session)
        restore(session, luggage.session)
        session.enter(None)
        hub.bring_in(session.conn, arrival.cid)
        if luggage.inbox is not None:
            session.inbox = Device(session.conn, *luggage.inbox, luggage.epoch)
            session.inbox.position, session.inbox.is_placed = luggage.inbox[1], True
        fetched.settle(session.conn)
        if session.inbox is not None and hub.inboxes is not None:
            hub.inboxes.begin(session)
        if luggage.reads and hub.rooms.histories is not None:
            hub.rooms.histories.go_on(session.conn, luggage.reads)
        hub.connected._emit_on(session, session.conn)
        fetched.catch_up(session.conn)
        if not session.ended and not arrival.session.ended:
            self._resumption.absorb(arrival, session)
        elif not arrival.session.ended:
            self._refuse(arrival, self._resumption.epitaph(arrival.claim, arrival.cid))
        elif not session.ended:
            hub.detached._emit_on(session, session.conn, 1006, "")

    def _refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Welcome a client whose session cannot go on, unless the application has ended it."""
        session = arrival.session
        if refusal.close is not None:
            session.close(*refusal.close)
            return
        arrival.ticket.lost = {"why": str(refusal.why), "got": refusal.got}
        try:
            self._hub.let_in(session, arrival.auth, arrival.cid, arrival.welcome, arrival.expires)
        except (TypeError, ValueError) as exc:
            self._hub.endpoint.report(WseError(ErrorCode.MSG_PROCESSING_ERROR, session.context()), session, exc)

    # Going.

    def hand_over(self, session: ServerSession, got: int, to: str) -> Luggage:
        """End a session here, because another node goes on with it.

        Args:
            session: The session.
            got: How many messages its client has handled.
            to: The node.
        """
        ticket, ledger = session.ticket, session.ledger
        assert ticket is not None  # it was claimed
        assert ledger is not None  # the same
        self._resumption.take_from_socket(session)
        ledger.confirm(got)
        ledger.is_certain = True
        session.fail_calls(JUMP, CloseReason.MOVED)  # those that have not arrived are taken back
        luggage = Luggage(take(session), ticket.window, session.conn._data)
        if session.inbox is not None and session.inbox.is_placed:
            luggage.inbox, luggage.epoch = (session.inbox.name, session.inbox.position), session.inbox.epoch
        if self._hub.rooms.histories is not None:
            luggage.reads = self._hub.rooms.histories.places(session.conn)
        ledger.forget_ring()
        session.clear_outbox()
        ticket.to = to
        serving = session.take_serving()
        session.close(JUMP, CloseReason.MOVED)
        if serving is not None:  # its calls go on, as far as they can
            serving.leave(JUMP, CloseReason.MOVED)
        return luggage
