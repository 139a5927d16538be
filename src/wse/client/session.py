"""The client's side of one session."""

from __future__ import annotations

import typing
from inspect import isawaitable
from math import inf
from typing import TYPE_CHECKING, Any, Final

from wse.core.session.leftover import Leftover
from wse.core.session.rpc import PendingCalls
from wse.core.session.session import Session
from wse.core.session.signals import run_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import wake
from wse.types import MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Pinger, Receiver
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.ledger import Ledger


CLOSE_TIMEOUT: Final = 4.0
"""Seconds that the server has for its part of the closing handshake, before the socket is cut."""

PROBE: Final = "~wse:alive"
"""A name that no server registers, since applications cannot."""


class SessionOwner(typing.Protocol):
    """The connection of a session."""

    def session_welcomed(self, session: ClientSession, welcome: Any) -> None:
        """The server has accepted the client."""

    def identity_asked(self, session: ClientSession) -> None:
        """The server asks for a fresh identity."""

    def session_failed(self, session: ClientSession, error: WseError) -> None:
        """The client itself ends the opening: the handshake cannot go on."""

    def session_ended(self, session: ClientSession, code: int, reason: str) -> None:
        """The session has ended, before or after the welcome."""

    def session_detached(self, session: ClientSession, code: int, reason: str) -> None:
        """The connection is gone; the session can go on over another one."""

    def socket_closed(self, session: ClientSession) -> None:
        """The socket has closed."""

    def message_ignored(self, type: Any, payload: Any, stamp: Any) -> None:
        """A message came that has no listener."""


class ClientSession(Session):
    """A session at the client.

    Attributes:
        refusal: The server's explanation of the refusal with which it is about to close, a dict with `reason` and
            `retry`; `None` if there is none.
        answer: The server's answer to the `resume` extension; `None` if there is none.
        ticket: The id and the key with which the session can go on over another connection.
    """

    __slots__ = ("_closed_waiters", "_held", "_held_close", "_owner", "_probe", "answer", "refusal", "ticket")

    requires_type = False

    def __init__(self, owner: SessionOwner, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._owner = owner
        self._closed_waiters: list[asyncio.Future[None]] = []
        self._held: list[str | bytes] | None = None
        self._held_close: tuple[int, str] | None = None
        self._probe: Probe | None = None if link.pings else Probe(self)
        self.refusal: dict[str, Any] | None = None
        self.answer: dict[str, Any] | None = None
        self.ticket: tuple[str, str] = ("", "")

    def describe(self) -> str:
        return "server"

    async def wait_closed(self) -> None:
        """Return when the socket has closed."""
        if self.ready_state is not ReadyState.CLOSED:
            waiter = self.endpoint.scheduler.create_future()
            self._closed_waiters.append(waiter)
            await waiter

    def give_up(self) -> None:
        """Cut a connection whose peer does not do its part."""
        self.link.abort()
        self._end(1006, "")

    def probe(self, answered: Callable[[asyncio.Future[Any]], None]) -> bool:
        """Call a procedure that the server does not have; whether the protocol can encode that."""
        try:
            _, answer = self.request(PROBE, None, 0)
        except Exception:
            return False
        answer.add_done_callback(answered)
        return True

    def request(self, type: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Call something of WSE's own. The code that awaits the future must call `forget_call` in the end.

        Raises:
            Exception: The payload cannot be encoded.
        """
        calls = self._calls
        if calls is None:
            calls = self._calls = PendingCalls(
                self.endpoint.scheduler, self.endpoint.timeout, unanswered=self._counters.unanswered
            )
        stamp, answer = calls.add(type, timeout)
        try:
            data = self._encode((type, payload, stamp))
        except Exception:
            calls.discard(stamp)
            raise
        self._write(data)
        return stamp, answer

    def tell(self, type: MessageType, payload: Any, key: MessageKey) -> None:
        """Send a message of an extension, of which only the newest with that key counts."""
        data = self._encode((type, payload, None))
        if self.takes(data):
            self._counters.messages_out += 1
            self._write(data, type, key)
        else:
            self.skip(data, {"type": type})

    @property
    def pinger(self) -> Pinger | None:
        if self._probe is None:
            return super().pinger
        return self._probe if self.valid and self._probe.works else None

    # Messages right behind the welcome wait for the code that awaits `connect`, which may add listeners first.

    def hold_input(self) -> None:
        """Keep everything that comes in until `release_input`."""
        self._held = []
        self._decode = _decode_nothing

    def release_input_soon(self) -> None:
        """Dispatch the kept input when two turns of the event loop have passed."""
        self._release_after(2)

    def _release_after(self, turns: int) -> None:
        if turns < 0:
            self.release_input()
        else:
            self.endpoint.scheduler.call_soon(self._release_after, turns - 1)

    def release_input(self) -> None:
        """Dispatch the kept input, the end of the connection included."""
        held, self._held = self._held, None
        if held is None:
            return
        self._decode = self.protocol.codec.decode
        receiver: Receiver = self
        if self.ledger is not None:
            self.ledger.listen()
            receiver = self.ledger
        for data in held:
            self._counters.bytes_in -= len(data)  # counted when it came
            receiver.receive(data)
        close, self._held_close = self._held_close, None
        if close is not None:
            receiver.closed(*close)

    def _decode_again(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any] | None:
        if self._held is None:
            return super()._decode_again(data)
        self._held.append(bytes(data) if isinstance(data, memoryview) else data)
        return None

    def closed(self, code: int, reason: str) -> None:
        if self._held is None:
            super().closed(code, reason)
        else:
            self._held_close = (code, reason)

    def violated(self, code: int, problem: str) -> None:
        self.release_input()
        super().violated(code, problem)

    # A session that outlives its connection.

    def begin_counting(self, ledger: Ledger) -> None:
        """The welcome has come: count from here on, what comes in when it is dispatched."""
        ledger.begin(self.link, self._writable)
        self.ledger = ledger
        self.link = ledger

    def hand_over_to(self, kept: ClientSession) -> None:
        """Give the connection to a session that goes on over it."""
        self.absorbed_by(kept)
        self._held = None
        kept.agree_as(self)
        kept.limit_output(self._max_out)
        kept._owner, owner = self._owner, kept._owner
        self._owner = owner
        kept.attached()

    def outlives(self, code: int) -> bool:
        return True  # the owner decides

    def cut(self, code: int, reason: str, gone: Callable[[Leftover], None]) -> Leftover:
        """Close the connection and go on without it."""
        ledger = self.ledger
        assert ledger is not None  # else it cannot go on
        self.release_input()
        leftover = Leftover(ledger.link, code, reason, self.endpoint.scheduler, CLOSE_TIMEOUT, gone)
        ledger.detach(code, reason)
        return leftover

    def _on_detached(self, code: int, reason: str) -> None:
        self._wake_closed()
        self._owner.session_detached(self, code, reason)

    # What extensions bring.

    def answered(self, answers: Any) -> None:
        """The server has answered to the extensions that `hi` offered."""
        types = self.protocol.extensions
        if types is not None:
            self.agreement = self.endpoint.extensions.take_answers(self, types, answers)

    def refused(self, payload: Any) -> None:
        """The server tells why it refuses the client; the close follows."""
        if isinstance(payload, dict):
            self.refusal = payload

    def asked_for_identity(self) -> None:
        """The session is about to expire, and the server asks for a fresh identity (`~wse:auth`)."""
        self._owner.identity_asked(self)

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        self._owner.message_ignored(type_, payload, stamp)

    def _on_end(self, code: int, reason: str) -> None:
        self._held = None
        self._owner.session_ended(self, code, reason)
        if self._held_close is not None:
            self.closed(*self._held_close)

    def _on_closed(self) -> None:
        self._wake_closed()

    def _wake_closed(self) -> None:
        for waiter in self._closed_waiters:
            wake(waiter)
        self._closed_waiters.clear()
        self._owner.socket_closed(self)


def _decode_nothing(data: str | bytes | memoryview) -> Any:
    """Leave every message to `ClientSession._decode_again`."""
    raise ValueError


class Probe:
    """Finds out whether a silent server is alive, on transports without pings (WIRE.md section 7).

    It calls a procedure that no server has: every server answers that.

    Attributes:
        works: Whether the protocol can encode the call.
    """

    __slots__ = ("_seen", "_session", "works")

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._seen = -1
        self.works = True

    @property
    def heard(self) -> bool:
        return self._session.endpoint.counters.bytes_in != self._seen

    @heard.setter
    def heard(self, heard: bool) -> None:
        self._seen = self._session.endpoint.counters.bytes_in

    def ping(self) -> None:
        ledger = self._session.ledger
        if ledger is not None:
            ledger.ask()
        else:
            self.works = self._session.probe(self._answered)

    def silence(self) -> float:
        return inf

    def _answered(self, answer: asyncio.Future[Any]) -> None:
        answer.exception()  # retrieved, or asyncio complains
        self._session.pong()


class ClientOpening:
    """The phase of a client's session before the welcome (WIRE.md section 3).

    Args:
        session: The connection.
        owner: The client.
        respond: Answers a quest, plain or async; without it quests are ignored.
        finish: Checks the welcome and returns the part of it that belongs to the application.
    """

    __slots__ = ("_finish", "_owner", "_respond", "_session")

    ignores_input = False

    @property
    def max_size(self) -> int:
        return self._session.endpoint.limits.message_size

    def __init__(
        self,
        session: ClientSession,
        owner: SessionOwner,
        respond: Callable[[Any], Any] | None,
        finish: Callable[[Any], Any] | None,
    ) -> None:
        self._session = session
        self._owner = owner
        self._respond = respond
        self._finish = finish

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        types = self._session.protocol.internal_types
        extensions = self._session.protocol.extensions
        if type == types.welcome:
            self._welcome(payload)
        elif extensions is not None and type == extensions.ext:
            self._session.answered(payload)
        elif extensions is not None and type == extensions.refused:
            self._session.refused(payload)
        elif type == types.challenge and self._respond is not None:
            run_handler(self._session, self._answer, (self._respond, payload), self._failed)
        # Anything else is ignored (WIRE.md section 3).

    def stop(self) -> None: ...

    def _welcome(self, payload: Any) -> None:
        if self._finish is not None:
            try:
                payload = self._finish(payload)
            except Exception as exc:
                self._failed(exc, CloseReason.NOT_AUTHORIZED)
                return
        self._session.enter(None)
        self._session.hold_input()
        self._owner.session_welcomed(self._session, payload)

    def _answer(self, respond: Callable[[Any], Any], quest: Any) -> Any:
        response = respond(quest)
        if response is not None and isawaitable(response):
            return self._answer_later(response)
        self._send(response)
        return None

    async def _answer_later(self, awaitable: Any) -> None:
        self._send(await awaitable)

    def _send(self, response: Any) -> None:
        if not self._session.ended:
            self._session.write(self._session.protocol.internal_types.challenge, response)

    def _failed(self, exc: Exception, reason: str = CloseReason.BY_CLIENT) -> None:
        error = exc if isinstance(exc, WseError) else WseError(ErrorCode.INVALID_CRA_HANDLER)
        if error is not exc:
            error.__cause__ = exc
        self._owner.session_failed(self._session, error)
        self._session.close(1000, reason)
