"""One connection, at either side: what comes in is decoded and dispatched, what goes out is encoded and written.

Client and server are alike here, since both send messages and both call procedures. They differ in the phase before
the welcome, which the session leaves to a `Phase`, and in what happens when the connection ends.
"""

from __future__ import annotations

import typing
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from wse.core.answering import Answering, discard
from wse.core.limits import nests_deeper
from wse.core.packed import encode, unencodable
from wse.core.rpc import NotAskedError, PendingCalls, error_from_wire
from wse.core.signals import HANDLER_ERRORS, settle
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio

    from wse.core.endpoint import Endpoint
    from wse.core.ports import Link, Protocol


_TRUTHY_IN_JAVASCRIPT = (list, dict)
"""What is a stamp even when it is empty: the contract's truth is JavaScript's (WIRE.md section 2)."""


class Phase(typing.Protocol):
    """A part of a connection's life in which messages are not the application's."""

    @property
    def deaf(self) -> bool:
        """Whether what comes in is ignored, undecoded."""
        ...

    @property
    def largest(self) -> int:
        """Bytes that a message may have."""
        ...

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        """A decoded message has come in."""

    def stop(self) -> None:
        """The connection has ended, or the phase is over."""


class _Ended:
    """The last phase: nothing is heard any more."""

    deaf = True
    largest = 0

    def message(self, type: Any, payload: Any, stamp: Any) -> None: ...

    def stop(self) -> None: ...


ENDED = _Ended()


class Session(Answering):
    """One connection.

    A transport calls `receive`, `closed`, `writable`, `violated` and `pong`; the application's side calls `send`,
    `call`, `close` and `drain`. The session ends when either side closes: from then on nothing is heard or sent and
    every pending call is settled, while the socket still does its closing handshake.

    Attributes:
        silent_since: When the peer was last known to have sent something; kept by the heartbeat, as is
        pinged_at: When it was pinged, if its pong is still due.
        rtt: Seconds from the last ping to its pong; `None` before the first.
    """

    __slots__ = (
        "_calls",
        "_conn",
        "_decode",
        "_nesting",
        "_phase",
        "_procedures",
        "pinged_at",
        "rtt",
        "silent_since",
    )

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._decode = protocol.codec.decode
        self._procedures = endpoint.procedures.by_name
        self._nesting = endpoint.limits.nesting
        self._conn: Any = None  # what handlers get before the payload: the connection at a server, nothing at a client
        self._phase: Phase | None = ENDED
        self._calls: PendingCalls | None = None
        self.silent_since = 0.0
        self.pinged_at: float | None = None
        self.rtt: float | None = None
        self._counters.opened += 1

    # What a side adds to it.

    def _on_end(self, code: int, reason: str) -> None:
        """The session has just ended."""

    def _on_closed(self) -> None:
        """The socket has closed, too."""

    # What the transport calls.

    def receive(self, data: str | bytes | memoryview) -> None:
        """One whole message has come in: `str` as a text message, anything else as a binary one."""
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
        # A call, or the answer to one. From here to the write is what every call costs, so it stands in one place.
        try:
            fn = self._procedures.get(type_)
        except TypeError:
            self.violation("a procedure's name must be hashable")
            return
        if fn is None:
            self._on_answer(type_, payload, stamp)
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
        if self._utf8 and self._writable:
            counters.bytes_out += len(answer)
            self.link.write_utf8(answer)
        else:
            self._write(answer)

    def closed(self, code: int, reason: str) -> None:
        """The socket has closed; `code` and `reason` are the peer's, or 1006 when it said nothing (RFC 6455, 7.1.5)."""
        self.ready_state = ReadyState.CLOSED
        self._end(code, reason)
        self._wake_drainers()
        self._on_closed()

    def violated(self, code: int, problem: str) -> None:
        """The transport found a violation of RFC 6455 or of a limit, and the connection is to end for it."""
        if self._phase is ENDED:
            return
        if code == 1009:
            self.exceeded("message_size", CloseReason.LIMIT_MESSAGE_SIZE, code)
        else:
            self.violation(problem, code=code, reason=problem)

    def pong(self) -> None:
        """The peer has answered a ping."""
        if self.pinged_at is not None:
            self.rtt = self.endpoint.scheduler.time() - self.pinged_at
            self.pinged_at = None

    def lost(self) -> None:
        """The peer has not been heard for too long."""
        self.link.abort()

    # What the application's side calls.

    @property
    def ended(self) -> bool:
        """Whether either side has closed the connection."""
        return self._phase is ENDED

    @property
    def valid(self) -> bool:
        """Whether the welcome has been exchanged and the connection has not ended."""
        return self._phase is None

    def send(self, type: MessageType, payload: Any = None) -> None:
        """Send a plain message, or nothing if the connection is not valid.

        Raises:
            WseError: `PROTOCOL_VIOLATION` for a type that is WSE's own; `MSG_PROCESSING_ERROR` for a payload that
                cannot be encoded, with the encoder's exception as its cause.
        """
        self.endpoint.check_type(type)
        try:
            data = self._encode((type, payload, None))
        except Exception as exc:
            raise unencodable(type, exc) from exc
        if self._phase is None:
            self._counters.messages_out += 1
            self._write(data, type)

    async def call(self, name: MessageType, payload: Any, timeout: float | None) -> Any:
        """Call a procedure of the peer and return its result.

        Raises:
            WseError: The peer's own error, or `RP_TIMEOUT`, `RP_DISCONNECT`, `RP_SEND_FAILED` (WIRE.md section 4).
        """
        stamp, future = self.start_call(name, payload, timeout)
        try:
            return await future
        except BaseException:
            self.forget_call(stamp)  # nothing stays behind when the caller was cancelled
            raise

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Send a call; whoever awaits the future must end with `forget_call`.

        Raises:
            WseError: `RP_SEND_FAILED`; `LIMIT_EXCEEDED`, when too many calls wait for an answer; `PROTOCOL_VIOLATION`
                for a name that is WSE's own.
        """
        self.endpoint.check_type(name)
        if self._phase is not None:
            raise NotAskedError(ErrorCode.RP_SEND_FAILED, {"rp": name}, "the connection is not open")
        calls = self._calls
        if calls is None:
            calls = self._calls = PendingCalls(self.endpoint.scheduler, self.endpoint.timeout)
        elif len(calls) >= self.endpoint.most_outgoing_calls:
            error = self.exceeded("outgoing_calls")
            error.details["rp"] = name
            raise error
        stamp, future = calls.add(name, timeout)
        try:
            data = self._encode((name, payload, stamp))
        except Exception as exc:
            calls.discard(stamp)
            problem = f"the payload cannot be encoded: {exc}"
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, problem) from exc
        self._counters.calls_out += 1
        self._write(data)
        return stamp, future

    def forget_call(self, stamp: int) -> None:
        """Nobody waits for the answer any more."""
        if self._calls is not None:
            self._calls.discard(stamp)

    def close(self, code: int, reason: str) -> None:
        """End the session and close the socket; nothing happens if it has ended."""
        if self._phase is not ENDED:
            self.ready_state = ReadyState.CLOSING
            reason = str(reason)  # it may be a member of CloseReason; listeners get what travels
            self._write_all()
            self.link.close(code, reason)
            self._end(code, reason)

    @property
    def pending_calls(self) -> int:
        """How many calls wait for the peer's answer."""
        return 0 if self._calls is None else len(self._calls)

    # Phases.

    def enter(self, phase: Phase | None) -> None:
        """Begin a phase; `None` is the one in which messages and calls are the application's."""
        self._phase = phase

    def write(self, type: MessageType, payload: Any) -> None:
        """Send one of WSE's own messages.

        Raises:
            WseError: `MSG_PROCESSING_ERROR`, when the payload cannot be encoded.
        """
        self.link.write_shared(encode(self.protocol, type, payload))

    def violation(
        self,
        problem: str,
        *,
        cause: Exception | None = None,
        code: int = 1000,
        reason: str = CloseReason.PROTOCOL_ERROR,
    ) -> None:
        """The peer broke the protocol: report who it was, and close (WIRE.md section 4)."""
        error = ErrorCode.PROTOCOL_VIOLATION if cause is None else ErrorCode.MSG_PROCESSING_ERROR
        details = {"from": self.describe(), "close": [code, str(reason)], **self.context()}
        self.endpoint.report(WseError(error, details, problem), self, cause)
        self.close(code, reason)

    # The message path.

    def _receive_in_phase(self, phase: Phase, data: str | bytes | memoryview) -> None:
        if phase.deaf:
            return
        size = len(data)
        self._counters.bytes_in += size
        if size > phase.largest:
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
        if not nests_deeper(payload, depth) and not nests_deeper(stamp, depth):
            return False
        self.exceeded("nesting", CloseReason.LIMIT_NESTING)
        return True

    def _decode_again(self, data: str | bytes | memoryview) -> tuple[Any, Any, Any] | None:
        """The message as the protocol itself sees it; what is none is reported, and ends the connection."""
        try:
            type_, payload, stamp = self.protocol.unpack(data)
        except Exception as exc:
            self.violation("a message cannot be decoded", cause=exc)
            return None
        return type_, payload, stamp

    def _on_message(self, type_: Any, payload: Any, stamp: Any) -> None:
        try:
            listeners = self.endpoint.channel.by_type.get(type_)
        except TypeError:
            self.violation("a message's type must be hashable")
            return
        if listeners is None:
            if type_ is None or type_ == "":
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
                if result is not None and isawaitable(result):
                    if self.running_handlers >= self.endpoint.most_handlers:
                        discard(result)
                        self.exceeded("handlers", CloseReason.LIMIT_HANDLERS)
                        return
                    self.spawn(settle(result, self._listener_failed, type_))

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        """A plain message has no listener."""

    def _listener_failed(self, exc: BaseException, type_: MessageType) -> None:
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"type": type_, **self.context()}, "a listener raised")
        self.endpoint.report(error, self, exc)

    def _on_answer(self, type_: Any, payload: Any, stamp: Any) -> None:
        if type_ == self._response:
            if self._calls is not None:
                self._calls.resolve(stamp, payload)
        elif type_ == self.protocol.internal_types.response_error:
            if self._calls is not None:
                self._calls.reject(stamp, error_from_wire(payload))
        else:
            error = WseError(ErrorCode.RP_NOT_REGISTERED)
            self._answer_error(error, type_, payload, stamp)

    def _end(self, code: int, reason: str) -> None:
        phase = self._phase
        if phase is ENDED:
            return
        self._phase = ENDED
        if phase is not None:
            phase.stop()
        if self._calls is not None:
            self._calls.close(code, reason)
        if self._outbox is not None:
            self._outbox.clear()
        self._wake_drainers()
        self._counters.count_close(code, reason)
        if self._tasks:
            self._leave_handlers(self._tasks)
        self._on_end(code, reason)
