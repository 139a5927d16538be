"""Calls, in both directions: procedures that the peer may call, and our calls that wait for their answer."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from wse.core.session.ordered import Ordered
from wse.core.session.signals import check_handler, check_name, is_generator
from wse.errors import ErrorCode, WseError
from wse.types import F, MessageType

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.core.ports.tracing import Tracer
    from wse.core.session.ordered import Order
    from wse.core.session.signals import CheckType


class StandIns(Protocol):
    """Functions that stand in the places of procedures for a while."""

    def disarm(self) -> None:
        """Give the procedures their places back."""


class NotAskedError(WseError):
    """A call that has certainly not reached the device: the connection is not valid yet, or has ended."""


class Procedure(NamedTuple):
    """A procedure that yields items, or takes an upload, or both.

    Attributes:
        fn: The function.
        yields: Whether it is a generator.
        uploads: Whether it takes an upload.
    """

    fn: Callable[..., Any]
    yields: bool
    uploads: bool


class Procedures:
    """The procedures that the peer may call.

    Attributes:
        by_name: Those that can be called plainly.
        cancellable: Those that are cancelled when their result is no longer wanted.
        streams: Those that yield items or take an upload.
        stand_ins: What stands in the places of procedures at the moment, to measure them.
    """

    __slots__ = ("_check_type", "_order", "_takes", "_tracer", "by_name", "cancellable", "stand_ins", "streams")

    def __init__(self, takes: tuple[str, ...], check_type: CheckType, order: Order) -> None:
        self._takes = takes
        self._check_type = check_type
        self._order = order
        self._tracer: Tracer | None = None
        self.stand_ins: StandIns | None = None
        self.by_name: dict[MessageType, Callable[..., Any]] = {}
        self.cancellable: set[MessageType] = set()
        self.streams: dict[MessageType, Procedure] = {}

    @overload
    def register(
        self, name: MessageType, fn: F, *, cancel: bool = False, upload: bool = False, ordered: bool = False
    ) -> F: ...
    @overload
    def register(
        self, name: MessageType, fn: None = None, *, cancel: bool = False, upload: bool = False, ordered: bool = False
    ) -> Callable[[F], F]: ...
    def register(
        self,
        name: MessageType,
        fn: F | None = None,
        *,
        cancel: bool = False,
        upload: bool = False,
        ordered: bool = False,
    ) -> F | Callable[[F], F]:
        """Let the peer call `fn` under that name; without `fn`, a decorator.

        Args:
            name: The name.
            fn: The function; a generator, plain or async, is a stream.
            cancel: Cancel it when its result is no longer wanted; a stream always is.
            upload: It takes the items of an upload as its last argument.
            ordered: It begins when the ordered handlers that the same peer has called before have ended.

        Raises:
            WseError: `RP_ALREADY_REGISTERED`; `PROTOCOL_VIOLATION`, for a name that is WSE's own.
            TypeError: `fn` does not take the arguments of a call, or the name is missing; a stream that is ordered.
        """
        check_name(name, "register")
        self._check_type(name)

        def add(fn: F) -> F:
            check_handler(fn, *self._takes, *(("items",) if upload else ()), may_yield=True)
            self._put(name, fn, yields=is_generator(fn), cancel=cancel, upload=upload, ordered=ordered)
            return fn

        return add if fn is None else add(fn)

    def clear(self) -> None:
        """Have stand-ins give the procedures their places back, because these are about to change."""
        if self.stand_ins is not None:
            self.stand_ins.disarm()

    def trace_with(self, tracer: Tracer) -> None:
        """Trace the calls of all procedures, those included that will be registered."""
        self._tracer = tracer
        self.clear()
        for name in (*self.by_name, *self.streams):
            self._trace(tracer, name)

    def _trace(self, tracer: Tracer, name: MessageType) -> None:
        stream = self.streams.get(name)
        if stream is None:
            fn = self.by_name[name]
            if isinstance(fn, Ordered):
                fn.fn = tracer.serve(name, fn.fn, yields=False)
            else:
                self.by_name[name] = tracer.serve(name, fn, yields=False)
        else:
            self.streams[name] = stream._replace(fn=tracer.serve(name, stream.fn, yields=stream.yields))

    def _put(
        self, name: MessageType, fn: Callable[..., Any], *, yields: bool, cancel: bool, upload: bool, ordered: bool
    ) -> None:
        if ordered and (yields or upload):
            raise TypeError("a procedure that streams items cannot be ordered")
        if name in self.by_name or name in self.streams:
            raise WseError(ErrorCode.RP_ALREADY_REGISTERED, {"rp": name})
        if yields or upload:
            self.streams[name] = Procedure(fn, yields, upload)
        else:
            self.by_name[name] = self._order.ordered(fn) if ordered else fn
        if self._tracer is not None:
            self._trace(self._tracer, name)
        if cancel:
            self.cancellable.add(name)

    def unregister(self, name: MessageType) -> None:
        """Remove a procedure; running calls go on.

        Raises:
            WseError: `RP_NOT_REGISTERED`.
        """
        self.cancellable.discard(name)
        if self.by_name.pop(name, None) is None and self.streams.pop(name, None) is None:
            raise WseError(ErrorCode.RP_NOT_REGISTERED, {"rp": name})


class _Pending:
    """A call that waits for its answer."""

    __slots__ = ("deadline", "future", "message", "name", "timer")

    def __init__(self, name: MessageType, future: asyncio.Future[Any], deadline: float | None) -> None:
        self.name = name
        self.future = future
        self.deadline = deadline  # with the connection's own timeout; None: no deadline, or a timer of its own
        self.timer: Timer | None = None
        self.message: Any = None  # as it was written, where it can be taken back


class PendingCalls:
    """The calls of one connection that wait for their answer.

    Calls with the connection's own timeout expire in the order in which they were made, so one timer, set for the
    oldest of them, serves all: an answered call costs no timer. Only a call with a timeout of its own has its own.

    Args:
        scheduler: Timers and futures.
        timeout: The connection's own timeout, in seconds; 0 for none.
        last_stamp: The stamp of the last call that was made before.
        unanswered: Counts the calls that end without an answer, by outcome.

    Attributes:
        waiting: The calls, by their stamps.
        abandoned: Called with the stamp of each call whose answer is no longer awaited, unless it has been taken back;
            `None` for a peer that would not understand.
        withdraw: Takes back the message of a call, and returns whether it has arrived, or `None` if that is not known;
            `None` for a session that ends with its connection.
    """

    __slots__ = ("_scheduler", "_timeout", "_timer", "_unanswered", "abandoned", "last_stamp", "waiting", "withdraw")

    def __init__(
        self, scheduler: Scheduler, timeout: float, last_stamp: int = 0, *, unanswered: Counter[str] | None = None
    ) -> None:
        self._unanswered = Counter() if unanswered is None else unanswered
        self._scheduler = scheduler
        self._timeout = timeout
        self._timer: Timer | None = None
        self.last_stamp = last_stamp
        self.waiting: dict[Any, _Pending] = {}
        self.abandoned: Callable[[Any], None] | None = None
        self.withdraw: Callable[[Any], bool | None] | None = None

    def add(self, name: MessageType, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Add a call; returns its stamp and the future of its answer.

        Args:
            name: The procedure.
            timeout: Seconds; `None` for the connection's own, 0 to wait for ever.

        Raises:
            ValueError: A negative timeout.
        """
        self.last_stamp = stamp = self.last_stamp + 1
        scheduler = self._scheduler
        pending = _Pending(name, scheduler.create_future(), None)
        if timeout is None or timeout == self._timeout:
            if self._timeout:
                pending.deadline = scheduler.time() + self._timeout
                if self._timer is None:
                    self._timer = scheduler.call_later(self._timeout, self._expire)
        elif timeout < 0:
            raise ValueError(f"timeout must be 0 (none) or more seconds, not {timeout}")
        elif timeout:
            pending.timer = scheduler.call_later(timeout, self._expire_one, stamp, timeout)
        self.waiting[stamp] = pending
        return stamp, pending.future

    def note(self, stamp: int, message: Any) -> None:
        """Remember the message of a call, as it was written, so that it can be taken back."""
        self.waiting[stamp].message = message

    def resolve(self, stamp: Any, result: Any) -> bool:
        """Settle a call with its result; returns whether it waited. Unknown stamps are ignored (WIRE.md section 4)."""
        pending = self.discard(stamp)
        if pending is None or pending.future.done():
            return False
        pending.future.set_result(result)
        return True

    def reject(self, stamp: Any, error: WseError) -> bool:
        """The same with an error."""
        pending = self.discard(stamp)
        if pending is None or pending.future.done():
            return False
        pending.future.set_exception(error)
        return True

    def discard(self, stamp: Any) -> _Pending | None:
        """Forget a call whose answer is no longer wanted."""
        try:
            pending = self.waiting.pop(stamp, None)
        except TypeError:  # this side makes no unhashable stamps
            return None
        if pending is not None and pending.timer is not None:
            pending.timer.cancel()
        return pending

    def forget(self, stamp: Any) -> None:
        """The same, and take its message back if it has not arrived."""
        if stamp in self.waiting:  # most have been answered
            pending = self.discard(stamp)
            if pending is not None:
                self._unanswered["cancelled"] += 1
                self._abandon(stamp, self._arrived(pending))

    def _arrived(self, pending: _Pending) -> dict[str, bool | None]:
        """What is known about the arrival of a call, for the details of its error; the call is taken back."""
        if self.withdraw is None or pending.message is None:
            return {}
        return {"arrived": self.withdraw(pending.message)}

    def _abandon(self, stamp: Any, known: dict[str, bool | None]) -> None:
        if self.abandoned is not None and known.get("arrived") is not False:
            self.abandoned(stamp)

    def close(self, code: int, reason: str) -> None:
        """Settle every call, because the connection has ended (WIRE.md section 4)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stamp in list(self.waiting):
            pending = self.waiting[stamp]
            known = self._arrived(pending)
            details = {"rp": pending.name, "disconnected": [code, str(reason)], **known}
            if self.reject(stamp, WseError(ErrorCode.RP_DISCONNECT, details)):
                self._unanswered["disconnect"] += 1
            self._abandon(stamp, known)  # a session that moves can still tell the peer
        self.abandoned = None

    def _expire(self) -> None:
        self._timer = None
        now = self._scheduler.time()
        expired: list[Any] = []
        for stamp, pending in self.waiting.items():
            if pending.deadline is None:
                continue
            if pending.deadline > now:
                self._timer = self._scheduler.call_later(pending.deadline - now, self._expire)
                break
            expired.append(stamp)
        for stamp in expired:
            self._expire_one(stamp, self._timeout)

    def _expire_one(self, stamp: Any, timeout: float) -> None:
        pending = self.waiting[stamp]
        known = self._arrived(pending)
        details = {"rp": pending.name, "timeout": timeout, "at": "caller", **known}
        if self.reject(stamp, WseError(ErrorCode.RP_TIMEOUT, details)):
            self._unanswered["timeout"] += 1
        self._abandon(stamp, known)


class ExposeErrors(StrEnum):
    """The part of an exception that the caller of a failing procedure receives.

    A `WseError` is always sent as it is.
    """

    NONE = "none"
    """Only the fact that the procedure has failed."""

    MESSAGE = "message"
    """The exception's class and text."""

    FULL = "full"
    """The exception's class and text, and those of its causes."""


def error_to_wire(
    exc: BaseException, name: MessageType, payload: Any, *, expose: ExposeErrors, debug: bool
) -> dict[str, Any]:
    """The payload with which a failing procedure is answered (WIRE.md section 4).

    Args:
        exc: The exception.
        name: The procedure.
        payload: The payload of the call, if it is small enough to go back.
        expose: How much the caller learns.
        debug: Whether the caller gets stack traces.
    """
    wire: dict[str, Any] = {}
    if isinstance(exc, WseError):
        wire["code"] = str(exc.code)
        details: dict[str, Any] = dict(exc.details)
        if exc.message:
            wire["message"] = exc.message
    else:
        wire["code"] = str(ErrorCode.RP_EXECUTION_FAILED)
        details = {}
        if expose is not ExposeErrors.NONE:
            wire["message"] = str(exc)
            details["origin"] = _origin(exc, expose, debug)
    details.setdefault("rp", name)
    details.setdefault("rpc", name)  # 4.x clients read this one
    if payload is not None and expose is not ExposeErrors.NONE:
        details.setdefault("payload", payload)
    wire["details"] = details
    return wire


def _origin(exc: BaseException, expose: ExposeErrors, debug: bool) -> dict[str, Any]:
    origin: dict[str, Any] = {"name": type(exc).__name__, "message": str(exc)}
    if expose is ExposeErrors.FULL:
        origin["causes"] = [{"name": type(cause).__name__, "message": str(cause)} for cause in _causes(exc)]
    if debug:
        origin["stack"] = "".join(traceback.format_exception(exc))
    return origin


def _causes(exc: BaseException) -> list[BaseException]:
    """The exceptions that led to one, as a traceback shows them."""
    causes: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return causes[1:]


def error_from_wire(payload: Any) -> WseError:
    """The error that a peer sent; a malformed one is still an error (WIRE.md section 4)."""
    if not isinstance(payload, dict):
        return WseError(ErrorCode.RP_EXECUTION_FAILED)
    code, details, message = payload.get("code"), payload.get("details"), payload.get("message")
    if not isinstance(code, str) or not code:
        code = ErrorCode.RP_EXECUTION_FAILED
    if not isinstance(details, dict):
        details = {}
    if not isinstance(message, str) or _is_origins(message, details.get("origin")):
        message = None
    return WseError(code, details, message)


def error_of_peer(payload: Any) -> WseError:
    """The error with which a peer has answered a call; its time has run out there, not here."""
    error = error_from_wire(payload)
    if error.code == ErrorCode.RP_TIMEOUT:
        error.details["at"] = "callee"
    return error


def _is_origins(message: str, origin: Any) -> bool:
    """Whether the message only repeats that of the origin, from which `WseError` makes a better one."""
    return isinstance(origin, dict) and origin.get("message") == message
