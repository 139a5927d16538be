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
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from wse.core.closing import JUMP, is_retried
from wse.core.hub.handshake import Returning
from wse.core.hub.tickets import Claim, Ticket, Tombstone, Why, is_same, read_claim
from wse.core.session.acks import Acks
from wse.core.session.ledger import Ledger
from wse.core.session.leftover import Leftover
from wse.core.session.resuming import Resuming
from wse.core.session.retention import Retention
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientId, ReadyState

if TYPE_CHECKING:
    from wse.core.hub.connection import ServerSession
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


class Resumption(Resuming):
    """The `resume` extension of a server.

    Args:
        hub: The connections of the server.
        settings: How long and how much is kept.

    Attributes:
        detached: The sessions without a socket, the longest without one first, with the close of their last one.
        retention: What all sessions keep together.
    """

    def __init__(self, hub: Hub, settings: Resume) -> None:
        self._hub = hub
        self._settings = settings
        self._scheduler = hub.endpoint.scheduler
        self._acks = Acks(self._scheduler)
        self.retention = Retention(settings.retained, self._relieve)
        self.detached: dict[ServerSession, tuple[int, str]] = {}
        self._ends: list[tuple[float, int, ServerSession]] = []  # a heap, also of sessions that are back
        self._order = count()
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
            conn = self._hub.connections.get(claim.id)
            other = None if conn is None else conn._session.ticket
            if conn is not None and other is not None and is_same(other.key, claim.key):
                ticket.holds = conn._session
                other.claimants += 1
                if other.claimants == 1:
                    self._scheduler.call_later(self._hub.auth_timeout or MOST_HELD, self._hold_no_longer, conn._session)
        return True

    def answer(self, session: ServerSession) -> Any:
        ticket = session.ticket
        assert ticket is not None  # it was made when the extension was offered
        old = ticket.goes_on
        if old is not None:
            assert old.ledger is not None
            return {"id": old.conn.conn_id, "got": old.ledger.got}
        settings = self._settings
        ticket.key = secrets.token_urlsafe(16)
        answer: dict[str, Any] = {
            "id": session.conn.conn_id,
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
        session.ledger = ledger = Ledger(session, self._settings, self._acks, self.retention)
        ledger.begin(link, session._writable)
        session.link = ledger
        link.attach(ledger)

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
            return self._decide(session, ticket, auth, cid, welcome, expires)
        finally:
            self._release(ticket)

    def _decide(
        self,
        session: ServerSession,
        ticket: Ticket,
        auth: Handshake,
        cid: ClientId,
        welcome: Packed,
        expires: float | None,
    ) -> bool:
        claim = ticket.claim
        if claim is None:
            if ticket.problem is not None:
                ticket.lost = {"why": str(ticket.problem), "got": None}
            return False
        old = ticket.holds
        if old is None or old.ended:
            return self._tell_end(session, ticket, claim, cid)
        assert old.ledger is not None  # it has a key
        if old.conn.cid != cid:
            ticket.lost = {"why": str(Why.USER), "got": None}
            details = {"from": old.describe(), "cid": cid, "conn_id": session.conn.conn_id}
            problem = "a client has the key of another user's session"
            self._hub.endpoint.report(WseError(ErrorCode.PROTOCOL_VIOLATION, details, problem), session)
            return False
        same_protocol = old.protocol is session.protocol
        why = old.ledger.obstacle(claim.got, claim.sent) if same_protocol else Why.PROTOCOL
        if why is None:
            self._absorb(session, old, ticket, claim, auth, welcome, expires)
            return True
        is_foreign = why == Why.MISMATCH  # its client would not say that, so it goes on
        ticket.lost = {"why": str(why), "got": None if is_foreign else old.ledger.got}
        if not is_foreign:
            self.end(old, Why(why))
        return False

    def _tell_end(self, session: ServerSession, ticket: Ticket, claim: Claim, cid: ClientId) -> bool:
        """Tell a client why the session that it claims has ended."""
        stone = self._tombstones.get(claim.id)
        if stone is None or not is_same(stone.key, claim.key) or stone.cid != cid:
            ticket.lost = {"why": str(Why.UNKNOWN), "got": None}
            return False
        del self._tombstones[claim.id]
        if stone.close is not None:
            session.close(*stone.close)
            return True
        ticket.lost = {"why": str(stone.why), "got": stone.got}
        return False

    def _absorb(
        self,
        session: ServerSession,
        old: ServerSession,
        ticket: Ticket,
        claim: Claim,
        auth: Handshake,
        welcome: Packed,
        expires: float | None,
    ) -> None:
        """Give the socket of one session to another."""
        ledger = old.ledger
        assert ledger is not None
        hub = self._hub
        if ledger.is_attached:  # the client has noticed first that the link is gone
            self._close_link(ledger, 1000, CloseReason.RESUMED_ELSEWHERE)
            ledger.leave()
            hub.sockets.remove(old)
            hub.endpoint.counters.count_close(1000, CloseReason.RESUMED_ELSEWHERE)
        self._bring_back(old)
        ticket.goes_on = old
        if old.ticket is not None:
            old.ticket.is_called_back = False
        link, takes = session.link, session._writable
        session.absorbed_by(old)
        hub.sockets.hand_over(session, old)
        conn = old.conn
        conn.identity, conn.meta, conn.challenge = auth.identity, auth.meta, auth.challenge
        conn.request = session.conn.request
        old.agreement = session.agreement
        old.limit_output(session._max_out)
        hub.auth.expire(old, expires)
        old.excuse(min(claim.sent[1] - ledger.got, self._settings.messages))
        link.write_shared(hub.answer(session))
        link.write_shared(welcome)
        old.attached()
        ledger.resume(link, takes, claim.got)
        if not old.ended:
            hub.resumed._emit_on(old, conn)

    # A client goes.

    def note_detached(self, session: ServerSession, code: int, reason: str) -> None:
        """The socket of a session is gone, or closed by this side."""
        ticket, ledger = session.ticket, session.ledger
        assert ticket is not None
        assert ledger is not None  # or the session would have ended
        self._hub.sockets.remove(session)
        self.detached[session] = code, reason
        ticket.since = self._scheduler.time()
        ticket.until = ticket.since + self._window(ticket, code)
        ticket.is_overdue = False
        heapq.heappush(self._ends, (ticket.until, next(self._order), session))
        self._set_timer()
        if len(self.detached) > self._settings.detached:
            self.end(next(iter(self.detached)), Why.OVERFLOW)
        ledger.charge()
        if not session.ended:
            self._hub.detached._emit_on(session, session.conn, code, reason)

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

    def end_all(self) -> None:
        """End all sessions without a socket, because the server ends."""
        for session in tuple(self.detached):
            self.end(session, Why.ENDED)

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
        if why is None:
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
        stones[conn.conn_id] = Tombstone(ticket.key, conn.cid, why, ledger.got, close, now + ticket.window)

    def returning(self, session: ServerSession) -> Returning | None:
        """See `Handshake.resuming`."""
        held = None if session.ticket is None else session.ticket.holds
        return None if held is None or held.ended else Returning(held.conn.cid, held.conn.meta)

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
            self._ends.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _release(self, ticket: Ticket) -> None:
        """A client that claimed a session is not being authenticated any longer."""
        held, ticket.holds = ticket.holds, None
        other = None if held is None else held.ticket
        if held is not None and other is not None:
            other.claimants -= 1
            if not other.claimants and other.is_overdue and held in self.detached:
                self.end(held, Why.EXPIRED)

    def _hold_no_longer(self, session: ServerSession) -> None:
        """The window of a session has been held open for long enough."""
        if session in self.detached and session.ticket is not None and session.ticket.is_overdue:
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
            until, _, session = heapq.heappop(self._ends)
            ticket = session.ticket
            if session not in self.detached or ticket is None or ticket.until != until:
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
