"""What one connection's handlers do while they run, and what the peer's calls get for an answer."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any

from wse.core.outgoing import Outgoing
from wse.core.rpc import error_to_wire
from wse.core.signals import handler_of
from wse.errors import ErrorCode, WseError
from wse.types import MessageType, ReadyState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from wse.core.endpoint import Endpoint
    from wse.core.ports import Link, Protocol


class Answering(Outgoing):
    """The part of a session that runs handlers and answers calls."""

    __slots__ = ("_response", "_running_calls", "_tasks")

    def __init__(self, endpoint: Endpoint, link: Link, protocol: Protocol) -> None:
        super().__init__(endpoint, link, protocol)
        self._response = protocol.internal_types.response
        self._tasks: set[asyncio.Task[Any]] | None = None  # async handlers that run
        self._running_calls = 0  # those of calls among them

    # Async handlers.

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run an async handler, which may outlive the connection by `Limits.handler_linger`."""
        task = self.endpoint.scheduler.start(coroutine)
        if not task.done():
            tasks = self._tasks
            if tasks is None:
                tasks = self._tasks = set()
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if self.ready_state is not ReadyState.OPEN:  # it has closed its own connection, or one before it has
                self._leave_handlers({task})

    def _leave_handlers(self, tasks: set[asyncio.Task[Any]]) -> None:
        """The connection has ended: the handlers that still run have some time left."""
        scheduler, linger = self.endpoint.scheduler, self.endpoint.limits.handler_linger
        for task in tasks:
            scheduler.adopt(task)
        if linger is not None:
            timer = scheduler.call_later(linger, self._cancel_handlers)

            def ended(_: object) -> None:
                if not self._tasks:
                    timer.cancel()  # it keeps the whole connection in memory

            for task in tasks:
                task.add_done_callback(ended)

    def _cancel_handlers(self) -> None:
        for task in self.tasks:
            details = {"handler": handler_of(task), **self.context()}
            self.endpoint.report(WseError(ErrorCode.HANDLER_CANCELLED, details), self)
            task.cancel()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """The async handlers that have not ended."""
        return () if self._tasks is None else tuple(self._tasks)

    @property
    def running_handlers(self) -> int:
        """How many they are."""
        return 0 if self._tasks is None else len(self._tasks)

    # Answers.

    def _answer_when_done(self, awaitable: Any, name: MessageType, payload: Any, stamp: Any) -> None:
        limit = None
        if self._running_calls >= self.endpoint.most_incoming_calls:
            limit = "incoming_calls"
        elif self.running_handlers >= self.endpoint.most_handlers:
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
        except Exception as exc:
            self._procedure_failed(exc, name, payload, stamp)
        except BaseException as exc:
            # Cancelled from within, or with the server: the caller must not wait for its timeout.
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
        self._write(data)

    def _procedure_failed(self, exc: BaseException, name: MessageType, payload: Any, stamp: Any) -> None:
        self._answer_error(exc, name, payload, stamp)
        details = {"rp": name, "type": name, "payload": payload, "stamp": stamp, **self.context()}
        message = f"{exc.__class__.__name__} in a procedure"
        self.endpoint.report(WseError(ErrorCode.RP_EXECUTION_FAILED, details, message), self, exc)

    def _answer_error(self, exc: BaseException, name: MessageType, payload: Any, stamp: Any) -> None:
        response_error = self.protocol.internal_types.response_error
        try:
            wire = error_to_wire(exc, name, payload, expose=self.endpoint.expose, debug=self.endpoint.debug)
            data = self._encode((response_error, wire, stamp))
        except Exception:
            # The error's own details cannot be encoded: the caller still gets an answer, without them.
            code = exc.code if isinstance(exc, WseError) else ErrorCode.RP_EXECUTION_FAILED
            wire = {"code": str(code), "details": {"rp": name, "rpc": name}}
            try:
                data = self._encode((response_error, wire, stamp))
            except Exception as cause:  # a protocol that cannot send back what it has received
                problem = WseError(ErrorCode.MSG_PROCESSING_ERROR, self.context(), "a call cannot be answered")
                self.endpoint.report(problem, self, cause)
                return
        self._write(data)


def discard(awaitable: Any) -> None:
    """Give up what an async handler returned, before it has begun."""
    if isinstance(awaitable, CoroutineType):
        awaitable.close()
