"""Traces and metrics of calls for OpenTelemetry (`pip install "wse[otel]"`).

    from wse.otel import instrument

    instrument(server)  # or a client, before it connects

Every call has a CLIENT span at the side that makes it and a SERVER span at the side that answers it, by the conventions
for RPC. A stream is one span. If both sides are instrumented, the context of the trace goes along (WIRE.md section 7,
`trace`), also from node to node of a cluster, so that the SERVER span has the CLIENT span as its parent, and calls that
a procedure makes belong to the same trace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import update_wrapper
from inspect import isawaitable, isgenerator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from wse.core.ports.tracing import PARENT, STATE
from wse.errors import ErrorCode, WseError, text_of
from wse.types import MessageType

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:  # pragma: no cover - the environment of the tests has OpenTelemetry
    raise ImportError('traces need OpenTelemetry: pip install "wse[otel]"') from exc

if TYPE_CHECKING:
    import asyncio

    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from wse.client.client import WseClient
    from wse.server.server import WseServer

_SYSTEM = "wse"
_MOST = {PARENT: 64, STATE: 512}
"""Characters of what a peer says; the W3C asks for no more."""

_propagator = TraceContextTextMapPropagator()
_remote: ContextVar[Context | None] = ContextVar("wse.remote_context", default=None)


def instrument(
    target: WseServer | WseClient,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Trace and measure the calls of a server or client, in both directions. A second call does nothing.

    Args:
        target: The server or client. Connections that are open already carry no context.
        tracer_provider: Makes the tracer; by default the global one.
        meter_provider: Makes the meter; by default the global one.
    """
    endpoint = target._endpoint
    if endpoint.tracer is None:
        endpoint.trace_with(
            _Tracer(
                trace.get_tracer("wse", tracer_provider=tracer_provider),
                metrics.get_meter("wse", meter_provider=meter_provider),
            )
        )


class _Tracer:
    """See `wse.core.ports.tracing.Tracer`."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self.client = meter.create_histogram(
            "rpc.client.call.duration", unit="s", description="Time until a call was answered."
        )
        self.server = meter.create_histogram(
            "rpc.server.call.duration", unit="s", description="Time in which a call was answered."
        )

    def begin(self, name: MessageType) -> _Call:
        """See `Tracer.begin`."""
        remote = _remote.get()
        span = self._tracer.start_span(str(name), context=remote, kind=SpanKind.CLIENT, attributes=_attributes(name))
        return _Call(span, self.client, name)

    def headers(self) -> dict[str, str]:
        """See `Tracer.headers`."""
        return _headers(context.get_current())

    @contextmanager
    def continuing(self, headers: Mapping[str, Any]) -> Iterator[None]:
        """See `Tracer.continuing`."""
        token = _remote.set(_context_of(headers))
        try:
            yield
        finally:
            _remote.reset(token)

    def serve(self, name: MessageType, fn: Callable[..., Any], *, yields: bool) -> Callable[..., Any]:
        """See `Tracer.serve`."""

        def begin() -> _Call:
            remote = _remote.get()
            _remote.set(None)  # calls that the procedure makes have its own span as their parent
            span = self._tracer.start_span(
                str(name),
                context=context.Context() if remote is None else remote,
                kind=SpanKind.SERVER,
                attributes=_attributes(name),
            )
            return _Call(span, self.server, name)

        def traced(*args: Any) -> Any:
            call = begin()
            token = context.attach(trace.set_span_in_context(call.span))
            result = None
            try:
                result = fn(*args)
            except BaseException as exc:
                call.fail(exc)
                raise
            finally:
                context.detach(token)
            if result is not None and isawaitable(result):
                return _until_done(result, call)
            call.end()
            return result

        def traced_stream(*args: Any) -> Any:
            return _items(fn, args, begin)

        return update_wrapper(traced_stream if yields else traced, fn)


class _Call:
    """The span of a call, and its place in the histogram of durations; see `wse.core.ports.tracing.CallSpan`."""

    __slots__ = ("_histogram", "_name", "_start", "headers", "span")

    def __init__(self, span: Span, histogram: Histogram, name: MessageType) -> None:
        self.span = span
        self._histogram = histogram
        self._name = name
        self._start = perf_counter()
        self.headers: Mapping[str, str] = _headers(trace.set_span_in_context(span))

    def watch(self, future: asyncio.Future[Any]) -> None:
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.end("cancelled")
            return
        exc = future.exception()
        if exc is None:
            self.end()
        else:
            self.fail(exc)

    def fail(self, exc: BaseException) -> None:
        """End it with an exception: the error type is our code."""
        if isinstance(exc, WseError):
            self.span.set_status(Status(StatusCode.ERROR, exc.message or None))
            self.end(str(exc.code))
        elif isinstance(exc, Exception):
            with suppress(Exception):  # its `__str__` may fail
                self.span.record_exception(exc)
            self.span.set_status(Status(StatusCode.ERROR, f"{type(exc).__name__}: {text_of(exc)}"))
            self.end(str(ErrorCode.RP_EXECUTION_FAILED))
        else:
            self.end("cancelled")

    def end(self, error: str | None = None) -> None:
        """End it."""
        attributes = _attributes(self._name)
        if error is not None:
            self.span.set_attribute("error.type", error)
            attributes["error.type"] = error if error in _CODES else "other"  # another code may be a peer's
        self.span.end()
        self._histogram.record(perf_counter() - self._start, attributes)


_CODES = frozenset((*map(str, ErrorCode), "cancelled"))


def _attributes(name: MessageType) -> dict[str, str]:
    return {"rpc.system": _SYSTEM, "rpc.method": str(name)}


def _headers(of: Context) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, of)
    names = {"traceparent": PARENT, "tracestate": STATE}
    return {names[name]: value for name, value in carrier.items() if name in names and value}


def _context_of(headers: Mapping[str, Any]) -> Context | None:
    """The context that a peer has sent; `None` if it makes no sense."""
    carrier: dict[str, str] = {}
    for key, name in ((PARENT, "traceparent"), (STATE, "tracestate")):
        value = headers.get(key)
        if isinstance(value, str) and len(value) <= _MOST[key]:
            carrier[name] = value
    found = _propagator.extract(carrier, context.Context())
    return found if trace.get_current_span(found).get_span_context().is_valid else None


async def _until_done(awaitable: Any, call: _Call) -> Any:
    context.attach(trace.set_span_in_context(call.span))  # the task ends with the procedure
    try:
        result = await awaitable
    except BaseException as exc:
        call.fail(exc)
        raise
    call.end()
    return result


async def _items(fn: Callable[..., Any], args: tuple[Any, ...], begin: Callable[[], _Call]) -> AsyncIterator[Any]:
    """The items of a stream, inside of its span."""
    call = begin()
    context.attach(trace.set_span_in_context(call.span))  # as above
    items = fn(*args)
    try:
        if isgenerator(items):
            for item in items:
                yield item
        else:
            async for item in items:
                yield item
    except GeneratorExit:
        call.end("cancelled")
        raise
    except BaseException as exc:
        call.fail(exc)
        raise
    else:
        call.end()
    finally:
        if isgenerator(items):
            items.close()
        else:
            await items.aclose()
