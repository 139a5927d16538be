"""Messages that go another way if nobody gets them: `send(..., fallback=True)`, and the signal `undelivered`.

A message has been got when a device without a session that outlives its connection was sent it, or when another one has
confirmed it. Nobody has got it if the user has no device, or when the sessions of all devices that were sent it have
ended before. A session that another node takes over counts as a device that has got it: its client is there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from wse.core.hub.fanout import excluded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from wse.core.hub.connection import Exclude, ServerSession
    from wse.core.hub.hub import Hub
    from wse.types import ClientId, MessageKey, MessageType

MOST: Final = 10_000
"""Messages of which it may be unknown whether anybody gets them. One more counts as undelivered at once."""


class Watch:
    """A message of which it is not known yet whether anybody gets it.

    Args:
        cid: The user.
        type: The type of the message.
        payload: What it carries.

    Attributes:
        parts: Where it may still be got: here, and on other nodes.
        is_reached: Whether anybody has got it.
    """

    __slots__ = ("cid", "is_reached", "parts", "payload", "type")

    def __init__(self, cid: ClientId, type: MessageType, payload: Any) -> None:
        self.cid = cid
        self.type = type
        self.payload = payload
        self.parts = 2
        self.is_reached = False


class Fallbacks:
    """The messages of a node that go another way if nobody gets them.

    Args:
        hub: The connections.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.signal = hub.signal("undelivered", "cid", "type", "payload")
        self.watched = 0

    def send(self, cid: ClientId, type: MessageType, payload: Any, exclude: Exclude, key: MessageKey | None) -> None:
        """Send to a user; see `WseServer.send`."""
        hub = self._hub
        conns = hub.conns_of(cid)
        conn_id, user = excluded(exclude)
        hub.send(cid, type, payload, exclude, key)
        hub.endpoint.check_sent(type)  # a server alone does not look at what it sends to nobody
        # The device that is excluded knows already: its user is there.
        if not self.signal.has_listeners or user == cid or any(conn.conn_id == conn_id for conn in conns):
            return
        watch = Watch(cid, type, payload)
        sessions = [conn._session for conn in conns]
        if self.watched >= MOST:
            if not any(session.valid and session.ledger is None for session in sessions):
                self._tell(watch)
            return
        self.watched += 1
        if not self.follow(sessions, partial(self.settle, watch)):
            hub.network.watch(watch)

    def follow(self, sessions: Sequence[ServerSession], settle: Callable[[bool], None]) -> bool:
        """Find out whether one of these sessions gets all that it has been sent until now.

        Args:
            sessions: The sessions.
            settle: Called once it is known, perhaps at once.

        Returns:
            Whether it is known already that one does.
        """
        sessions = [session for session in sessions if not session.ended]
        if any(session.ledger is None for session in sessions):
            settle(True)
            return True
        if not sessions:
            settle(False)
            return False
        waiting = [len(sessions)]

        def ended(session: ServerSession, flushed: asyncio.Future[None]) -> None:
            waiting[0] -= 1
            moved = session.ticket is not None and bool(session.ticket.to)
            if flushed.cancelled() or (flushed.exception() is not None and not moved):
                if not waiting[0]:
                    settle(False)
            else:
                settle(True)

        for session in sessions:
            assert session.ledger is not None  # as above
            session.ledger.flushed(session._outbox).add_done_callback(partial(ended, session))
        return False

    def settle(self, watch: Watch, is_reached: bool) -> None:
        """A part of the answer is known: whether somebody here, or on other nodes, has got the message."""
        if watch.is_reached or not watch.parts:
            return
        watch.is_reached = is_reached
        watch.parts -= 1
        if is_reached:
            self.watched -= 1
        elif not watch.parts:
            self.watched -= 1
            self._tell(watch)

    def _tell(self, watch: Watch) -> None:
        self._hub.endpoint.counters.undelivered["send"] += 1
        self.signal._emit(watch.cid, watch.type, watch.payload)
