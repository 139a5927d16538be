"""The metrics of a server: what is measured, what it costs when nobody asks, and what several processes add up to."""

import asyncio
import logging
import threading
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.net import TIMEOUT, soon
from wse import Inbox, Limits, WseError, WseServer
from wse.brokers.memory import MemoryBroker
from wse.core.session.rpc import Procedures
from wse.core.session.timing import TIMED, Instruments
from wse.core.stats import Histogram
from wse.metrics import survey
from wse.metrics.families import Buckets, Family, add_up, without_gauges
from wse.prometheus import Collector
from wse.testing import Clock, connect


class Scrape:
    """What Prometheus would read."""

    def __init__(self, server):
        self.registry = CollectorRegistry()
        self.registry.register(Collector(server))

    def samples(self):
        families = text_string_to_metric_families(generate_latest(self.registry).decode())
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name, *labels):
        return self.samples()[name, *sorted(labels)]


def make_server(**options):
    server = WseServer(lambda auth: auth.accept(auth.identity or "ann"), **options)
    server.register("add", lambda conn, payload: payload)
    return server


async def fails(awaitable, match=None):
    with pytest.raises(WseError, match=match):
        await soon(awaitable)


async def running(server):
    """Wait until an async handler runs."""
    async with asyncio.timeout(TIMEOUT):
        while not server.stats().running_handlers:
            await asyncio.sleep(0)


async def test_connections_messages_and_calls_are_measured():
    server = make_server(conns_per_user=2)
    scrape = Scrape(server)

    @server.register("refuse")
    def refuse(conn, payload):
        raise WseError("app.no")

    @server.register("crash")
    async def crash(conn, payload):
        raise LookupError("no such thing")

    server.when.error(lambda err, conn: None)
    server.channel.on("chat", lambda conn, text: server.broadcast("chat", text))
    async with connect(server) as one, connect(server):
        one.register("info", lambda payload: payload)
        heard = asyncio.ensure_future(one.when.ignored.wait())
        one.send("chat", "hello")
        await soon(heard)
        for n in range(3):
            await soon(one.call("add", n))
        await fails(one.call("refuse"), "app.no")
        await fails(one.call("crash"), "no such thing")
        await fails(one.call("absent"), "not-registered")
        (conn, _) = server.clients["ann"].conns.values()
        assert await soon(conn.call("info", 1)) == 1
        await fails(conn.call("absent"), "not-registered")
        assert scrape("wse_connections") == 2
        assert scrape("wse_users") == 1
    assert scrape("wse_connections_opened_total") == 2
    assert scrape("wse_messages_total", "in") == 1
    assert scrape("wse_messages_total", "out") == 2
    assert scrape("wse_bytes_total", "in") > 100
    calls = {labels: value for (name, *labels), value in scrape.samples().items() if name == "wse_calls_total" and value
             for labels in [tuple(labels)]}  # fmt: skip
    assert calls == {
        ("in", "ok"): 3,
        ("error", "in"): 1,
        ("crash", "in"): 1,
        ("in", "unknown"): 1,
        ("ok", "out"): 1,
        ("error", "out"): 1,
    }
    assert scrape("wse_errors_total", "wse.server.rp.failed") == 1
    assert scrape("wse_answers_total", "other") == 1
    assert scrape("wse_call_duration_seconds_count", "add") == 3
    assert scrape("wse_call_duration_seconds_count", "crash") == 1
    assert scrape("wse_call_duration_seconds_count", "refuse") == 1
    assert scrape("wse_broadcast_duration_seconds_count") == 1
    assert scrape("wse_closes_total", "1000", "wse.by-client") == 2
    await server.close()


async def test_labels_never_come_from_peers():
    server = make_server()
    scrape = Scrape(server)
    server.when.error(lambda err, conn: None)

    @server.register("pass")
    def passed(conn, payload):
        raise WseError(payload)

    async with connect(server) as client:
        before = set(scrape.samples())
        for n in range(50):
            await fails(client.call(f"made-up-{n}"))
            await fails(client.call("pass", f"made-up-{n}"))
            client.send(f"made-up-{n}")
        await soon(client.call("add"))
        new = {sample for sample in set(scrape.samples()) - before if not sample[0].startswith("wse_call_duration")}
        assert new == {("wse_answers_total", "other")}
    for n in range(20):
        async with connect(server, identity=f"made-up-{n}") as client:
            client._connections.session.link.close(4001 + n, f"made-up-{n}")
            with suppress(TimeoutError):
                await soon(client.wait_closed())
    async with asyncio.timeout(TIMEOUT):
        while server.stats().connections:
            await asyncio.sleep(0)
    assert scrape("wse_closes_total", "other", "other") == 20
    assert not any("made-up" in label for sample in scrape.samples() for label in sample)
    await server.close()


async def test_calls_that_are_given_up_are_counted_on_both_sides():
    server = make_server()
    scrape = Scrape(server)
    gate = asyncio.Event()

    @server.register("wait", cancel=True)
    async def wait(conn, payload):
        await gate.wait()

    async with connect(server) as client:
        client.register("never", lambda payload: asyncio.get_running_loop().create_future())
        call = asyncio.ensure_future(client.call("wait"))
        await running(server)
        assert scrape("wse_running_handlers") == 1
        assert scrape("wse_calls_total", "in", "ok") == 0
        call.cancel()
        (conn,) = server.clients["ann"].conns.values()
        await fails(conn.call("never", timeout=0.01), "no answer in time")
        pending = asyncio.ensure_future(conn.call("never"))
        async with asyncio.timeout(TIMEOUT):
            while not scrape("wse_pending_calls"):
                await asyncio.sleep(0)
    await fails(pending, "disconnect")
    async with asyncio.timeout(TIMEOUT):
        while server.stats().running_handlers:
            await asyncio.sleep(0)
    assert scrape("wse_calls_total", "in", "cancelled") == 1
    assert scrape("wse_calls_total", "in", "ok") == 0
    assert scrape("wse_calls_total", "out", "timeout") == 1
    assert scrape("wse_calls_total", "out", "disconnect") == 1
    await server.close()


async def test_a_node_tells_of_its_cluster():
    server = make_server(broker=MemoryBroker())
    scrape = Scrape(server)
    assert scrape("wse_cluster_nodes") == scrape("wse_broker_connected") == 0
    async with connect(server):
        assert scrape("wse_cluster_nodes") == scrape("wse_broker_connected") == scrape("wse_cluster_healthy") == 1
        assert scrape("wse_backlog_messages") == scrape("wse_lost_messages_total") == 0
        assert 0 <= scrape("wse_lease_age_seconds") < TIMEOUT
    await server.close()


async def test_what_is_kept_lost_and_not_delivered_is_counted():
    clock = Clock()
    server = make_server(inbox=Inbox(messages=2, undelivered=60))
    scrape = Scrape(server)
    told = asyncio.Queue()
    server.when.undelivered(lambda cid, type_, payload: told.put_nowait(payload))
    async with connect(server, clock=clock):
        for number in range(5):
            await server.keep("bob", "news", number)
        await server.keep("bob", "news", 4, key="k")
        await server.keep("bob", "news", 4, key="k")  # the same message
        await server.room("lobby").keep("news", 1)
        assert (scrape("wse_kept_messages_total", "user"), scrape("wse_kept_messages_total", "room")) == (6, 1)
        assert scrape("wse_unread_messages") == 7
        await clock.advance(61)
        assert [await soon(told.get()) for _ in range(2)] == [4, 4]  # the others have given way to them
        assert scrape("wse_unread_messages") == 0
        server.send("eve", "news", "hello", fallback=True)
        assert await soon(told.get()) == "hello"
        assert (scrape("wse_undelivered_total", "keep"), scrape("wse_undelivered_total", "send")) == (2, 1)
        async with connect(server, "bob", inbox="phone") as bob:
            assert await soon(bob.when.inbox_lost.wait()) == (4,)
        assert scrape("wse_inbox_lost_messages_total") == 4
    await server.close()


def test_a_server_without_inboxes_has_no_metrics_of_them():
    names = {name for name, *_ in Scrape(make_server()).samples()}
    assert "wse_undelivered_total" in names
    assert not names & {"wse_kept_messages_total", "wse_inbox_lost_messages_total", "wse_unread_messages"}


async def test_metrics_may_be_read_on_another_thread():
    server = make_server()
    scrape = Scrape(server)
    found = []
    async with connect(server) as client:
        thread = threading.Thread(target=lambda: found.append(scrape("wse_connections")))
        thread.start()
        await soon(client.call("add"))
        while thread.is_alive():
            await asyncio.sleep(0)
    assert found == [1]
    await server.close()


async def test_a_server_nobody_collects_from_measures_nothing():
    server = make_server()
    add = server._hub.endpoint.procedures.by_name["add"]
    async with connect(server) as client:
        await client.call("add")
        assert server._hub.endpoint.instruments is None
        assert server._hub.endpoint.procedures.by_name["add"] is add
        scrape = Scrape(server)  # from now on
        await client.call("add")
        assert scrape("wse_call_duration_seconds_count", "add") == 1
        assert scrape("wse_calls_total", "in", "ok") == 2
    await server.close()
    assert server._hub.endpoint.instruments is None
    assert server._hub.endpoint.procedures.by_name["add"] is add
    async with connect(server) as client:  # and again after another start
        await client.call("add")
        assert scrape("wse_call_duration_seconds_count", "add") == 2
    await server.close()


async def test_lag_is_measured_and_procedures_that_come_later_are_timed_as_well():
    server = make_server()
    scrape = Scrape(server)
    async with connect(server) as client:
        server.register("later", lambda conn, payload: payload)
        async with asyncio.timeout(TIMEOUT):
            while ("wse_call_duration_seconds_count", "later") not in scrape.samples():
                await asyncio.sleep(0.01)
        await client.call("later")
        assert scrape("wse_call_duration_seconds_count", "later") == 1
        assert scrape("wse_event_loop_lag_seconds_count") > 0
    await server.close()


async def test_an_async_call_that_is_refused_leaves_no_coroutine_behind():
    server = make_server(limits=Limits(incoming_calls=1))
    Scrape(server)
    gate = asyncio.Event()

    @server.register("wait")
    async def wait(conn, payload):
        await gate.wait()
        return payload

    async with connect(server) as client:
        first = asyncio.ensure_future(client.call("wait", 1))
        await running(server)
        await fails(client.call("wait", 2), "limit-exceeded")
        gate.set()
        assert await soon(first) == 1
    await server.close()


async def test_a_handler_that_is_cancelled_keeps_its_name_in_the_report():
    server = make_server(limits=Limits(handler_linger=0.001))
    Scrape(server)
    reports = []
    server.when.error(lambda err, conn: reports.append(err))

    @server.register("wait")
    async def wait_for_ever(conn, payload):
        await asyncio.get_running_loop().create_future()

    async with connect(server) as client:
        call = asyncio.ensure_future(client.call("wait"))
        await running(server)
    await fails(call)
    async with asyncio.timeout(TIMEOUT):
        while not reports:
            await asyncio.sleep(0)
    assert "wait_for_ever" in reports[0].details["handler"]
    await server.close()


def test_only_some_of_very_many_calls_are_timed_and_the_others_run_as_if_metrics_were_off():
    procedures = Procedures(("payload",), lambda name: None, None)
    procedures.register("add", lambda payload: payload)
    add, clock = procedures.by_name["add"], iter(range(10_000))
    instruments = Instruments(procedures, lambda: next(clock))
    instruments.arm()
    for _ in range(3 * TIMED):
        procedures.by_name["add"](1)
    assert sum(instruments.calls["add"].counts) == TIMED
    assert procedures.by_name["add"] is add
    instruments.arm()
    procedures.by_name["add"](1)
    assert sum(instruments.calls["add"].counts) == TIMED + 1
    procedures.unregister("add")
    procedures.register("add", len)
    instruments.disarm()
    assert procedures.by_name["add"] is len


def test_a_histogram_counts_a_value_in_the_bucket_whose_bound_it_does_not_exceed():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 1, 1], 6.0)


async def test_a_walk_through_all_sessions_takes_several_turns_and_tells_the_last_whole_one(monkeypatch):
    monkeypatch.setattr(survey, "SLICE", 2)
    server = make_server(conns_per_user=10)
    clients = [connect(server, identity=f"user-{n}") for n in range(5)]
    for client in clients:
        await client.__aenter__()
    walk = survey.Survey(server._hub)
    for session in server._hub.sessions:
        session._calls = type("Calls", (), {"waiting": {1: None}, "close": lambda *_: None})()
    assert [walk.step(), walk.pending_calls] == [False, 0]
    assert [walk.step(), walk.pending_calls] == [False, 0]
    assert [walk.step(), walk.pending_calls] == [True, 5]
    for client in clients:
        await client.__aexit__(None, None, None)
    await server.close()


def test_processes_add_up_and_one_that_has_ended_keeps_its_counts():
    def process(number):
        calls = Family("calls", "", "counter", ("direction",)).set(number, "in")
        times = Family("times", "", "histogram")
        histogram = Histogram((1.0,))
        histogram.observe(number)
        times.histograms[()] = Buckets.of(histogram)
        return [
            calls,
            times,
            Family("connections", "", "gauge").set(number),
            Family("oldest", "", "gauge", merge="max").set(number),
            Family("connected", "", "gauge", merge="min").set(number),
        ]

    sent = [Family.from_plain(family.to_plain()) for family in process(3)]
    whole = {family.name: family for family in add_up([process(1), sent])}
    assert {name: family.values.get(()) for name, family in whole.items() if family.kind == "gauge"} == {
        "connections": 4,
        "oldest": 3,
        "connected": 1,
    }
    assert whole["calls"].values == {("in",): 4}
    assert (whole["times"].histograms[()].counts, whole["times"].histograms[()].total) == ([1, 1], 4)
    rest = {family.name: family for family in add_up([process(1), without_gauges(sent)])}
    assert rest["calls"].values == {("in",): 4}
    assert rest["connections"].values == {(): 1}
    assert sent[0].values == {("in",): 3}  # adding changes no process


async def test_a_scrape_costs_the_same_for_any_number_of_connections(caplog):
    """It looks at no session: with so many that a walk takes several turns, it tells the last sums."""
    caplog.set_level(logging.WARNING)
    server = make_server()
    scrape = Scrape(server)
    async with connect(server):
        hub = server._hub
        fakes = [object() for _ in range(50_000)]
        real = set(hub.sockets.open)
        hub.sockets.open.update(fakes)
        try:
            assert scrape("wse_connections") == 50_001
        finally:
            hub.sockets.open.clear()
            hub.sockets.open.update(real)
    await server.close()
