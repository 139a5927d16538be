"""Spans and metrics of calls, with the SDK of OpenTelemetry and exporters in memory."""

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from support.net import TIMEOUT, soon
from wse import Limits, WseError, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.otel import instrument
from wse.prometheus import Collector
from wse.testing import MemoryClient, MemoryConnector

CLIENT, SERVER = SpanKind.CLIENT, SpanKind.SERVER


class Telemetry:
    """What was exported."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.spans_of = TracerProvider(shutdown_on_exit=False)
        self.spans_of.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.spans_of.get_tracer("test")

    def instrument(self, *targets):
        for target in targets:
            instrument(target, tracer_provider=self.spans_of, meter_provider=self.meters)

    async def spans(self, count):
        """The spans, once there are so many, in the order in which they began."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.exporter.get_finished_spans()) < count:
                await asyncio.sleep(0)
        spans = self.exporter.get_finished_spans()
        assert len(spans) == count
        return sorted(spans, key=lambda span: span.start_time)

    def durations(self):
        """How many calls were measured, by the name of the metric, the procedure and the error."""
        found = {}
        for resource in self.reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        key = metric.name, point.attributes["rpc.method"], point.attributes.get("error.type")
                        found[key] = point.count
        return found


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    yield telemetry
    telemetry.spans_of.shutdown()
    telemetry.meters.shutdown()


def make_server(**options):
    server = WseServer(lambda auth: auth.accept(auth.identity or "ann"), **options)
    server.register("add", lambda conn, payload: payload)
    return server


@pytest.fixture
async def join(telemetry):
    """`await join(server)` connects a client; both are instrumented, unless the test says otherwise."""
    async with AsyncExitStack() as stack:

        async def join(server, identity="ann", *, traced=True, serves=True, **options):
            client = MemoryClient(MemoryConnector(server, None), identity=identity, **options)
            telemetry.instrument(*([server] if serves else []), *([client] if traced else []))
            stack.push_async_callback(server.close)
            return await stack.enter_async_context(client)

        yield join


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


def told(span):
    return span.kind, span.name, span.attributes.get("error.type")


async def test_a_call_is_a_client_span_and_a_server_span_in_one_trace(telemetry, join):
    client = await join(make_server())
    with telemetry.tracer.start_as_current_span("of the application") as outer:
        assert await soon(client.call("add", 1)) == 1
    outermost, asked, answered = await telemetry.spans(3)
    assert [told(asked), told(answered)] == [(CLIENT, "add", None), (SERVER, "add", None)]
    assert dict(asked.attributes) == dict(answered.attributes) == {"rpc.system": "wse", "rpc.method": "add"}
    assert parent_of(asked) == outer.get_span_context().span_id == outermost.context.span_id
    assert parent_of(answered) == asked.context.span_id
    assert len({span.context.trace_id for span in (outermost, asked, answered)}) == 1
    assert telemetry.durations() == {
        ("rpc.client.call.duration", "add", None): 1,
        ("rpc.server.call.duration", "add", None): 1,
    }


async def test_errors_have_our_codes_and_crashes_an_exception(telemetry, join):
    server = make_server()
    server.when.error(lambda err, conn: None)

    @server.register("refuse")
    async def refuse(conn, payload):
        await asyncio.sleep(0)
        raise WseError("app.no", {}, "not today")

    @server.register("crash")
    def crash(conn, payload):
        raise LookupError("no such thing")

    client = await join(server)
    for name in ("refuse", "crash", "absent"):
        with pytest.raises(WseError):
            await soon(client.call(name))
    spans = await telemetry.spans(5)
    assert [told(span) for span in spans] == [
        (CLIENT, "refuse", "app.no"),
        (SERVER, "refuse", "app.no"),
        (CLIENT, "crash", "wse.server.rp.failed"),
        (SERVER, "crash", "wse.server.rp.failed"),
        (CLIENT, "absent", "wse.server.rp.not-registered"),  # nobody answers it with a span
    ]
    assert all(span.status.status_code is StatusCode.ERROR for span in spans)
    assert spans[1].status.description == "not today"
    assert [event.attributes["exception.type"] for event in spans[3].events] == ["LookupError"]
    assert telemetry.durations()["rpc.server.call.duration", "refuse", "other"] == 1


async def test_an_exception_whose_text_cannot_be_had_ends_its_span(telemetry, join):
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError

    server = make_server()
    server.when.error(lambda err, conn: None)

    @server.register("fail")
    def fail(conn, payload):
        raise MuteError

    client = await join(server)
    with pytest.raises(WseError):
        await soon(client.call("fail"))
    spans = await telemetry.spans(2)
    assert {span.attributes["error.type"] for span in spans} == {"wse.server.rp.failed"}


async def test_the_calls_that_a_procedure_makes_belong_to_its_trace(telemetry, join):
    server = make_server()

    @server.register("outer")
    async def outer(conn, payload):
        return await conn.call("inner", payload)

    client = await join(server)
    client.register("inner", lambda payload: payload + 1)
    assert await soon(client.call("outer", 1)) == 2
    spans = await telemetry.spans(4)
    assert [told(span)[:2] for span in spans] == [
        (CLIENT, "outer"),
        (SERVER, "outer"),
        (CLIENT, "inner"),
        (SERVER, "inner"),
    ]
    for parent, span in pairwise(spans):
        assert parent_of(span) == parent.context.span_id


async def test_a_stream_is_one_span_on_each_side(telemetry, join):
    server = make_server()

    @server.register("count")
    async def count(conn, payload):
        for n in range(payload):
            yield n

    @server.register("fail")
    def fail(conn, payload):
        yield 1
        raise WseError("app.no")

    @server.register("endless")
    async def endless(conn, payload):
        inside.set_result(trace.get_current_span().get_span_context().span_id)
        while True:
            yield 0

    @server.register("sum", upload=True)
    async def total(conn, payload, items):
        return sum([item async for item in items])

    client, inside = await join(server), asyncio.get_running_loop().create_future()
    assert [n async for n in client.stream("count", 3)] == [0, 1, 2]
    with pytest.raises(WseError):
        _ = [n async for n in client.stream("fail")]
    async with client.stream("endless") as items:
        async for _ in items:
            break
    assert await soon(client.call("sum", upload=[1, 2])) == 3
    spans = await telemetry.spans(8)
    assert [told(span) for span in spans] == [
        (CLIENT, "count", None),
        (SERVER, "count", None),
        (CLIENT, "fail", "app.no"),
        (SERVER, "fail", "app.no"),
        (CLIENT, "endless", "cancelled"),
        (SERVER, "endless", "cancelled"),
        (CLIENT, "sum", None),
        (SERVER, "sum", None),
    ]
    assert spans[5].context.span_id == await inside
    for asked, answered in zip(spans[::2], spans[1::2], strict=True):
        assert parent_of(answered) == asked.context.span_id


async def test_calls_that_are_given_up_end_their_spans(telemetry, join):
    server = make_server()
    client = await join(server)
    client.register("never", lambda payload: asyncio.get_running_loop().create_future())
    (conn,) = server.clients["ann"].conns.values()
    with pytest.raises(WseError, match="no answer in time"):
        await soon(conn.call("never", timeout=0.01))
    call = asyncio.ensure_future(conn.call("never"))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(WseError):
        await soon(client.call("~wse:mine"))
    async with asyncio.timeout(TIMEOUT):
        while len([s for s in telemetry.exporter.get_finished_spans() if s.kind is CLIENT]) < 3:
            await asyncio.sleep(0)
    found = [told(span) for span in telemetry.exporter.get_finished_spans() if span.kind is CLIENT]
    assert found == [
        (CLIENT, "never", "wse.client.rp.timeout"),
        (CLIENT, "~wse:mine", "wse.server.protocol-violation"),
        (CLIENT, "never", "cancelled"),
    ]


async def test_calls_to_all_devices_of_a_user_all_have_spans_that_end(telemetry, join):
    server = make_server(conns_per_user=3)
    clients = [await join(server) for _ in range(3)]
    for n, client in enumerate(clients):
        if n:
            client.register("slow", lambda payload: asyncio.get_running_loop().create_future())
        else:
            client.register("slow", lambda payload: payload)
    assert await soon(server.call("ann", "slow", 7)) == 7
    async with asyncio.timeout(TIMEOUT):
        while len([s for s in telemetry.exporter.get_finished_spans() if s.kind is CLIENT]) < 3:
            await asyncio.sleep(0)


@pytest.mark.parametrize(("traced", "serves"), [(True, False), (False, True), (False, False)])
async def test_the_context_travels_only_where_both_sides_agree(telemetry, join, traced, serves):
    server = make_server()
    client = await join(server, traced=traced, serves=serves)
    sent = []
    session = client._connections.session
    session._encode, encode = lambda message: sent.append(message) or encode(message), session._encode
    assert await soon(client.call("add", 1)) == 1
    assert [message[0] for message in sent] == ["add"]  # the plain call, byte for byte
    kinds = [CLIENT] * traced + [SERVER] * serves
    spans = await telemetry.spans(len(kinds))
    assert [span.kind for span in spans] == kinds
    assert all(span.parent is None for span in spans)


@pytest.mark.parametrize(
    "context",
    [
        {"tp": "nonsense"},
        {"tp": 7},
        {"tp": ["00-" + "1" * 32 + "-" + "1" * 16 + "-01"]},
        {"tp": "00-" + "0" * 32 + "-" + "1" * 16 + "-01"},
        {"tp": "00-" + "1" * 32 + "-" + "1" * 16 + "-01" + "x" * 100_000},
        {"tp": "", "ts": {"a": 1}},
    ],
)
async def test_a_context_that_makes_no_sense_is_none(telemetry, join, context):
    client = await join(make_server())
    asked = client._connections.session.start_call("add", 1, None, context, traced=True)
    assert await soon(asked[1]) == 1
    (span,) = await telemetry.spans(1)
    assert (span.kind, span.parent) == (SERVER, None)


async def test_the_state_of_a_trace_travels_along(telemetry, join):
    client = await join(make_server())
    parent, state = "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "vendor=value"
    asked = client._connections.session.start_call("add", 1, None, {"tp": parent, "ts": state}, traced=True)
    assert await soon(asked[1]) == 1
    (span,) = await telemetry.spans(1)
    assert (f"{span.context.trace_id:032x}", f"{parent_of(span):016x}") == ("1" * 32, "2" * 16)
    assert span.context.trace_state.get("vendor") == "value"


async def test_a_trace_goes_from_node_to_node(telemetry, join):
    cluster = MemoryCluster()
    one, two = (make_server(broker=MemoryBroker(cluster)) for _ in range(2))
    ann, ben = await join(one, "ann"), await join(two, "ben")
    ben.register("hear", lambda payload: payload)

    @ben.register("count")
    def count(payload):
        yield from range(payload)

    @one.register("tell")
    async def tell(conn, payload):
        assert [n async for n in one.stream("ben", "count", 2)] == [0, 1]
        return await one.call("ben", "hear", payload)

    assert await soon(ann.call("tell", 1)) == 1
    spans = await telemetry.spans(6)
    assert {span.context.trace_id for span in spans} == {spans[0].context.trace_id}
    by_id = {span.context.span_id: span for span in spans}
    for span in spans[2:]:
        parent = by_id[parent_of(span)]
        assert (parent.kind, parent.name) == ((SERVER, "tell") if span.kind is CLIENT else (CLIENT, span.name))


async def test_metrics_and_traces_go_together_in_either_order(telemetry, join):
    for first, second in ((Collector, telemetry.instrument), (telemetry.instrument, Collector)):
        server = make_server()
        first(server)
        second(server)
        telemetry.instrument(server)  # a second time does nothing
        client = await join(server, serves=False, traced=False)
        server.register("later", lambda conn, payload: payload)
        for name in ("add", "later"):
            assert await soon(client.call(name, 1)) == 1
        spans = await telemetry.spans(2)
        assert [told(span)[:2] for span in spans] == [(SERVER, "add"), (SERVER, "later")]
        (times,) = [family for family in server._metrics.read() if family.name == "wse_call_duration_seconds"]
        assert sum(times.histograms["add",].counts) == 1
        telemetry.exporter.clear()


async def test_a_refused_async_call_leaves_no_coroutine_behind(telemetry, join):
    server = make_server(limits=Limits(incoming_calls=1))
    gate = asyncio.Event()

    @server.register("wait")
    async def wait(conn, payload):
        await gate.wait()

    client = await join(server)
    first = asyncio.ensure_future(client.call("wait"))
    async with asyncio.timeout(TIMEOUT):
        while not server.stats().running_handlers:
            await asyncio.sleep(0)
    with pytest.raises(WseError, match="limit-exceeded"):
        await soon(client.call("wait"))
    gate.set()
    await soon(first)


def test_nothing_is_on_the_path_of_a_server_that_is_not_instrumented():
    server = make_server()
    assert server._endpoint.tracer is None
    assert "trace" not in server._endpoint.extensions._known


async def test_typed_procedures_keep_their_hints_when_they_are_traced_and_timed(telemetry, join):
    server = make_server()

    class Point(msgspec.Struct):
        x: int

    @server.register("typed")
    def typed(conn, payload: Point) -> int:
        return payload.x

    @server.register("in-turn", ordered=True)
    async def in_turn(conn, payload: Point) -> int:
        return payload.x

    Collector(server)
    client = await join(server)

    @server.middleware
    async def pass_on(call, next):
        return await next()

    for name in ("typed", "in-turn"):
        for _ in range(3):
            assert await soon(client.call(name, {"x": 3})) == 3
        with pytest.raises(WseError, match="invalid-payload"):
            await soon(client.call(name, {"x": "no"}))
    spans = await telemetry.spans(16)
    assert {told(span) for span in spans} == {
        (kind, name, error)
        for kind in (CLIENT, SERVER)
        for name in ("typed", "in-turn")
        for error in (None, "wse.invalid-payload")
    }
