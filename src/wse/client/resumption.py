"""A client's session that outlives its connection (WIRE.md section 7, `resume`)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from wse.core.resume import Resume
from wse.core.session.acks import Acks
from wse.core.session.ledger import Ledger, is_count
from wse.core.session.resuming import Resuming
from wse.core.session.retention import Retention
from wse.errors import CloseReason, ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.client.session import ClientSession
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageKey, MessageType


class Loss:
    """A session that has ended with messages that the server has not confirmed: what `client.when.lost` tells.

    Attributes:
        why: Why the session could not go on: `expired`, the client was away for too long; `overflow`, too much had to
            be kept; `ended`, the server has closed it; `unknown`, the server has no such session, after a restart for
            example; `off`, it keeps no sessions; `user`, the client has come back as another user; `protocol`, with
            another message protocol; `stuck`, the same message has broken several connections; `gap` and `mismatch`,
            the two sides do not fit together; `unreachable`, the node of the cluster that had the session does not
            answer.
        uncertain: Messages of which nobody knows whether the server has had them, as `(type, payload)`, the oldest
            first.
        unsent: Those that the server has certainly not had.
        forgotten: How many messages and calls before these were no longer kept, because the server took them without
            confirming them; see the bounds of `Resume`.
    """

    __slots__ = ("_send", "forgotten", "uncertain", "unsent", "why")

    def __init__(
        self,
        why: str,
        uncertain: list[tuple[Any, Any]],
        unsent: list[tuple[Any, Any]],
        forgotten: int,
        send: Callable[[MessageType, Any, MessageKey | None], None],
    ) -> None:
        self.why = why
        self.uncertain = uncertain
        self.unsent = unsent
        self.forgotten = forgotten
        self._send = send

    def resend(self, *, uncertain: bool = False) -> None:
        """Send the messages again that the server has certainly not had.

        Args:
            uncertain: First also those of which nobody knows; the server may then get them twice.

        Raises:
            WseError: As `WseClient.send`.
        """
        for type_, payload in [*(self.uncertain if uncertain else ()), *self.unsent]:
            self._send(type_, payload, None)

    def __repr__(self) -> str:
        return f"<Loss {self.why}: {len(self.uncertain)} uncertain, {len(self.unsent)} unsent>"


class Resumption(Resuming):
    """The `resume` extension of a client: the session that waits for its next connection.

    Args:
        endpoint: The part that all connections of the client share.
        settings: How much is kept, and the window to ask for; `True` for the server's window.
        send: Sends a message over the present session.

    Attributes:
        kept: The session without a connection, if there is one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Resume | bool,
        send: Callable[[MessageType, Any, MessageKey | None], None],
    ) -> None:
        self._settings = settings if isinstance(settings, Resume) else Resume()
        self._offers_window = isinstance(settings, Resume)
        self._send = send
        self._acks = Acks(endpoint.scheduler)
        self._retention = Retention(inf, lambda ledger: None)
        self.kept: ClientSession | None = None
        self._claimed: ClientSession | None = None  # by the attempt that is being made
        self._close = (1006, "")  # of its last connection

    # Extension.

    def offer(self) -> Any:
        offer: dict[str, Any] = {"window": self._settings.window} if self._offers_window else {}
        kept = self._claimed = self.kept
        if kept is not None:
            ledger = kept.ledger
            assert ledger is not None  # else it would not be kept
            id_, key = kept.ticket
            offer |= {"id": id_, "key": key, "got": ledger.got, "sent": [ledger.base, ledger.out]}
        return offer

    def answered(self, session: ClientSession, params: Any) -> None:
        if isinstance(params, dict):
            session.answer = params

    # The life of a session.

    def keep(self, session: ClientSession, code: int, reason: str) -> None:
        """The connection of a session is gone."""
        self.kept = session
        self._close = code, reason

    def forget(self) -> None:
        """Have nothing to do with the kept session."""
        self.kept = None

    def forget_loop(self) -> None:
        """The event loop has been closed: nothing of it runs again."""
        self.kept = None
        self._acks.forget_loop()

    def drop(self, code: int, reason: str) -> None:
        """End the kept session, because the application has decided so."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.close(code, reason)

    def lose(self, why: str, got: Any = None) -> Loss | None:
        """End the kept session, if there is one, because it cannot go on.

        Args:
            why: See `Loss`.
            got: How many messages the server has had, if that is known.
        """
        kept, self.kept = self.kept, None
        if kept is None:
            return None
        ledger = kept.ledger
        assert ledger is not None  # as above
        if is_count(got) and ledger.heard <= got <= ledger.out:
            ledger.confirm(got)
            ledger.is_certain = True
        kept.close(*self._close)
        return self.loss(kept, why)

    def lose_if_stuck(self) -> Loss | None:
        """The same, if one of its messages has broken several connections."""
        kept = self.kept
        if kept is None or kept.ledger is None or not kept.ledger.is_stuck:
            return None
        return self.lose("stuck")

    def loss(self, session: ClientSession, why: str) -> Loss:
        """What a session that has ended leaves."""
        ledger = session.ledger
        assert ledger is not None  # as above
        sent, unsent = session.plain_messages(ledger.ring), session.plain_messages(ledger.unsent)
        forgotten = ledger.base - 1 - ledger.heard
        if ledger.is_certain:
            return Loss(why, [], [*sent, *unsent], forgotten, self._send)
        return Loss(why, sent, unsent, forgotten, self._send)

    def is_stale(self, session: ClientSession) -> bool:
        """Whether the server goes on with a session that has ended here since the client claimed it."""
        has_ended = self._claimed is not None and self._claimed is not self.kept
        return has_ended and session.answer is not None and "lost" not in session.answer

    def welcomed(self, session: ClientSession) -> tuple[ClientSession | None, Loss | None]:
        """The server has let the client in.

        Returns:
            The session that goes on over the connection, if one does; or the one that could not.

        Raises:
            WseError: `PROTOCOL_VIOLATION`: the server goes on with what has never been.
        """
        answer = session.answer
        kept = self.kept
        if kept is None:
            self._begin(session, answer)
            return None, None
        lost = {"why": "off"} if answer is None else answer.get("lost")
        if lost is None:
            assert answer is not None
            self._go_on(kept, session, answer)
            return kept, None
        self._begin(session, answer)
        if not isinstance(lost, dict):
            lost = {}
        return None, self.lose(str(lost.get("why", "unknown")), lost.get("got"))

    def _begin(self, session: ClientSession, answer: dict[str, Any] | None) -> None:
        """Count the messages of a new session, if the server keeps it."""
        id_, key = (None, None) if answer is None else (answer.get("id"), answer.get("key"))
        if isinstance(id_, str) and isinstance(key, str):
            session.ticket = id_, key
            session.begin_counting(Ledger(session, self._settings, self._acks, self._retention))

    def _go_on(self, kept: ClientSession, session: ClientSession, answer: dict[str, Any]) -> None:
        """Give the new connection to the kept session."""
        ledger = kept.ledger
        assert ledger is not None  # as above
        got = answer.get("got")
        if not is_count(got) or not ledger.base - 1 <= got <= ledger.out:
            problem = f"the server has had {got!r} messages: {ledger.base - 1} to {ledger.out} are possible"
            raise WseError(ErrorCode.PROTOCOL_VIOLATION, {"close": [1000, str(CloseReason.PROTOCOL_ERROR)]}, problem)
        self.kept = None
        if isinstance(answer.get("id"), str):
            kept.ticket = answer["id"], kept.ticket[1]
        session.hand_over_to(kept)
        ledger.resume(session.link, session._writable, got)
