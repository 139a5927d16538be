"""One connection, at either side: incoming messages are decoded and dispatched, outgoing ones encoded and written.

Client and server are alike here, since both send messages and both call procedures. They differ in the phase before
the welcome, which the session leaves to a `Phase`, and in what happens when the connection ends.
"""

from __future__ import annotations

import typing
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from wse.core.limits import nests_deeper
from wse.core.packed import Packed, check_key, unencodable
from wse.core.ports.protocol import RESERVED_PREFIX
from wse.core.ports.tracing import TRACE
from wse.core.session.answering import Answering
from wse.core.session.asking import SessionAsking
from wse.core.session.current_call import bounded, inherited
from wse.core.session.extensions import NOTHING
from wse.core.session.flow import Inflow
from wse.core.session.handlers import discard
from wse.core.session.output import EASY_SIZE
from wse.core.session.phase import ENDED, Phase
from wse.core.session.rpc import NotAskedError, PendingCalls, error_of_peer
from wse.core.session.signals import HANDLER_ERRORS, settle
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.tracing import Tracer
    from wse.core.ports.transport import Link, Pinger, PingingLink
    from wse.core.session.asking import Asked, Items
    from wse.core.session.endpoint import Endpoint


_TRUTHY_IN_JAVASCRIPT = (list, dict)
"""The types whose values are stamps even when empty: truth on the wire is JavaScript's (WIRE.md section 2)."""


class Session(Answering):
    """One connection.

    A transport calls `receive`, `closed`, `writable`, `violated` and `pong`; the application's side calls `send`,
    `call`, `close` and `drain`. The session ends when either side closes: from then on nothing is heard or sent and
    every pending call is settled, while the socket still does its closing handshake.

    Attributes:
        endpoint: The state that all connections of the server or client share.
        link: The open WebSocket.
        protocol: The message protocol of the connection.
        ready_state: The state of the socket.
        silent_since: When the peer was last known to have sent something; maintained by the heartbeat.
        pinged_at: When the peer was pinged, if its pong is still due; maintained by the heartbeat.
        rtt: Seconds from the last ping to its pong; `None` before the first.
        agreement: The extensions that both sides know.
        input_size: The size of the message of an extension, with a stamp, that is being handled.
    """

    __slots__ = (
        "_asking",
        "_calls",
        "_conn",
        "_decode",
        "_nesting",
        "_phase",
        "_procedures",
        "agreement",
        "input_size",
        "pinged_at",
        "rtt",
        "silent_since",
    )

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._decode = endpoint.decoder(protocol)
        self._procedures = endpoint.procedures.by_name
        self._nesting = endpoint.limits.nesting
        self._conn: Any = None  # what handlers get before the payload: the connection at a server, nothing at a client
        self._phase: Phase | None = ENDED
        self._calls: PendingCalls | None = None
        self._asking: SessionAsking | None = None
        self.agreement = NOTHING
        self.input_size = 0
        self.silent_since = 0.0
        self.pinged_at: float | None = None
        self.rtt: float | None = None

    requires_type = True
    """Whether a message with neither a type nor a stamp is a violation, or is ignored (WIRE.md section 4)."""

    # Overridden by each side.

    def _on_end(self, code: int, reason: str) -> None:
        """Called when the session has just ended."""

    def _on_detached(self, code: int, reason: str) -> None:
        """Called when the session has just lost its socket and goes on."""

    def outlives(self, code: int) -> bool:
        """Whether a session with a ledger goes on without its socket, after a close with this code."""
        return False

    def _on_closed(self) -> None:
        """Called when the socket has closed as well."""

    # Called by the transport.

    def receive(self, data: str | bytes | memoryview) -> None:
        """Handle one whole message: `str` from a text message, anything else from a binary one."""
        if self._phase is not None:
            self._receive_in_phase(self._phase, data)
            return
        counters = self._counters
        size = len(data)
        counters.bytes_in += size
        try:
            type_, payload, stamp = self._decode(data)
        except Exception:
            message = self._decode_again(data)
            if message is None:
                return
            type_, payload, stamp = message
        if size > self._nesting and self._is_too_deep(data, payload, stamp):
            return
        if not stamp and (stamp is None or not isinstance(stamp, _TRUTHY_IN_JAVASCRIPT)):
            counters.messages_in += 1
            self._on_message(type_, payload, stamp)
            return
        # A call, or the answer to one. Every call runs the code from here to the write, so it stands in one place.
        try:
            fn = self._procedures.get(type_)
        except TypeError:
            self.violation("a procedure's name must be hashable")
            return
        if fn is None:
            self._on_answer(type_, payload, stamp, size)
            return
        counters.calls_in += 1
        result = None
        try:
            conn = self._conn
            result = fn(payload) if conn is None else fn(conn, payload)
            if type(result) is CoroutineType:
                self._answer_when_done(result, type_, payload, stamp)
                return
            answer = self._encode((self._response, result, stamp))
        except HANDLER_ERRORS as exc:
            if isawaitable(result):  # a future, or another kind of coroutine: rare, and encoded by no protocol
                self._answer_when_done(result, type_, payload, stamp)
            else:
                self._procedure_failed(exc, type_, payload, stamp)
            return
        size = len(answer)
        if size <= self._easy_utf8:
            counters.bytes_out += size
            self.link.write_utf8(answer)
        else:
            self._write_answer(answer, type_, payload, stamp)

    def closed(self, code: int, reason: str) -> None:
        """The socket has closed; `code` and `reason` are the peer's, or 1006 if it sent none (RFC 6455, 7.1.5)."""
        self.ready_state = ReadyState.CLOSED
        self._end(code, reason)
        self._wake_drainers()
        self._on_closed()

    def detached(self, code: int, reason: str) -> None:
        """The socket is gone; the session goes on without one."""
        self._counters.count_close(code, reason)
        self.ready_state = ReadyState.CONNECTING
        self.pinged_at = None
        self._on_detached(code, reason)

    def absorbed_by(self, session: Session) -> None:
        """Another session takes over the socket and the handlers that still run; nothing happens here any more."""
        self._phase = ENDED
        self.leave_handlers_to(session)

    def attached(self) -> None:
        """The session has a socket again."""
        self.ready_state = ReadyState.OPEN
        self.silent_since = self.endpoint.scheduler.time()

    def violated(self, code: int, problem: str) -> None:
        """End the connection, because the transport found a violation of RFC 6455 or of a limit."""
        if self._phase is ENDED:
            return
        if code == 1009:
            self.exceeded("message_size", CloseReason.LIMIT_MESSAGE_SIZE, code)
        else:
            self.violation(problem, code=code, reason=problem)

    def pong(self) -> None:
        """Note that the peer has answered a ping."""
        if self.pinged_at is not None:
            self.rtt = self.endpoint.scheduler.time() - self.pinged_at
            self.pinged_at = None
            if self.endpoint.instruments is not None:
                self.endpoint.instruments.rtt.observe(self.rtt)

    def lost(self) -> None:
        """Close the socket at once, because the peer has been silent for too long."""
        self.link.abort()

    # Called by the application's side.

    @property
    def pinger(self) -> Pinger | None:
        """Finds out whether a silent peer is alive; `None` where the heartbeat is not ours."""
        if not self.link.pings:
            return None
        return typing.cast("PingingLink", self.link) if self.ledger is None else self.ledger.pinger

    @property
    def ended(self) -> bool:
        """Whether either side has closed the connection."""
        return self._phase is ENDED

    @property
    def valid(self) -> bool:
        """Whether the welcome has been exchanged and the connection has not ended."""
        return self._phase is None

    def send(self, type: MessageType, payload: Any = None, key: MessageKey | None = None) -> None:
        """Send a plain message, or nothing if the connection is not valid.

        Raises:
            WseError: `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR` for a payload that
                cannot be encoded, with the encoder's exception as its cause; `LIMIT_EXCEEDED` for a message that is
                larger than the peer takes.
            TypeError: The key is neither a string nor an integer of 64 bits.
        """
        self.endpoint.check_sent(type)
        if key is not None:
            check_key(key)
        try:
            data = self._encode((type, payload, None))
        except Exception as exc:
            raise unencodable(type, exc) from exc
        if len(data) > EASY_SIZE or not self._direct:
            self.check_size(data, {"type": type})
        if self._phase is None:
            self._counters.messages_out += 1
            self._write(data, type, key)

    async def call(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Any:
        """Call a procedure of the peer and return its result.

        Raises:
            WseError: The peer's own error, or `RP_TIMEOUT`, `RP_DISCONNECT`, or as `start_call` (WIRE.md section 4).
        """
        if on_progress is not None or upload is not None:
            return await self.ask(name, payload, timeout, on_progress=on_progress, upload=upload).answer()
        stamp, future = self.start_call(name, payload, timeout)
        try:
            return await future
        except BaseException:
            self.forget_call(stamp)  # nothing stays behind when the caller was cancelled
            raise

    def start_call(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        options: dict[str, Any] | None = None,
        *,
        traced: bool = False,
    ) -> tuple[int, asyncio.Future[Any]]:
        """Send a call. The code that awaits the future must call `forget_call` in the end.

        Raises:
            WseError: `CLIENT_NOT_READY`, when the connection is not open and welcomed; `RP_SEND_FAILED`, when the
                payload cannot be encoded, or the transport raised; `LIMIT_EXCEEDED`, when too many calls wait for an
                answer, or the call is larger than the peer takes; `PROTOCOL_VIOLATION` for a name that is WSE's own;
                `UNSUPPORTED`, when the peer does not know the options; `RP_TIMEOUT`, when the deadline of the
                procedure that calls has passed.
        """
        if self.endpoint.tracer is not None and not traced:
            return self._start_traced(self.endpoint.tracer, name, payload, timeout, options)
        self.endpoint.check_sent(name)
        if self._phase is not None:
            raise NotAskedError(ErrorCode.CLIENT_NOT_READY, {"rp": name}, "the connection is not open")
        calls = self._calls
        if calls is None:
            calls = self._calls = PendingCalls(
                self.endpoint.scheduler, self.endpoint.timeout, unanswered=self._counters.unanswered
            )
        elif len(calls.waiting) >= self.endpoint.max_outgoing_calls:
            error = self.exceeded("outgoing_calls")
            error.details["rp"] = name
            raise error
        if bounded:
            timeout = inherited(timeout, self.endpoint.timeout, name)
        if self.terms is not None:
            calls.abandoned = self._cancel_call
            if timeout is not None and timeout != (0 if options and "n" in options else self.endpoint.timeout):
                options = {"t": timeout} if options is None else {"t": timeout, **options}
        elif options is not None:
            raise WseError(ErrorCode.UNSUPPORTED, {"extension": "calls", "rp": name})
        stamp, future = calls.add(name, timeout)
        problem = "the payload cannot be encoded"
        try:
            if options is None:
                data = self._encode((name, payload, stamp))
            else:
                data = self._encode((self._call_type, [name, payload, options], stamp))
            problem = "the call cannot be written"
            if len(data) > EASY_SIZE or not self._direct:
                self.check_size(data, {"rp": name})
            self._write(data)
            if self.ledger is not None:
                calls.withdraw = self._withdraw
                calls.note(stamp, self._outbox.newest if self._outbox else self.ledger.newest)
        except Exception as exc:
            calls.discard(stamp)
            if isinstance(exc, WseError):
                raise
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, f"{problem}: {exc}") from exc
        self._counters.calls_out += 1
        return stamp, future

    def _start_traced(
        self, tracer: Tracer, name: MessageType, payload: Any, timeout: float | None, options: dict[str, Any] | None
    ) -> tuple[int, asyncio.Future[Any]]:
        span = tracer.begin(name)
        if span.headers and self.terms is not None and TRACE in self.agreement.names:
            options = {**(options or {}), **span.headers}
        try:
            stamp, future = self.start_call(name, payload, timeout, options, traced=True)
        except BaseException as exc:
            span.fail(exc)
            raise
        span.watch(future)
        return stamp, future

    def forget_call(self, stamp: int) -> None:
        """Forget a call whose answer is no longer awaited; if it has not been sent yet, it never is."""
        if self._calls is not None:
            self._calls.forget(stamp)

    @property
    def _call_type(self) -> MessageType:
        types = self.protocol.extensions
        assert types is not None  # or the peer could not know them
        return types.call

    def _cancel_call(self, stamp: Any) -> None:
        """Tell the peer that a call's answer is no longer awaited."""
        if self.protocol.extensions is not None:
            self.write_stamped(self.protocol.extensions.cancel, None, stamp)

    def write_stamped(self, type: MessageType, payload: Any, stamp: Any) -> None:
        """Send a message about a call, which can always be encoded."""
        if self._phase is None:
            self._write(self._encode((type, payload, stamp)))

    def ask(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        *,
        window: int | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Asked:
        """See `wse.core.session.asking.Askable.ask`."""
        asking = self.asking
        inflow = None if window is None else Inflow(self.endpoint.scheduler, self.window(window))
        return asking.begin(self.start_call, name, payload, timeout, inflow, on_progress, upload)

    @property
    def asking(self) -> SessionAsking:
        """The calls that are answered with more than a result.

        Raises:
            WseError: `UNSUPPORTED`: the peer does not know the extension `calls`; `CLIENT_NOT_READY`.
        """
        asking = self._asking
        if asking is None:
            if self._phase is not None:
                raise NotAskedError(ErrorCode.CLIENT_NOT_READY, {}, "the connection is not open")
            if self.terms is None:
                raise WseError(ErrorCode.UNSUPPORTED, {"extension": "calls"})
            asking = self._asking = SessionAsking(self)
        return asking

    def window(self, wanted: int) -> int:
        """Items of a stream that may be on their way: as many as are wanted, and both sides allow."""
        most = self.endpoint.limits.stream_window
        return min(wanted, most if self.terms is None else min(most, self.terms.window))

    def agree_as(self, other: Session) -> None:
        """The peer is that of another session: it knows the same extensions."""
        self.agreement = other.agreement
        self.terms = other.terms
        if self._serving is not None:
            self._serving.agree()

    def invoke(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a handler."""
        return fn(*args) if self._conn is None else fn(self._conn, *args)

    def _withdraw(self, message: Any) -> bool | None:
        """Take back a call that has not arrived; returns whether it has, or `None` if that is not known."""
        if self._outbox is not None and self._outbox.withdraw(message):
            return False
        return None if self.ledger is None else self.ledger.withdraw(message)

    def close(self, code: int, reason: str) -> None:
        """End the session and close the socket; nothing happens if it has ended."""
        if self._phase is not ENDED:
            reason = str(reason)  # it may be a member of CloseReason; listeners get what travels
            if self.ledger is not None and not self.ledger.is_attached:
                self.ready_state = ReadyState.CLOSED
            else:
                self.ready_state = ReadyState.CLOSING
                self._write_all()
                self.link.close(code, reason)
            self._end(code, reason)

    async def flush(self, timeout: float | None) -> None:
        """Wait until the peer has handled everything that has been sent until now.

        Raises:
            WseError: `UNSUPPORTED`, when the session does not outlive its connection; `SESSION_LOST`.
            TimeoutError: Not in time.
        """
        self.endpoint.check_thread()
        ledger = self.ledger
        if ledger is None:
            problem = "the session does not outlive its connection: flush needs `resume`, which both sides must have"
            raise WseError(ErrorCode.UNSUPPORTED, {"extension": "resume"}, problem)
        if self.ended:
            raise WseError(ErrorCode.SESSION_LOST)
        flushed = ledger.flushed(self._outbox)
        timer = None
        if timeout is not None:
            timer = self.endpoint.scheduler.call_later(timeout, _expire, flushed, timeout)
        try:
            await flushed
        finally:
            if timer is not None:
                timer.cancel()

    def undelivered(self) -> list[tuple[Any, Any]]:
        """The messages that the peer has not confirmed, as `(type, payload)`, without calls and answers."""
        ledger = self.ledger
        if ledger is None:
            return []
        waiting = [] if self._outbox is None else self._outbox.messages
        return self.plain_messages([*ledger.ring, *ledger.unsent, *waiting])

    def plain_messages(self, encoded: Iterable[Packed | str | bytes | None]) -> list[tuple[Any, Any]]:
        """Those of the encoded messages that are no calls, answers or WSE's own, as `(type, payload)`."""
        unpack = self.protocol.unpack
        decoded = [unpack(m.data if isinstance(m, Packed) else m) for m in encoded if m is not None]
        return [
            (type_, payload) for type_, payload, stamp in decoded if not stamp and type_ not in self.endpoint.reserved
        ]

    def fail_calls(self, code: int, reason: str) -> None:
        """Settle every call that waits for the peer's answer; those that have not arrived are taken back."""
        if self._calls is not None:
            self._calls.close(code, reason)

    @property
    def pending_calls(self) -> int:
        """How many calls wait for the peer's answer."""
        return 0 if self._calls is None else len(self._calls.waiting)

    # Phases.

    def enter(self, phase: Phase | None) -> None:
        """Begin a phase; `None` is the one in which messages and calls are the application's."""
        self._phase = phase

    def violation(
        self,
        problem: str,
        *,
        cause: Exception | None = None,
        code: int = 1000,
        reason: str = CloseReason.PROTOCOL_ERROR,
    ) -> None:
        """Report a peer that broke the protocol, and close the connection (WIRE.md section 4)."""
        error = ErrorCode.PROTOCOL_VIOLATION if cause is None else ErrorCode.MSG_PROCESSING_ERROR
        details = {"from": self.describe(), "close": [code, str(reason)], **self.context()}
        self.endpoint.report(WseError(error, details, problem), self, cause)
        self.close(code, reason)

    # The message path.

    def _receive_in_phase(self, phase: Phase, data: str | bytes | memoryview) -> None:
        if phase.ignores_input:
            return
        size = len(data)
        self._counters.bytes_in += size
        if size > phase.max_size:
            self.exceeded("handshake_size", CloseReason.LIMIT_HANDSHAKE_SIZE, 1009)
            return
        message = self._decode_again(data)
        if message is not None and not (size > self._nesting and self._is_too_deep(data, *message[1:])):
            phase.message(*message)

    def _is_too_deep(self, data: str | bytes | memoryview, payload: Any, stamp: Any) -> bool:
        """Whether a message is nested deeper than is allowed; then it ends the connection."""
        depth = self._nesting
        # In JSON each level has a bracket of its own, and counting them is faster than walking through all values.
        if self._utf8 and isinstance(data, str) and data.count("[") + data.count("{") <= depth:
            return False
        if self._decode is not self.protocol.codec.decode:  # the payload may be an object of a class
            _, payload, stamp = self.protocol.unpack(data)
        if not nests_deeper(payload, depth) and not nests_deeper(stamp, depth):
            return False
        self.exceeded("nesting", CloseReason.LIMIT_NESTING)
        return True

    def _decode_again(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any] | None:
        """Decode with `Protocol.unpack`. Bytes that are not a message are reported, and end the connection."""
        try:
            type_, payload, stamp = self.protocol.unpack(data)
        except Exception as exc:
            self.violation("a message cannot be decoded", cause=exc)
            return None
        return type_, payload, stamp

    def _on_message(self, type_: Any, payload: Any, stamp: Any) -> None:
        try:
            listeners = self.endpoint.channel._by_type.get(type_)
        except TypeError:
            self.violation("a message's type must be hashable")
            return
        if listeners is None:
            control = self.agreement.controls.get(type_)  # no application can listen to these types
            if control is not None:
                self._counters.messages_in -= 1
                control(self, payload, stamp)
            elif self.requires_type and (type_ is None or type_ == ""):
                self.violation("a message has neither a type nor a stamp")
            else:
                self._ignored(type_, payload, stamp)
            return
        conn = self._conn
        for fn in listeners.fns:
            try:
                result = fn(payload) if conn is None else fn(conn, payload)
            except HANDLER_ERRORS as exc:
                self._listener_failed(exc, type_)
            else:
                if result is not None and isawaitable(result) and not self._run_on(result, type_):
                    return

    def run_listener(self, fn: Callable[..., Any], args: tuple[Any, ...], type_: MessageType) -> None:
        """Call a listener of what has come with that type."""
        try:
            result = fn(*args)
        except HANDLER_ERRORS as exc:
            self._listener_failed(exc, type_)
        else:
            if result is not None and isawaitable(result):
                self._run_on(result, type_)

    def _run_on(self, awaitable: Any, type_: MessageType) -> bool:
        """Run an async listener; returns False for one too many, which ends the connection."""
        if self.running_handlers >= self.endpoint.max_handlers:
            discard(awaitable)
            self.exceeded("handlers", CloseReason.LIMIT_HANDLERS)
            return False
        self.spawn(settle(awaitable, self._listener_failed, type_))
        return True

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        """Handle a plain message that has no listener."""

    def _listener_failed(self, exc: BaseException, type_: MessageType) -> None:
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"type": type_, **self.context()}, "a listener raised")
        self.endpoint.report(error, self, exc)

    def _on_answer(self, type_: Any, payload: Any, stamp: Any, size: int) -> None:
        if type_ == self._response:
            if self._calls is not None and self._calls.resolve(stamp, payload):
                self._counters.answered += 1
        elif type_ == self.protocol.internal_types.response_error:
            if self._calls is not None and self._calls.reject(stamp, error_of_peer(payload)):
                self._counters.unanswered["error"] += 1
        elif type_ in self.agreement.controls:
            self.input_size = size
            self.agreement.controls[type_](self, payload, stamp)
        else:
            is_probe = isinstance(type_, str) and type_.startswith(RESERVED_PREFIX)  # whether this side lives
            self._counters.calls_in += not is_probe
            is_stream = type_ in self.endpoint.procedures.streams
            code = ErrorCode.RP_IS_A_STREAM if is_stream else ErrorCode.RP_NOT_REGISTERED
            self._answer_error(WseError(code), type_, payload, stamp, counts=not is_probe)

    # The end.

    def _end(self, code: int, reason: str) -> None:
        phase = self._phase
        if phase is ENDED:
            return
        self._phase = ENDED
        if phase is not None:
            phase.stop()
        self.fail_calls(code, reason)
        serving = self.take_serving()
        if serving is not None:
            serving.end()
        self._asking = None
        if self.ledger is not None:
            self.ledger.end(self._outbox)
        self.clear_outbox()
        self._wake_drainers()
        if self.ledger is None or self.ledger.is_attached:
            self._counters.count_close(code, reason)
        if self._handlers is not None and self._handlers.tasks:
            self._handlers.let_linger(self._handlers.tasks)
        self._on_end(code, reason)


def _expire(future: asyncio.Future[None], timeout: float) -> None:
    if not future.done():
        future.set_exception(TimeoutError(f"the peer has not confirmed everything within {timeout} s"))
