"""The calls of a peer that knows the extension `calls`, while this side is answering them: they may be cancelled, have
deadlines, report progress, and stream items in both directions (WIRE.md section 7).
"""

from __future__ import annotations

import sys
from inspect import isawaitable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from wse.core.packed import unencodable
from wse.core.ports.tracing import PARENT, TRACE
from wse.core.session.current_call import CurrentCall, bounded, set_current
from wse.core.session.flow import Inflow, Outflow, SessionOutflow, is_credit, iterator_of
from wse.core.session.handlers import discard
from wse.core.session.output import EASY_SIZE
from wse.core.session.signals import HANDLER_ERRORS
from wse.errors import ErrorCode, WseError
from wse.tasks import current_task, is_cancelled

if TYPE_CHECKING:
    import asyncio

    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.ports.scheduling import Timer
    from wse.core.session.rpc import Procedure
    from wse.core.session.session import Session
    from wse.types import MessageType

WINDOW: Final = 32
"""Items of a stream that may be on their way, unless the application says otherwise."""


class ServedCall(CurrentCall):
    """A call that has options, or that can be cancelled.

    Attributes:
        name: The procedure.
        can_cancel: Whether its task is cancelled when the result is no longer wanted.
        task: Runs the procedure, from its first step on.
        timer: Runs at the deadline.
        outflow: The items that the procedure yields.
        inflow: The items that the caller sends.
    """

    name: MessageType = ""
    can_cancel: bool = False
    task: asyncio.Task[Any] | None = None
    timer: Timer | None = None
    outflow: Outflow | None = None
    inflow: Inflow | None = None
    _lost: WseError | None = None  # the error with which it ends, although the caller waits

    @property
    def is_stream(self) -> bool:
        """Whether items travel, in one direction or the other."""
        return self.outflow is not None or self.inflow is not None

    def is_told_by(self, exc: BaseException) -> bool:
        """Whether an exception is the one by which the procedure has heard that its upload is over."""
        return self.inflow is not None and self.inflow.error is exc


class Options:
    """The options of a `~wse:call`; those that this side does not know are ignored.

    Attributes:
        timeout: Seconds that the caller waits; 0 for ever, `None` if it does not say.
        credit: Items that it takes; `None` if it wants no stream.
        progress: Whether it wants progress.
        uploads: Whether it sends items.
    """

    __slots__ = ("credit", "progress", "timeout", "uploads")

    def __init__(self, options: dict[str, Any]) -> None:
        self.timeout = options.get("t")
        self.credit = options.get("n")
        self.progress = bool(options.get("p"))
        self.uploads = bool(options.get("up"))

    @property
    def make_sense(self) -> bool:
        """Whether the numbers are numbers."""
        return (self.timeout is None or is_duration(self.timeout)) and (self.credit is None or is_credit(self.credit))


def is_duration(value: Any) -> bool:
    """Whether a value of a peer is a number of seconds; whole numbers may be larger than any clock."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_end(exc: BaseException) -> bool:
    """Whether an exception ends the task in which it is raised, instead of failing what the task does."""
    return not isinstance(exc, HANDLER_ERRORS) or is_cancelled(exc)


class Serving:
    """The calls of one peer that this side is answering.

    Args:
        session: The connection.

    Attributes:
        calls: The calls, by their stamps.
        streams: How many of them stream.
        time: The clock.
    """

    __slots__ = ("_cancellable", "_scheduler", "_session", "_timeout", "calls", "streams", "time")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._scheduler = session.endpoint.scheduler
        self._cancellable = session.endpoint.procedures.cancellable
        self.time = self._scheduler.time
        self.streams = 0
        self.calls: dict[Any, CurrentCall] = {}
        self.agree()

    def agree(self) -> None:
        """The peer has announced how long its calls wait, or has not."""
        terms = self._session.terms
        self._timeout = 0.0 if terms is None else terms.timeout

    # Calls begin.

    def run(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        """Answer a plain call of an async procedure, for which there is room.

        Args:
            awaitable: Its result.
            name: The procedure.
            payload: The argument.
            stamp: The stamp.
        """
        timeout = self._timeout
        deadline = self.time() + timeout if timeout else None
        if name in self._cancellable:
            self._start(ServedCall(self, stamp, deadline, name=name, can_cancel=True), awaitable, name, payload, stamp)
            return
        call = CurrentCall(self, stamp, deadline)
        task = self._scheduler.start(self._answer(call, awaitable, name, payload, stamp))
        if not task.done():
            call._task = task
            self._session.call_began(task)
            if self._session.ended:  # in its first step
                call._is_cancelled = True
            else:
                self._add(call, stamp)

    def _add(self, call: CurrentCall, stamp: Any) -> None:
        try:
            if self.calls.setdefault(stamp, call) is call:
                return
        except TypeError:
            pass
        self.calls[call] = call  # its stamp is none, or another call's: nobody asks for it, but the connection ends it

    def called(self, payload: Any, stamp: Any) -> None:
        """A call with options has come (`~wse:call`)."""
        session = self._session
        procedures = session.endpoint.procedures
        try:
            name, argument, given, *_ = payload
            options = Options(given)
            fn = procedures.by_name.get(name)
            procedure = procedures.streams.get(name)
            is_known = stamp in self.calls
        except (TypeError, ValueError, AttributeError):
            session.violation("a call with options is [name, payload, options], with a stamp")
            return
        if not stamp or is_known or not options.make_sense:
            session.violation("a call has options that make no sense, or no stamp of its own")
            return
        session._counters.calls_in += 1
        tracer = session.endpoint.tracer
        if tracer is not None and PARENT in given and TRACE in session.agreement.names:
            with tracer.continuing(given):
                self._begin(fn, procedure, name, argument, stamp, options)
        else:
            self._begin(fn, procedure, name, argument, stamp, options)

    def _begin(
        self, fn: Any, procedure: Procedure | None, name: MessageType, argument: Any, stamp: Any, options: Options
    ) -> None:
        """Begin to answer a call that is in order."""
        session = self._session
        if procedure is not None:
            if procedure.yields == (options.credit is not None) and procedure.uploads == options.uploads:
                self._stream(procedure, name, argument, stamp, options)
            else:
                is_more = procedure.yields > (options.credit is not None) or procedure.uploads > options.uploads
                code = ErrorCode.RP_IS_A_STREAM if is_more else ErrorCode.RP_NOT_A_STREAM
                session._answer_error(WseError(code), name, argument, stamp)
        elif fn is None:
            session._answer_error(WseError(ErrorCode.RP_NOT_REGISTERED), name, argument, stamp)
        elif options.credit is not None or options.uploads:
            session._answer_error(WseError(ErrorCode.RP_NOT_A_STREAM), name, argument, stamp)
        else:
            self._plain(fn, name, argument, stamp, options)

    def _plain(self, fn: Any, name: MessageType, payload: Any, stamp: Any, options: Options) -> None:
        """A procedure that returns its result, at once or later."""
        session = self._session
        try:
            result = session.invoke(fn, payload)
        except HANDLER_ERRORS as exc:
            session._procedure_failed(exc, name, payload, stamp)
            return
        if not isawaitable(result):
            session._answer(result, name, payload, stamp)
            return
        limit = session.full
        if limit is not None:
            discard(result)
            session._answer_error(session.exceeded(limit), name, payload, stamp)
            return
        timeout = self._timeout if options.timeout is None else options.timeout
        deadline = self.time() + timeout if timeout else None
        call = ServedCall(self, stamp, deadline, name=name, can_cancel=name in self._cancellable)
        call._takes_progress = options.progress
        if options.timeout:
            call._inherited = deadline
        session._running_calls += 1
        session._counters.calls_running += 1
        self._start(call, result, name, payload, stamp)

    def _stream(self, procedure: Procedure, name: MessageType, payload: Any, stamp: Any, options: Options) -> None:
        """A procedure that yields items, or takes an upload, or both."""
        session = self._session
        limit = session.full
        most = session.endpoint.limits.streams
        if limit is None and most is not None and self.streams >= most:
            limit = "streams"
        if limit is not None:
            session._answer_error(session.exceeded(limit), name, payload, stamp)
            return
        deadline = self.time() + options.timeout if options.timeout else None
        can_cancel = procedure.yields or name in self._cancellable
        call = ServedCall(self, stamp, deadline, name=name, can_cancel=can_cancel)
        call._takes_progress = options.progress
        call._inherited = deadline
        args: tuple[Any, ...] = ()
        types = self._types
        if procedure.uploads:
            call.inflow = Inflow(self._scheduler, session.window(WINDOW))
            call.inflow.grant = lambda count: session.write_stamped(types.want, count, stamp)
            args = (call.inflow,)
        try:
            result = session.invoke(procedure.fn, payload, *args)
        except HANDLER_ERRORS as exc:
            session._procedure_failed(exc, name, payload, stamp)
            return
        if options.credit is not None:
            call.outflow = SessionOutflow(session, types.item, stamp, name, options.credit)
            result = call.outflow.send_all(iterator_of(result))
        elif not isawaitable(result):
            session._answer(result, name, payload, stamp)
            return
        self.streams += 1
        session._running_calls += 1
        session._counters.calls_running += 1
        if call.inflow is not None:
            call.inflow.grant(call.inflow.window)
        self._start(call, result, name, payload, stamp)

    def _start(self, call: ServedCall, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        self._add(call, stamp)
        if call.can_cancel and call.deadline is not None:
            call.timer = self._scheduler.call_later(call.deadline - self.time(), self._cancel, call)
        task = self._scheduler.start(self._answer_served(call, awaitable, name, payload, stamp))
        if not task.done():
            call._task = task
            self._session.call_began(task)

    @property
    def _types(self) -> ExtensionTypes:
        types = self._session.protocol.extensions
        assert types is not None  # else no call could have options
        return types

    async def _answer(self, call: CurrentCall, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        """Answer a call that has no options, and is not cancelled: the path of most calls."""
        session = self._session
        set_current(call)
        try:
            result = await awaitable
        except BaseException as exc:
            if self._failed(exc, call, name, payload, stamp):
                raise
        else:
            if not call._is_cancelled:
                session._answer(result, name, payload, stamp)
        finally:
            call._serving = None
            if self.calls:
                self._forget(call)
            session.call_ended(call._task)

    async def _answer_served(
        self, call: ServedCall, awaitable: Any, name: MessageType, payload: Any, stamp: Any
    ) -> None:
        session = self._session
        set_current(call)
        try:
            call.task = current_task()  # before that, it cannot be cancelled: it would not get here
            if call._inherited is not None:
                bounded.add(call)
            # Before its first step. One that cannot be cancelled runs, as it would a moment later.
            if (call._is_cancelled and call.can_cancel) or call._lost is not None:
                discard(awaitable)
                self._tell_loss(call, name, payload, stamp)
                return
            result = await awaitable
        except BaseException as exc:
            if call._lost is not None and is_end(exc):
                self._tell_loss(call, name, payload, stamp)
                raise
            if self._failed(exc, call, name, payload, stamp):
                raise
        else:
            if call._lost is not None:
                self._tell_loss(call, name, payload, stamp)
            elif not call._is_cancelled:
                session._answer(result, name, payload, stamp)
        finally:
            self._ended(call)
            session.call_ended(call._task)

    def _failed(self, exc: BaseException, call: CurrentCall, name: MessageType, payload: Any, stamp: Any) -> bool:
        """Answer a call that has failed; returns whether its task ends with the exception."""
        session = self._session
        if is_end(exc):
            if not call._is_cancelled:  # with the server, for example: the caller must not wait for its timeout
                session._answer_error(exc, name, payload, stamp)
            return True
        if not call._is_cancelled:
            session._procedure_failed(exc, name, payload, stamp)
        elif not (isinstance(call, ServedCall) and call.is_told_by(exc)):
            session._report_failure(exc, name, payload, stamp)
        return False

    # Calls end.

    def _tell_loss(self, call: ServedCall, name: MessageType, payload: Any, stamp: Any) -> None:
        if call._lost is not None and not call._is_cancelled:
            self._session._answer_error(call._lost, name, payload, stamp)

    def _ended(self, call: ServedCall) -> None:
        call._serving = None
        self._forget(call)
        bounded.discard(call)
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if call.inflow is not None:
            call.inflow.drop()
        if call.is_stream:
            self.streams -= 1

    def _forget(self, call: CurrentCall) -> None:
        try:
            if self.calls.get(call._stamp) is call:
                del self.calls[call._stamp]
                return
        except TypeError:
            pass
        self.calls.pop(call, None)

    def cancel(self, stamp: Any) -> None:
        """The caller no longer waits (`~wse:cancel`)."""
        try:
            call = self.calls.get(stamp)
        except TypeError:
            return
        if call is not None:
            self._cancel(call)

    def _cancel(self, call: CurrentCall) -> None:
        """The caller no longer waits, or its time is over: stop the procedure, if that is wanted, and do not answer."""
        self._forget(call)
        call._is_cancelled = True
        self._session._counters.unsuccessful["cancelled"] += 1
        if isinstance(call, ServedCall):
            if call.inflow is not None:
                problem = "the caller has given up"
                call.inflow.end(WseError(ErrorCode.RP_DISCONNECT, {"rp": call.name}, problem))
            if call.can_cancel:
                self._stop(call)

    def _stop(self, call: ServedCall) -> None:
        """Cancel a procedure. One that does not end is reported, and left to itself."""
        if call.outflow is not None:
            call.outflow.is_stopped = True
        task = call.task
        if task is None or task.done():
            return
        task.cancel()
        linger = self._session.endpoint.limits.handler_linger
        if linger is not None and not self._session.ended:  # else all its handlers are seen to
            timer = self._scheduler.call_later(linger, self._session.abandon, task)
            task.add_done_callback(lambda _: timer.cancel())

    def end(self) -> None:
        """The connection has ended: nobody waits."""
        for call in list(self.calls.values()):
            self._cancel(call)

    def leave(self, code: int, reason: str) -> None:
        """The session goes on at another node: streams end, and what else runs here is answered from here."""
        for call in list(self.calls.values()):
            if isinstance(call, ServedCall) and call.is_stream:
                details = {"rp": call.name, "disconnected": [code, str(reason)], "arrived": True}
                call._lost = WseError(ErrorCode.RP_DISCONNECT, details)
                if call.inflow is not None:
                    call.inflow.end(call._lost)
                if call.outflow is not None:
                    self._stop(call)

    # Messages of running calls.

    def granted(self, count: Any, stamp: Any) -> None:
        """The caller takes more items (`~wse:more`)."""
        call = self._find(stamp)
        if call is not None and call.outflow is not None:
            call.outflow.grant(count)

    def put(self, item: Any, stamp: Any, size: int) -> None:
        """The caller sends an item (`~wse:put`)."""
        call = self._find(stamp)
        if call is None or call.inflow is None or call.inflow.is_over:
            return
        if not call.inflow.put(item, size):
            session = self._session
            self._cancel(call)
            session._answer_error(session.exceeded("stream_window"), call.name, None, stamp, counts=False)

    def uploaded(self, stamp: Any) -> None:
        """The caller has sent all items (`~wse:end`)."""
        call = self._find(stamp)
        if call is not None and call.inflow is not None:
            call.inflow.end()

    def _find(self, stamp: Any) -> ServedCall | None:
        try:
            call = self.calls.get(stamp)
        except TypeError:
            return None
        return call if isinstance(call, ServedCall) else None

    def _send_posted(self, stamp: Any, value: Any) -> None:
        try:
            self.send_progress(stamp, value)
        except WseError as exc:
            self._session.endpoint.report(exc, self._session)

    def send_progress(self, stamp: Any, value: Any) -> None:
        """See `CurrentCall.progress`."""
        session = self._session
        scheduler = session.endpoint.scheduler
        if scheduler.thread is not None and scheduler.thread != get_ident():  # of a procedure that runs in a thread
            scheduler.post(self._send_posted, stamp, value)
            return
        if session.ended:
            return
        kind = self._types.progress
        try:
            data = session._encode((kind, value, stamp))
        except Exception as exc:
            raise unencodable(kind, exc) from exc
        if len(data) > EASY_SIZE or not session._direct:
            session.check_size(data, {"type": kind})
        session._write(data, kind, str(stamp))
