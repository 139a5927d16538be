"""Sessions of a server that outlive their connection (WIRE.md section 7, `resume`).

A session whose socket is gone is *detached*: still a valid connection of its user, in its rooms and with its calls, but
one that is not written to. It ends when its window does, or earlier for one of the reasons in `Why`. A client that
comes back is authenticated like any other, and names the session in its `hi`. If both fit, the session gets the new
socket, and the session object that the socket came with is dropped: it is *absorbed*.

What has ended leaves a tombstone for a while, so that the client learns why, and how much of its own had arrived.
"""

from __future__ import annotations

import heapq
import secrets
from typing import TYPE_CHECKING, Any, Final

from wse.core.closing import JUMP, is_retried
from wse.core.hub.handshake import Returning
from wse.core.hub.moving import Arrival, Moving
from wse.core.hub.tickets import Claim, Refusal, Ticket, Tombstone, Why, read_claim
from wse.core.session.acks import Acks
from wse.core.session.ledger import Ledger
from wse.core.session.leftover import Leftover
from wse.core.session.resuming import Resuming
from wse.core.session.retention import Retention
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import wake
from wse.types import ClientId, ReadyState

if TYPE_CHECKING:
    import asyncio

    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.handshake import Handshake
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.scheduling import Timer
    from wse.core.resume import Resume

JUMP_WINDOW: Final = 10.0
"""Seconds for which a session is kept whose client has left for another server."""

PATIENCE: Final = 1.0
"""Seconds that a socket has to close whose session has got another one."""

MOST_HELD: Final = 60.0
"""Seconds for which a window may be held open by a client that is being authenticated."""

MOST_OUTDATED: Final = 100
"""Ends of windows that are kept for nothing, beside as many as there are sessions without a socket: clients come back,
and go again."""


class Resumption(Resuming):
    """The `resume` extension of a server.

    Args:
        hub: The connections of the server.
        settings: How long and how much is kept.

    Attributes:
        detached: The sessions without a socket, the longest without one first, with the close of their last one.
        retention: What all sessions keep together.
        moving: Sessions that come from other nodes, and go to them.
    """

    def __init__(self, hub: Hub, settings: Resume) -> None:
        self._hub = hub
        self._settings = settings
        self._scheduler = hub.endpoint.scheduler
        self._acks = Acks(self._scheduler)
        self.retention = Retention(settings.retained, self._relieve)
        self.moving = Moving(hub, self)
        self.detached: dict[ServerSession, tuple[int, str]] = {}
        # A heap of the ends of windows, also of sessions that are back or have ended, so it must not hold them.
        self._ends: list[tuple[float, str]] = []
        self._drained: asyncio.Future[None] | None = None
        self._timer: Timer | None = None
        self._due = 0.0  # when it runs
        self._tombstones: dict[str, Tombstone] = {}

    # Extension.

    def offered(self, session: ServerSession, params: Any) -> bool:
        if not isinstance(params, dict):
            return False
        window = params.get("window", self._settings.window)
        if isinstance(window, bool) or not isinstance(window, int | float) or not window > 0:
            return False
        claim, problem = read_claim(params)
        ticket = session.ticket = Ticket(min(window, self._settings.window), claim, problem)
        if claim is not None:
            held = self.find(claim)
            if held is not None and held.ticket is not None:
                ticket.holds = held
                held.ticket.claimants += 1
                if held.ticket.holding is None:
                    patience = self._hub.auth_timeout or MOST_HELD
                    held.ticket.holding = self._scheduler.call_later(patience, self._hold_no_longer, held)
        return True

    def _name(self, conn: WseConnection) -> str:
        """The id of a session, as its client names it. In a cluster it says which node has the session."""
        node = self._hub.network.name
        return f"{conn.conn_id}.{node}" if node else conn.conn_id

    def answer(self, session: ServerSession) -> Any:
        ticket = session.ticket
        assert ticket is not None  # it was made when the extension was offered
        old = ticket.goes_on
        if old is not None:
            assert old.ledger is not None
            return {"id": self._name(old.conn), "got": old.ledger.got}
        settings = self._settings
        ticket.key = secrets.token_urlsafe(16)
        answer: dict[str, Any] = {
            "id": self._name(session.conn),
            "key": ticket.key,
            "window": ticket.window,
            "bytes": settings.bytes,
            "messages": settings.messages,
        }
        if ticket.lost is not None:
            answer["lost"] = ticket.lost
        return answer

    # A client comes.

    def begin(self, session: ServerSession) -> None:
        """Count the messages of a session whose welcome has just been written."""
        link = session.link
        ledger = self._give_ledger(session)
        ledger.begin(link, session._writable)
        session.link = ledger
        link.attach(ledger)

    def _give_ledger(self, session: ServerSession) -> Ledger:
        ledger = session.ledger = Ledger(session, self._settings, self._acks, self.retention)
        return ledger

    def resume(
        self, session: ServerSession, auth: Handshake, cid: ClientId, welcome: Packed, expires: float | None
    ) -> bool:
        """Let the session that an accepted client claims go on over its connection.

        Returns:
            Whether nothing is left to do: the session goes on, or the application had ended it, and so the connection.
        """
        ticket = session.ticket
        assert ticket is not None  # it was made when the extension was offered
        try:
            if ticket.claim is None:
                if ticket.problem is not None:
                    ticket.lost = {"why": str(ticket.problem), "got": None}
                return False
            return self._decide(Arrival(session, ticket, ticket.claim, auth, cid, welcome, expires))
        finally:
            self._release(ticket)

    def _decide(self, arrival: Arrival) -> bool:
        session, ticket, claim = arrival.session, arrival.ticket, arrival.claim
        verdict = self.examine(claim, arrival.cid, session.protocol.name)
        if not isinstance(verdict, Refusal):
            self.absorb(arrival, verdict)
            return True
        holder = verdict.to or (claim.holder if verdict.why == Why.UNKNOWN else "")
        if holder and holder != self._hub.network.name and self._hub.network.reaches_others:
            self.moving.begin(arrival, holder)
            return True
        if verdict.close is not None:
            session.close(*verdict.close)
            return True
        ticket.lost = {"why": str(verdict.why), "got": verdict.got}
        return False

    def resume_here(self, arrival: Arrival) -> bool:
        """Let a session go on that has come to this node since its client was accepted; whether there is one."""
        verdict = self.examine(arrival.claim, arrival.cid, arrival.session.protocol.name)
        if isinstance(verdict, Refusal):
            return False
        self.absorb(arrival, verdict)
        return True

    def examine(self, claim: Claim, cid: ClientId, protocol: str) -> ServerSession | Refusal:
        """The session of this node that an accepted client claims, if it can go on with it.

        Args:
            claim: What the client claims.
            cid: Its user.
            protocol: The name of the message protocol that it speaks.
        """
        old = self.find(claim)
        if old is None:
            return self.epitaph(claim, cid)
        assert old.ledger is not None  # it has a key
        if old.conn.cid != cid:
            details = {"from": old.describe(), "cid": cid}
            problem = "a client has the key of another user's session"
            self._hub.endpoint.report(WseError(ErrorCode.PROTOCOL_VIOLATION, details, problem), old)
            return Refusal(Why.USER)
        why = old.ledger.obstacle(claim.got, claim.sent) if old.protocol.name == protocol else Why.PROTOCOL
        if why is None:
            return old
        if why == Why.MISMATCH:  # its client would not say that, so it goes on
            return Refusal(why)
        got = old.ledger.got
        self.end(old, Why(why))
        return Refusal(why, got)

    def find(self, claim: Claim) -> ServerSession | None:
        """The session of this node that a client claims, if the client knows its key."""
        conn = self._hub.connections.get(claim.id)
        ticket = None if conn is None else conn._session.ticket
        if conn is None or ticket is None or conn._session.ended or not claim.fits(ticket.key):
            return None
        return conn._session

    def epitaph(self, claim: Claim, cid: ClientId) -> Refusal:
        """Why a session has ended that a client claims."""
        stone = self._tombstones.get(claim.id)
        if stone is None or not claim.fits(stone.key) or stone.cid != cid:
            return Refusal(Why.UNKNOWN)
        if stone.to:
            return Refusal(Why.UNKNOWN, to=stone.to)
        del self._tombstones[claim.id]
        return Refusal(stone.why, stone.got, stone.close)

    def moved_to(self, conn_id: str) -> str:
        """The node that has taken a session over lately; empty if there is none."""
        stone = self._tombstones.get(conn_id)
        return "" if stone is None else stone.to

    def absorb(self, arrival: Arrival, old: ServerSession) -> None:
        """Give the socket of one session to another."""
        ledger, session, auth = old.ledger, arrival.session, arrival.auth
        assert ledger is not None  # it has a key
        hub = self._hub
        self.take_from_socket(old)
        self._bring_back(old)
        arrival.ticket.goes_on = old
        if old.ticket is not None:
            old.ticket.is_called_back = False
            old.ticket.returns += 1
        link, takes = session.link, session._writable
        session.absorbed_by(old)
        hub.sockets.hand_over(session, old)
        conn = old.conn
        conn.identity, conn.meta = auth.sent
        conn.challenge = auth.challenge
        if auth.state is not None:
            conn.state = auth.state
        conn.request = session.conn.request
        old.agree_as(session)
        old.limit_output(session._max_out)
        hub.auth.expire(old, arrival.expires)
        old.excuse(min(arrival.claim.sent[1] - ledger.got, self._settings.messages))
        link.write_shared(hub.answer(session))
        link.write_shared(arrival.welcome)
        old.attached()
        ledger.resume(link, takes, arrival.claim.got)
        hub.network.mark(conn)
        if not old.ended:
            text = "user %r is back on connection %s"
            hub.endpoint.log.event("resumed", text, conn.cid, conn.conn_id, cid=conn.cid, conn_id=conn.conn_id)
            hub.resumed._emit_on(old, conn)

    def take_from_socket(self, session: ServerSession) -> None:
        """Part a session from its socket, if it has one: its client was the first to notice that the link is gone."""
        ledger = session.ledger
        assert ledger is not None  # it was claimed
        if ledger.is_attached:
            self._close_link(ledger, 1000, CloseReason.RESUMED_ELSEWHERE)
            ledger.leave()
            self._hub.sockets.remove(session)
            self._hub.endpoint.counters.count_close(1000, CloseReason.RESUMED_ELSEWHERE)

    def keep(self, session: ServerSession) -> None:
        """Give a session that has just come from another node its books. It has no socket yet."""
        ledger = self._give_ledger(session)
        session.link = ledger
        session.writable(False)
        session.ready_state = ReadyState.CONNECTING
        assert session.ticket is not None  # it has been made for it
        self._detach(session, session.ticket, 1006, "")

    def hold(self, session: ServerSession, seconds: float) -> None:
        """Keep the window of a session open for a moment: another node is about to take it over."""
        ticket = session.ticket
        assert ticket is not None  # it was claimed
        ticket.claimants += 1
        self._scheduler.call_later(seconds, self._give_back, session)

    def _give_back(self, session: ServerSession) -> None:
        """One claimant fewer; a window that has ended meanwhile is over with the last of them."""
        ticket = session.ticket
        assert ticket is not None  # as above
        ticket.claimants -= 1
        if ticket.claimants:
            return
        if ticket.holding is not None:
            ticket.holding.cancel()
            ticket.holding = None
        if ticket.is_overdue and session in self.detached:
            self.end(session, Why.EXPIRED)

    # A client goes.

    def note_detached(self, session: ServerSession, code: int, reason: str) -> None:
        """The socket of a session is gone, or closed by this side."""
        ticket, ledger = session.ticket, session.ledger
        assert ticket is not None
        assert ledger is not None  # or the session would have ended
        self._hub.sockets.remove(session)
        self._detach(session, ticket, code, reason)
        if len(self.detached) > self._settings.detached:
            self.end(next(iter(self.detached)), Why.OVERFLOW)
        ledger.charge()
        if not session.ended:
            self._hub.network.mark(session.conn)
            self._hub.detached._emit_on(session, session.conn, code, reason)

    def _detach(self, session: ServerSession, ticket: Ticket, code: int, reason: str) -> None:
        """Let a session wait for its client."""
        self.detached[session] = code, reason
        ticket.since = self._scheduler.time()
        ticket.until = ticket.since + self._window(ticket, code)
        ticket.is_overdue = False
        if len(self._ends) > 2 * len(self.detached) + MOST_OUTDATED:
            self._ends = [(one.ticket.until, one.conn.conn_id) for one in self.detached if one.ticket is not None]
            heapq.heapify(self._ends)
        else:
            heapq.heappush(self._ends, (ticket.until, session.conn.conn_id))
        self._set_timer()

    @staticmethod
    def _window(ticket: Ticket, code: int) -> float:
        """Seconds for which a session waits for its client."""
        return min(ticket.window, JUMP_WINDOW) if code == JUMP and not ticket.is_called_back else ticket.window

    def cut(self, session: ServerSession, code: int, reason: str) -> None:
        """Close the socket of a session, which goes on without it: its client is to come back."""
        ledger, ticket = session.ledger, session.ticket
        assert ledger is not None
        assert ticket is not None  # or there would be no ledger
        ticket.is_called_back = True
        self._close_link(ledger, code, reason)
        ledger.detach(code, str(reason))

    def _close_link(self, ledger: Ledger, code: int, reason: str) -> None:
        leftovers = self._hub.sockets.leftovers
        leftovers.add(Leftover(ledger.link, code, str(reason), self._scheduler, PATIENCE, leftovers.discard))

    def end(self, session: ServerSession, why: Why) -> None:
        """End a session that cannot go on."""
        ticket = session.ticket
        assert ticket is not None
        ticket.why = why
        session.close(*self.detached.get(session, (1000, CloseReason.RESUMED_ELSEWHERE)))

    @property
    def drain(self) -> float:
        """Seconds for which a node that closes waits for its clients to take their sessions along."""
        return self._settings.drain

    @property
    def longest(self) -> float:
        """Seconds for which a session waits for its client at most."""
        return self._settings.window

    def end_all(self) -> None:
        """End all sessions without a socket, because the server ends."""
        for session in tuple(self.detached):
            self.end(session, Why.ENDED)

    async def drained(self) -> None:
        """Return when no session waits for its client, or there is no other node that could take one over."""
        if self.detached and self._hub.network.has_others:
            self._drained = self._scheduler.create_future()
            await self._drained

    def stop_waiting(self) -> None:
        """End `drained`."""
        if self._drained is not None:
            wake(self._drained)

    def forget_loop(self) -> None:
        """The event loop has been closed: its timers do not run."""
        self._timer = None
        self._acks.forget_loop()

    def away(self, session: ServerSession) -> float:
        """Seconds for which the session has had no socket."""
        ticket = session.ticket
        return 0.0 if ticket is None or session not in self.detached else self._scheduler.time() - ticket.since

    def note_end(self, session: ServerSession, ticket: Ticket, code: int, reason: str) -> None:
        """A session has ended, or a client that claimed one has gone."""
        self._release(ticket)
        ledger = session.ledger
        if ledger is None:
            return
        was_detached = session in self.detached
        self._bring_back(session)
        close = None
        why = ticket.why
        if ticket.to:
            why = Why.UNKNOWN  # its client is sent there
        elif why is None:
            why = Why.OVERFLOW if code == 1013 else Why.ENDED
            is_ours = was_detached or session.ready_state is ReadyState.CLOSING
            if is_ours and code != 1013 and (was_detached or not is_retried(code)):
                close = code, reason
            elif not is_ours and not is_retried(code):
                return  # the client has ended it, and knows
        now = self._scheduler.time()
        stones = self._tombstones
        while stones and (len(stones) >= self._settings.detached or next(iter(stones.values())).until < now):
            del stones[next(iter(stones))]
        conn = session.conn
        stones[conn.conn_id] = Tombstone(ticket.key, conn.cid, why, ledger.got, close, ticket.to, now + ticket.window)

    async def returning(self, session: ServerSession) -> Returning | None:
        """See `Handshake.resuming`."""
        ticket = session.ticket
        claim = None if ticket is None else ticket.claim
        if claim is None:
            return None
        held = self.find(claim)
        if held is not None:
            return Returning(held.conn.cid, held.conn.meta)
        holder = self.moved_to(claim.id) or claim.holder
        if not holder or holder == self._hub.network.name:
            return None
        return await self._hub.network.find(holder, claim)

    def refused(self, session: ServerSession, retry: bool) -> None:
        """A client is being refused; a session whose key it knows ends, unless it may try again."""
        held = None if session.ticket is None else session.ticket.holds
        if held is not None and not retry and not held.ended:
            held.close(1000, CloseReason.NOT_AUTHORIZED)

    # Windows.

    def _bring_back(self, session: ServerSession) -> None:
        """It is no longer detached, or not without an end; the heap forgets it in time."""
        self.detached.pop(session, None)
        if not self.detached:
            self.stop_waiting()
            self._ends.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _release(self, ticket: Ticket) -> None:
        """A client that claimed a session is not being authenticated any longer."""
        held, ticket.holds = ticket.holds, None
        if held is not None:
            self._give_back(held)

    def _hold_no_longer(self, session: ServerSession) -> None:
        """The window of a session has been held open for long enough."""
        ticket = session.ticket
        assert ticket is not None  # it was claimed
        ticket.holding = None
        if session in self.detached and ticket.is_overdue:
            self.end(session, Why.EXPIRED)

    def _set_timer(self) -> None:
        due = self._ends[0][0] if self._ends else None
        if self._timer is not None and due is not None and due < self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due is not None:
            self._due = due
            self._timer = self._scheduler.call_later(max(0.0, due - self._scheduler.time()), self._end_overdue)

    def _end_overdue(self) -> None:
        self._timer = None
        now = self._scheduler.time()
        while self._ends and self._ends[0][0] <= now:
            until, conn_id = heapq.heappop(self._ends)
            conn = self._hub.connections.get(conn_id)
            session = None if conn is None else conn._session
            ticket = None if session is None else session.ticket
            if session is None or ticket is None or session not in self.detached or ticket.until != until:
                continue
            if ticket.claimants:
                ticket.is_overdue = True
            else:
                self.end(session, Why.EXPIRED)
        self._set_timer()

    # Memory.

    def _relieve(self, ledger: Ledger) -> None:
        """All sessions together keep too much, and this one has just grown."""
        if ledger.is_attached:
            ledger.forget_ring()
        while self.retention.is_full and self.detached:
            self.end(next(iter(self.detached)), Why.OVERFLOW)
