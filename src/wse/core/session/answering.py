"""Async handlers of a connection, and the answers to calls that do not return at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from wse.core.session.error_answers import encode_error, outcome_of
from wse.core.session.handlers import Handlers, discard
from wse.core.session.output import EASY_SIZE, Output
from wse.core.session.serving import Serving, is_end
from wse.core.session.signals import handler_of
from wse.errors import ErrorCode, WseError
from wse.types import MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link
    from wse.core.session.calling import Terms
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.session import Session


class Answering(Output):
    """The async handlers of a connection, and its answers.

    Attributes:
        terms: What the peer has announced with the extension `calls`; `None` if it does not know it.
    """

    __slots__ = ("_handlers", "_response", "_running_calls", "_serving", "terms")

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._response = protocol.internal_types.response
        self._handlers: Handlers | None = None
        self._running_calls = 0  # async handlers that run and answer a call
        self._serving: Serving | None = None
        self.terms: Terms | None = None

    # Handlers.

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run an async handler, which may outlive the connection by `Limits.handler_linger`."""
        handlers = self._handlers
        if handlers is None:
            handlers = self._own_handlers
        task = handlers.run(coroutine)
        if task is not None and (self.ready_state is not ReadyState.OPEN or self._handlers is not handlers):
            self._place(task, handlers)

    def call_began(self, task: asyncio.Task[Any]) -> None:
        """Count what answers a call, and has not ended in its first step, until `call_ended`: a callback of the task
        would cost a fifth of what a call costs.
        """
        handlers = self._own_handlers
        handlers.tasks.add(task)
        if self.ended:
            handlers.let_linger({task})  # it, or an earlier handler, has closed the connection

    def call_ended(self, task: asyncio.Task[Any] | None) -> None:
        """What answers a call ends; without a task in its first step."""
        self._running_calls -= 1
        self._counters.calls_running -= 1
        if task is not None and self._handlers is not None:
            self._handlers.tasks.discard(task)

    async def _answer_later(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        try:
            result = await awaitable
        except BaseException as exc:
            if is_end(exc):  # with the server, for example: the caller must not wait for its timeout
                self._answer_error(exc, name, payload, stamp)
                raise
            self._procedure_failed(exc, name, payload, stamp)
        else:
            self._answer(result, name, payload, stamp)
        finally:
            self._running_calls -= 1
            self._counters.calls_running -= 1

    def _place(self, task: asyncio.Task[Any], handlers: Handlers) -> None:
        """See to a handler in the first step of which the socket has closed or become another session's."""
        if self._handlers is not None and self._handlers is not handlers:
            self._handlers.add((task,))  # it has accepted a client whose session goes on
        elif self.ended:
            handlers.let_linger({task})  # this handler, or an earlier one, has closed the connection

    @property
    def _own_handlers(self) -> Handlers:
        handlers = self._handlers
        if handlers is None:
            endpoint = self.endpoint
            handlers = self._handlers = Handlers(endpoint.scheduler, endpoint.limits.handler_linger, self._overdue)
        return handlers

    def leave_handlers_to(self, other: Answering) -> None:
        """The async handlers are another session's from now on."""
        mine, self._handlers = self._handlers, other._own_handlers
        if mine is not None:
            self._handlers.add(mine.tasks)

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The async handlers that have not ended."""
        return () if self._handlers is None else tuple(self._handlers.tasks)

    @property
    def running_handlers(self) -> int:
        """How many async handlers have not ended."""
        return 0 if self._handlers is None else len(self._handlers.tasks)

    def abandon(self, task: asyncio.Task[Any]) -> None:
        """Report an async handler that goes on although it has been cancelled, and forget it."""
        self._overdue(task)
        if self._handlers is not None:
            self._handlers.tasks.discard(task)
        self.endpoint.scheduler.adopt(task)
        task.cancel()

    def _overdue(self, task: asyncio.Task[Any]) -> None:
        """Report an async handler that has outlived the connection for too long and is about to be cancelled."""
        details = {"handler": handler_of(task), **self.context()}
        self.endpoint.report(WseError(ErrorCode.HANDLER_CANCELLED, details), self)

    # Answers.

    def _answer_when_done(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        limit = self.full
        if limit is None:
            self._running_calls += 1
            self._counters.calls_running += 1
            if self.terms is None:
                self.spawn(self._answer_later(awaitable, name, payload, stamp))
            else:
                (self._serving or self.serving).run(awaitable, name, payload, stamp)
        else:
            discard(awaitable)
            self._answer_error(self.exceeded(limit), name, payload, stamp)

    @property
    def full(self) -> str | None:
        """The limit that forbids one more call of an async procedure, if there is one."""
        handlers, endpoint = self._handlers, self.endpoint
        if self._running_calls >= endpoint.max_incoming_calls:
            return "incoming_calls"
        return "handlers" if handlers is not None and len(handlers.tasks) >= endpoint.max_handlers else None

    @property
    def serving(self) -> Serving:
        """The calls of a peer that knows the extension `calls`."""
        serving = self._serving
        if serving is None:
            serving = self._serving = Serving(cast("Session", self))
        return serving

    def take_serving(self) -> Serving | None:
        """Part with the calls that are being answered: what becomes of them is decided elsewhere."""
        serving, self._serving = self._serving, None
        return serving

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
        self._report_failure(exc, name, payload, stamp)

    def _report_failure(self, exc: BaseException, name: MessageType, payload: Any, stamp: Any) -> None:
        details = {"rp": name, "type": name, "payload": payload, "stamp": stamp, **self.context()}
        message = f"{exc.__class__.__name__} in a procedure"
        self.endpoint.report(WseError(ErrorCode.RP_EXECUTION_FAILED, details, message), self, exc)

    def _answer_error(
        self, exc: BaseException, name: MessageType, payload: Any, stamp: Any, *, counts: bool = True
    ) -> None:
        endpoint = self.endpoint
        if counts:
            self._counters.unsuccessful[outcome_of(exc)] += 1
        answer = encode_error(
            exc,
            (name, payload, stamp),
            encode=self._encode,
            response_error=self.protocol.internal_types.response_error,
            takes=self.takes,
            nesting=self.endpoint.limits.nesting,
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
