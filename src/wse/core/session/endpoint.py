"""The state that all connections of one server, or of one client, share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from math import inf
from operator import attrgetter
from threading import get_ident
from typing import TYPE_CHECKING, Any

from wse.core.limits import Overflow
from wse.core.ports.protocol import RESERVED_PREFIX, Decode, Protocol
from wse.core.session.extensions import Extensions
from wse.core.session.log import Log, facts, is_answer
from wse.core.session.ordered import Order
from wse.core.session.rpc import ExposeErrors, Procedures
from wse.core.session.signals import Channel, Signal
from wse.core.session.tracing import TraceExtension
from wse.core.stats import Counters
from wse.errors import ErrorCode, WseError
from wse.types import MessageType

if TYPE_CHECKING:
    from wse.core.limits import Limits
    from wse.core.ports.scheduling import Scheduler
    from wse.core.ports.tracing import Tracer
    from wse.core.session.signals import CheckType
    from wse.core.session.timing import Instruments

logger = logging.getLogger("wse")

MAX_USUAL = 1000
"""Message types that are known to be an application's own; applications rarely have more."""


class Endpoint:
    """One side's listeners, procedures and settings, and the way in which it reports failures.

    Args:
        takes: The names of the arguments before the payload of a handler: `("conn",)` at a server, none at a client.
        protocols: The message protocols, the preferred one first.
        scheduler: The source of time, futures and tasks.
        timeout: Seconds that a call waits for its answer, 0 for ever.
        limits: The limits for each peer.
        overflow: The overflow policy for messages to a slow receiver, by type.
        expose: How much the caller of a procedure learns about an exception in it.
        debug: Whether callers also get stack traces.
        report: Called with every failure, and with its session if there is one.
        channel: Makes the listeners of messages.
        procedures: Makes the procedures.
        decoder: Makes the function that decodes the messages of a session in a protocol.
        elsewhere: What other threads than that of the event loop use, for the message of an error.

    Attributes:
        counters: What has happened.
        instruments: Measure times, if metrics are on.
        tracer: Traces calls, if somebody wants that; see `trace_with`.
        log: Writes what no listener of `error` takes.
    """

    __slots__ = (
        "_report",
        "_usual",
        "channel",
        "counters",
        "debug",
        "decoder",
        "elsewhere",
        "expose",
        "extensions",
        "instruments",
        "limits",
        "log",
        "max_handlers",
        "max_incoming_calls",
        "max_outgoing_calls",
        "overflow",
        "procedures",
        "protocols",
        "reserved",
        "scheduler",
        "timeout",
        "tracer",
    )

    def __init__(
        self,
        takes: tuple[str, ...],
        *,
        protocols: Iterable[Protocol],
        scheduler: Scheduler,
        timeout: float,
        limits: Limits,
        report: Callable[[WseError, object], None],
        overflow: Mapping[MessageType, Overflow | str] | None = None,
        expose: ExposeErrors | str = ExposeErrors.MESSAGE,
        debug: bool = False,
        channel: Callable[[tuple[str, ...], CheckType, Order], Channel] = Channel,
        procedures: Callable[[tuple[str, ...], CheckType, Order], Procedures] = Procedures,
        decoder: Callable[[Protocol], Decode] = attrgetter("codec.decode"),
        elsewhere: str = "loop.call_soon_threadsafe",
    ) -> None:
        if timeout < 0:
            raise ValueError(f"timeout must be 0 (none) or more seconds, not {timeout}")
        self.protocols = tuple(protocols)
        self.reserved = frozenset[MessageType]().union(*(p.reserved for p in self.protocols))
        self.scheduler = scheduler
        self.log = Log(lambda: scheduler.time())  # whose clock may be replaced
        self.timeout = timeout
        self.limits = limits
        self.max_handlers = _bound(limits.handlers)
        self.max_incoming_calls = _bound(limits.incoming_calls)
        self.max_outgoing_calls = _bound(limits.outgoing_calls)
        self.counters = Counters()
        self.instruments: Instruments | None = None
        self.tracer: Tracer | None = None
        self.extensions = Extensions()
        self.expose = ExposeErrors(expose)
        self.debug = debug
        self.elsewhere = elsewhere
        self._usual: set[MessageType] = set()  # types that have been sent
        order = Order(scheduler)
        self.channel = channel((*takes, "payload"), self.check_type, order)
        self.procedures = procedures((*takes, "payload"), self.check_type, order)
        self.decoder = decoder
        self._report = report
        self.overflow = {kind: Overflow(policy) for kind, policy in (overflow or {}).items()}
        for kind in self.overflow:
            self.check_type(kind)

    def check_sent(self, type: MessageType) -> None:
        """Reject a type, or a name, of a message that is about to be sent, and a thread that cannot send it.

        Raises:
            WseError: `PROTOCOL_VIOLATION`; `WRONG_THREAD`.
        """
        try:
            if type in self._usual:  # most of the time
                thread = self.scheduler.thread
                if thread is None or thread == get_ident():
                    return
        except TypeError:
            pass  # `check_type` has the words for that
        self.check_thread()
        self.check_type(type)
        if len(self._usual) < MAX_USUAL:
            self._usual.add(type)

    def check_thread(self) -> None:
        """Reject a call from another thread than that of the event loop.

        Raises:
            WseError: `WRONG_THREAD`.
        """
        thread = self.scheduler.thread
        if thread is not None and thread != get_ident():
            problem = f"this method belongs to the thread of the event loop; in other threads, use {self.elsewhere}"
            raise WseError(ErrorCode.WRONG_THREAD, {"use": self.elsewhere}, problem)

    def check_type(self, type: MessageType) -> None:
        """Reject a message type or procedure name that an application cannot use.

        Raises:
            WseError: `PROTOCOL_VIOLATION`.
        """
        try:
            if type not in self.reserved:
                if isinstance(type, str):
                    if type and not type.startswith(RESERVED_PREFIX):
                        return
                elif type is not None:
                    return
        except TypeError:
            raise WseError(ErrorCode.PROTOCOL_VIOLATION, {}, f"a message type must be hashable, not {type!r}") from None
        problem = (
            f"{type!r} is one of WSE's own message types" if type in self.reserved or type else "a message needs a type"
        )
        raise WseError(ErrorCode.PROTOCOL_VIOLATION, {"type": type}, problem)

    def trace_with(self, tracer: Tracer) -> None:
        """Trace all calls from now on; connections that open from now on carry the context of the traces."""
        self.tracer = tracer
        self.extensions.add(TraceExtension())
        self.procedures.trace_with(tracer)

    def report(self, error: WseError, session: object = None, cause: BaseException | None = None) -> None:
        """Report a failure to the application. What a procedure answers on purpose does not count as an error."""
        if cause is not None:
            error.__cause__ = cause
        if is_answer(error):
            self.counters.count_answer(error.__cause__)
        else:
            self.counters.errors[str(error.code)] += 1
        self._report(error, session)


def _bound(limit: int | None) -> float:
    return inf if limit is None else limit


def emit_error(
    signal: Signal[*tuple[Any, ...]], error: WseError, *rest: Any, log: Log, context: Mapping[str, Any]
) -> None:
    """Fire an `error` signal, or log the error if the signal has no listener."""
    if signal.has_listeners:
        signal._emit(error, *rest)
    else:
        log.error(error, context)


def error_listener_failed(exc: Exception, signal: str, args: tuple[Any, ...]) -> None:
    """Log the exception of an `error` listener, which has no other place to go."""
    error = args[0]
    extra = {"kind": "error-listener", "code": str(error.code), **facts(error, {})}
    logger.error("a listener of %s raised while it handled: %s", signal, error, exc_info=exc, extra=extra)
