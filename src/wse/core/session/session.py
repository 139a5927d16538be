"""One connection, at either side: incoming messages are decoded and dispatched, outgoing ones encoded and written.

Client and server are alike here, since both send messages and both call procedures. They differ in the phase before
the welcome, which the session leaves to a `Phase`, and in what happens when the connection ends.
"""

from __future__ import annotations

import typing
from inspect import isawaitable
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from wse.core.limits import Overflow, nests_deeper
from wse.core.packed import Packed, check_key, encode, unencodable
from wse.core.session.error_answers import encode_error
from wse.core.session.extensions import NOTHING
from wse.core.session.handlers import Handlers
from wse.core.session.outbox import Outbox
from wse.core.session.rpc import NotAskedError, PendingCalls, error_from_wire
from wse.core.session.signals import HANDLER_ERRORS, handler_of, settle
from wse.errors import CloseReason, ErrorCode, WseError
from wse.tasks import is_cancelled
from wse.types import MessageKey, MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Pinger, PingingLink
    from wse.core.session.endpoint import Endpoint


_TRUTHY_IN_JAVASCRIPT = (list, dict)
"""The types whose values are stamps even when empty: truth on the wire is JavaScript's (WIRE.md section 2)."""


EASY_SIZE: Final = 64 * 1024
"""The `len` of an encoded message up to which one look at `Session._direct` is enough."""


class Phase(typing.Protocol):
    """A part of a connection's life in which messages do not go to the application."""

    @property
    def ignores_input(self) -> bool:
        """Whether incoming messages are ignored without being decoded."""
        ...

    @property
    def max_size(self) -> int:
        """The bytes that a message may have."""
        ...

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        """Handle a decoded message."""

    def stop(self) -> None:
        """End the phase: the connection has ended."""


class _Ended:
    """The last phase, in which every message is ignored."""

    ignores_input = True
    max_size = 0

    def message(self, type: Any, payload: Any, stamp: Any) -> None: ...

    def stop(self) -> None: ...


ENDED = _Ended()


class Session:
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
    """

    __slots__ = (
        "_calls",
        "_conn",
        "_counters",
        "_decode",
        "_direct",
        "_drainers",
        "_encode",
        "_exceeded",
        "_handlers",
        "_max_out",
        "_nesting",
        "_outbox",
        "_phase",
        "_procedures",
        "_response",
        "_running_calls",
        "_utf8",
        "_writable",
        "agreement",
        "endpoint",
        "link",
        "pinged_at",
        "protocol",
        "ready_state",
        "rtt",
        "silent_since",
    )

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        self.endpoint = endpoint
        self.link = link
        self.protocol = protocol
        self.ready_state = ReadyState.OPEN
        codec = protocol.codec
        self._decode = codec.decode
        self._encode: Callable[[tuple[Any, Any, Any]], Any] = codec.encode
        self._utf8 = codec.utf8
        self._response = protocol.internal_types.response
        self._counters = endpoint.counters
        self._writable = True
        self._outbox: Outbox | None = None
        self._drainers: dict[asyncio.Future[None], None] | None = None  # in order
        self._exceeded: tuple[str, ...] = ()  # limits whose excess has been reported
        self._handlers: Handlers | None = None
        self._running_calls = 0  # async handlers that run and answer a call
        self._procedures = endpoint.procedures.by_name
        self._nesting = endpoint.limits.nesting
        self._conn: Any = None  # what handlers get before the payload: the connection at a server, nothing at a client
        self._phase: Phase | None = ENDED
        self._calls: PendingCalls | None = None
        self._max_out: float = inf  # bytes of a message that the peer takes
        self._direct = True  # whether a message up to `EASY_SIZE` may be written at once
        self.agreement = NOTHING
        self.silent_since = 0.0
        self.pinged_at: float | None = None
        self.rtt: float | None = None
        self._counters.opened += 1

    requires_type = True
    """Whether a message with neither a type nor a stamp is a violation, or is ignored (WIRE.md section 4)."""

    # Overridden by each side.

    def describe(self) -> str:
        """The name of the peer in reports (WIRE.md section 4)."""
        raise NotImplementedError  # pragma: no cover - both sides have their own

    def context(self) -> dict[str, Any]:
        """The details that identify the connection in an error."""
        return {}

    def _on_end(self, code: int, reason: str) -> None:
        """Called when the session has just ended."""

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
        size = len(answer)
        if self._utf8 and self._direct and size <= EASY_SIZE:
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

    def writable(self, writable: bool) -> None:
        """Whether the socket takes more, or its buffer is above the high-water mark."""
        self._writable = writable
        self._set_direct()
        if not writable:
            return
        outbox = self._outbox
        while outbox and self._writable:
            self.link.write_shared(outbox.take())
        if self._writable:
            self._wake_drainers()

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

    def lost(self) -> None:
        """Close the socket at once, because the peer has been silent for too long."""
        self.link.abort()

    # Called by the application's side.

    @property
    def pinger(self) -> Pinger | None:
        """Finds out whether a silent peer is alive; `None` where the heartbeat is not ours."""
        return typing.cast("PingingLink", self.link) if self.link.pings else None

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
        self.endpoint.check_type(type)
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

    async def call(self, name: MessageType, payload: Any, timeout: float | None) -> Any:
        """Call a procedure of the peer and return its result.

        Raises:
            WseError: The peer's own error, or `RP_TIMEOUT`, `RP_DISCONNECT`, or as `start_call` (WIRE.md section 4).
        """
        stamp, future = self.start_call(name, payload, timeout)
        try:
            return await future
        except BaseException:
            self.forget_call(stamp)  # nothing stays behind when the caller was cancelled
            raise

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Send a call. The code that awaits the future must call `forget_call` in the end.

        Raises:
            WseError: `CLIENT_NOT_READY`, when the connection is not open and welcomed; `RP_SEND_FAILED`, when the
                payload cannot be encoded, or the transport raised; `LIMIT_EXCEEDED`, when too many calls wait for an
                answer, or the call is larger than the peer takes; `PROTOCOL_VIOLATION` for a name that is WSE's own.
        """
        self.endpoint.check_type(name)
        if self._phase is not None:
            raise NotAskedError(ErrorCode.CLIENT_NOT_READY, {"rp": name}, "the connection is not open")
        calls = self._calls
        if calls is None:
            calls = self._calls = PendingCalls(self.endpoint.scheduler, self.endpoint.timeout)
        elif len(calls) >= self.endpoint.max_outgoing_calls:
            error = self.exceeded("outgoing_calls")
            error.details["rp"] = name
            raise error
        stamp, future = calls.add(name, timeout)
        problem = "the payload cannot be encoded"
        try:
            data = self._encode((name, payload, stamp))
            problem = "the call cannot be written"
            if len(data) > EASY_SIZE or not self._direct:
                self.check_size(data, {"rp": name})
            self._write(data)
        except Exception as exc:
            calls.discard(stamp)
            if isinstance(exc, WseError):
                raise
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, f"{problem}: {exc}") from exc
        self._counters.calls_out += 1
        return stamp, future

    def forget_call(self, stamp: int) -> None:
        """Forget a call whose answer is no longer awaited."""
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

    async def drain(self) -> None:
        """Wait until the socket takes more; returns at once when the connection has ended.

        What was written in this turn of the event loop leaves first, so a producer that drains between its messages
        is held to the peer's pace.
        """
        scheduler = self.endpoint.scheduler
        turn = scheduler.create_future()
        scheduler.call_soon(_wake, turn)
        await turn
        while not self._writable and self.ready_state is ReadyState.OPEN:
            future = scheduler.create_future()
            drainers = self._drainers
            if drainers is None:
                drainers = self._drainers = {}
            drainers[future] = None
            try:
                await future
            finally:
                drainers.pop(future, None)  # a cancelled waiter leaves nothing behind

    @property
    def queued(self) -> int:
        """Bytes that wait for the peer to take them."""
        return self.link.buffered + (self._outbox.size if self._outbox is not None else 0)

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
        packed = encode(self.protocol, type, payload)
        if self._writable:
            self.link.write_shared(packed)
        else:
            self.hold(None, packed)

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
                if result is not None and isawaitable(result):
                    if self.running_handlers >= self.endpoint.max_handlers:
                        discard(result)
                        self.exceeded("handlers", CloseReason.LIMIT_HANDLERS)
                        return
                    self.spawn(settle(result, self._listener_failed, type_))

    def _ignored(self, type_: Any, payload: Any, stamp: Any) -> None:
        """Handle a plain message that has no listener."""

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
        elif type_ in self.agreement.controls:
            self.agreement.controls[type_](self, payload, stamp)
        else:
            error = WseError(ErrorCode.RP_NOT_REGISTERED)
            self._answer_error(error, type_, payload, stamp)

    # Handlers.

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run an async handler, which may outlive the connection by `Limits.handler_linger`."""
        handlers = self._handlers
        if handlers is None:
            endpoint = self.endpoint
            handlers = self._handlers = Handlers(endpoint.scheduler, endpoint.limits.handler_linger, self._overdue)
        task = handlers.run(coroutine)
        if task is not None and self.ready_state is not ReadyState.OPEN:
            handlers.let_linger({task})  # this handler, or an earlier one, has closed the connection

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The async handlers that have not ended."""
        return () if self._handlers is None else tuple(self._handlers.tasks)

    @property
    def running_handlers(self) -> int:
        """How many async handlers have not ended."""
        return 0 if self._handlers is None else len(self._handlers.tasks)

    def _overdue(self, task: asyncio.Task[Any]) -> None:
        """Report an async handler that has outlived the connection for too long and is about to be cancelled."""
        details = {"handler": handler_of(task), **self.context()}
        self.endpoint.report(WseError(ErrorCode.HANDLER_CANCELLED, details), self)

    # Answers.

    def _answer_when_done(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        limit = None
        if self._running_calls >= self.endpoint.max_incoming_calls:
            limit = "incoming_calls"
        elif self.running_handlers >= self.endpoint.max_handlers:
            limit = "handlers"
        if limit is None:
            self._running_calls += 1
            self.spawn(self._answer_later(awaitable, name, payload, stamp))
        else:
            discard(awaitable)
            self._answer_error(self.exceeded(limit), name, payload, stamp)

    async def _answer_later(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        try:
            result = await awaitable
        except BaseException as exc:
            if isinstance(exc, HANDLER_ERRORS) and not is_cancelled(exc):
                self._procedure_failed(exc, name, payload, stamp)
            else:  # with the server, for example: the caller must not wait for its timeout
                self._answer_error(exc, name, payload, stamp)
                raise
        else:
            self._answer(result, name, payload, stamp)
        finally:
            self._running_calls -= 1

    def _answer(self, result: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        try:
            data = self._encode((self._response, result, stamp))
        except Exception as exc:
            self._procedure_failed(exc, name, payload, stamp)
            return
        if self._direct and len(data) <= EASY_SIZE:
            self._write(data)
        else:
            self._write_answer(data, name, payload, stamp)

    def _write_answer(self, data: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        if self.takes(data):
            self._write(data)
        else:
            self._answer_error(self.skip(data, {"rp": name}), name, payload, stamp)

    def _procedure_failed(self, exc: BaseException, name: MessageType, payload: Any, stamp: Any) -> None:
        self._answer_error(exc, name, payload, stamp)
        details = {"rp": name, "type": name, "payload": payload, "stamp": stamp, **self.context()}
        message = f"{exc.__class__.__name__} in a procedure"
        self.endpoint.report(WseError(ErrorCode.RP_EXECUTION_FAILED, details, message), self, exc)

    def _answer_error(self, exc: BaseException, name: MessageType, payload: Any, stamp: Any) -> None:
        endpoint = self.endpoint
        answer = encode_error(
            exc,
            (name, payload, stamp),
            encode=self._encode,
            response_error=self.protocol.internal_types.response_error,
            takes=self.takes,
            nesting=self._nesting,
            expose=endpoint.expose,
            debug=endpoint.debug,
        )
        if answer.cause is not None:
            details = {"rp": name, **self.context()}
            problem = "the error of a call cannot be sent as it is"
            endpoint.report(WseError(ErrorCode.MSG_PROCESSING_ERROR, details, problem), self, answer.cause)
        if answer.too_large is not None:
            self.skip(answer.too_large, {"rp": name})
        if answer.data is not None:
            self._write(answer.data)

    # Writing.

    def hold(self, type: MessageType | None, packed: Packed) -> None:
        """Keep a message until the socket takes more.

        Args:
            type: Its type, which decides what happens when too much waits; `None` for calls and answers.
            packed: The message.
        """
        if self.ready_state is not ReadyState.OPEN:
            return
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self.endpoint.overflow)
        policy, dropped = outbox.put(type, packed, self.endpoint.limits.send_buffer - self.link.buffered)
        if dropped:
            self._overflow(policy, dropped, outbox)

    def _write(self, data: Any, type: MessageType | None = None, key: MessageKey | None = None) -> None:
        self._counters.bytes_out += len(data)
        if not self._writable:
            self.hold(type, Packed(data, self._utf8, key))
        elif self._utf8:
            self.link.write_utf8(data)
        else:
            self.link.write(data)

    def _write_all(self) -> None:
        """The connection is about to close: what waits leaves before."""
        while self._outbox:
            self.link.write_shared(self._outbox.take())

    def _wake_drainers(self) -> None:
        if self._drainers is not None:
            for future in self._drainers:
                _wake(future)
            self._drainers = None

    # The size of messages that the peer takes.

    def limit_output(self, size: int) -> None:
        """Send no messages of more bytes: the peer does not take them."""
        self._max_out = size
        self._set_direct()

    def _set_direct(self) -> None:
        self._direct = self._writable and self._max_out >= 4 * EASY_SIZE  # a character of text may have 4 bytes

    def takes(self, data: str | bytes) -> bool:
        """Whether the peer takes a message of that size."""
        size = len(data)
        if isinstance(data, str) and size <= self._max_out < 4 * size:
            size = len(data.encode())
        return size <= self._max_out

    def check_size(self, data: str | bytes, details: dict[str, Any]) -> None:
        """Reject a message that the peer does not take.

        Raises:
            WseError: `LIMIT_EXCEEDED`, with the details and the size.
        """
        if not self.takes(data):
            raise self._too_large(data, details)

    def skip(self, data: str | bytes, details: dict[str, Any]) -> WseError:
        """Count a message that is not sent because the peer does not take it; the first time, report it."""
        self._counters.dropped["too-large"] += 1
        error = self._too_large(data, details)
        self._report_once("too-large", ErrorCode.LIMIT_EXCEEDED, error.details, None, 0)
        return error

    def _too_large(self, data: str | bytes, details: dict[str, Any]) -> WseError:
        whole = {"limit": "message_size", "allowed": self._max_out, "size": len(data), **details}
        return WseError(ErrorCode.LIMIT_EXCEEDED, whole, "the message is larger than the peer takes")

    # Excess.

    def exceeded(self, limit: str, reason: CloseReason | None = None, code: int = 1008) -> WseError:
        """Count that the peer has exceeded a limit, report it once, and close the connection if a reason is given.

        Returns:
            The error for the peer, when it was a call.
        """
        self._counters.limits[limit] += 1
        details = {"limit": limit, "allowed": getattr(self.endpoint.limits, limit)}
        self._report_once(limit, ErrorCode.LIMIT_EXCEEDED, details, reason, code)
        if reason is not None:
            self.close(code, reason)
        return WseError(ErrorCode.LIMIT_EXCEEDED, details)

    def _overflow(self, policy: Overflow, dropped: int, outbox: Outbox) -> None:
        """Messages for a slow receiver had to give way."""
        closes = policy is Overflow.CLOSE
        self._counters.dropped[policy] += dropped + (outbox.clear() if closes else 0)
        if policy is not Overflow.LATEST:  # whose messages give way before the bound is reached
            self._counters.limits["send_buffer"] += 1
        details = {"limit": "send_buffer", "allowed": self.endpoint.limits.send_buffer, "overflow": str(policy)}
        reason = CloseReason.SLOW_RECEIVER if closes else None
        self._report_once(f"send_buffer {policy}", ErrorCode.SLOW_RECEIVER, details, reason, 1013)
        if closes:
            self.close(1013, CloseReason.SLOW_RECEIVER)

    def _report_once(
        self, what: str, error: ErrorCode, details: dict[str, Any], reason: CloseReason | None, code: int
    ) -> None:
        """Report it the first time only: a peer that goes on must not flood the application's reports."""
        if what not in self._exceeded:
            self._exceeded += (what,)
            close = {} if reason is None else {"close": [code, str(reason)]}
            whole = {**details, "from": self.describe(), **close, **self.context()}
            self.endpoint.report(WseError(error, whole), self)

    # The end.

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
        if self._handlers is not None and self._handlers.tasks:
            self._handlers.let_linger(self._handlers.tasks)
        self._on_end(code, reason)


def discard(awaitable: Any) -> None:
    """Close the coroutine of an async handler that is not going to run."""
    if isinstance(awaitable, CoroutineType):
        awaitable.close()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
