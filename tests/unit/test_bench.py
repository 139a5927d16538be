"""The benchmark's own parts, without the peers: what it prints, what it counts, and its programs in C."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import count
from pathlib import Path

import pytest
from websockets.asyncio.server import serve

from wse import WseClient, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster

BENCH = Path(__file__).parents[2] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="no bench/ here, as in a source distribution")


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def module(name):
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """`program(name)` compiles a program of bench/load and gives its path."""
    sys.path.insert(0, str(BENCH))
    try:
        env = importlib.import_module("harness.env")
    finally:
        sys.path.remove(str(BENCH))
    if env.compiler() is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")
    return lambda name: str(env.compile_c(name, folder))


# What it prints.


def results(**changed):
    figures = {"cpu_us": 5.0, "kernel_us": 3.0, "ops_per_s": 123456.0, "p50_ms": 0.25, "p99_ms": 1.5}
    floor = {**figures, "cpu_us": 4.0}
    return {
        "when": "2026-01-02 03:04 UTC",
        "command": "python bench/run.py",
        "machine": {"cpu": "A <CPU>", "cores": 2, "memory": "8.0 GiB", "system": "Linux 6", "load_before": 0.1},
        "versions": {"Python": "CPython 3.11.7"},
        "settings": {"rounds": 5, "idle_rounds": 3, "seconds": 1.0, "connections": {"connect": [800, 400]}},
        "notes": ["one thing"],
        "medians": {
            "call-1": {"floor": floor, "wse": figures},
            "call-32": {"floor": floor, "wse": figures},
            "connect": {"wse": {**figures, "rss_kib": 11.04}},
            "client-32": {"wse": figures},
        },
        **changed,
    }


def test_the_summary_has_a_row_for_each_server_and_ratios_where_they_mean_something():
    lines = module("harness.report").summary(results()).splitlines()
    assert lines[0] == "| server | call, 1 in flight | call, 32 in flight | connect | idle connection |"
    assert lines[2] == "| C floor | 4.00 µs (1.00 C) | 4.00 µs |  |  |"
    assert lines[3] == "| wse | 5.00 µs (1.25 C) | 5.00 µs | 5.00 µs | 11.0 KiB |"
    assert "- C floor: moves bytes, parses no JSON." in lines


def test_the_report_tells_circumstances_and_lower_counts():
    text = module("harness.report").markdown(results())
    assert "`python bench/run.py`: medians of 5 rounds" in text
    assert "A <CPU>, 2 cores, 8.0 GiB" in text
    assert "Note: one thing." in text
    assert "**Connect and authenticate 400, then hold 800 idle**" in text
    assert "| WseClient | 5.00 µs | 3.00 µs | 123,456 | 0.25 ms | 1.50 ms |" in text


def test_an_empty_run_is_reported_too():
    report = module("harness.report")
    assert "Machine:" in report.markdown(results(medians={}))
    ET.fromstring(report.svg(results(medians={})))


def test_the_plot_is_well_formed_and_has_a_bar_for_each_figure():
    root = ET.fromstring(module("harness.report").svg(results()))
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == "17"]
    assert len(bars) == 2 + 2 + 1 + 1 + 1
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "11.0 KiB" in texts
    assert any("A <CPU>" in text for text in texts)


def test_the_page_is_updated_between_its_marks(tmp_path):
    report = module("harness.report")
    page = tmp_path / "speed.md"
    page.write_text(
        "a\n<!-- bench:begin -->of yesterday<!-- bench:end -->\n"
        "b\n<!-- instructions:begin --><!-- instructions:end -->\n"
    )
    records = [{"build": {"python": "CPython 3.11.7", "msgspec": "1", "picows": "2"}, "counts": {"message": 6000}}]
    for _ in range(2):  # the second time changes nothing
        report.update_docs(results(), records, page)
        text = page.read_text()
        assert text.startswith("a\n<!-- bench:begin -->\n\n![")
        assert "of yesterday" not in text
        assert text.count("| wse | 5.00 µs (1.25 C)") == 1
        assert "| message | 6,000 |" in text
    ET.fromstring((tmp_path / "speed.svg").read_text())
    page.write_text("no marks")
    with pytest.raises(ValueError, match="needs the marks"):
        report.update_docs(results(), records, page)


@pytest.mark.parametrize(("value", "text"), [(0.126, "0.13"), (5, "5.00"), (12.34, "12.3"), (1234.5, "1,234")])
def test_numbers_have_three_digits_that_count(value, text):
    assert module("harness.report").number(value) == text


# What it runs.


def test_typed_calls_compare_servers_that_check_and_two_that_do_not():
    peers = module("harness.peers")
    works = {work.name: work for work in peers.WORKLOADS}
    for work in (works["typed-1"], works["typed-32"]):
        assert [peer.name for peer in peers.PEERS if peer.does(work)] == [
            "wse", "wse-msgspec", "wse-pydantic", "python-socketio", "pydantic-socketio", "chanx",
        ]  # fmt: skip
    assert "chanx" not in [peer.name for peer in peers.PEERS if peer.does(works["call-1"])]


def test_unknown_peers_and_workloads_are_refused(capsys):
    run = module("run")
    assert run.arguments(["--peers", "wse,floor", "--workloads", "call-1"]).peers == ["wse", "floor"]
    for argv in (["--peers", "nobody"], ["--workloads", "nothing"]):
        with pytest.raises(SystemExit):
            run.arguments(argv)
        assert f"unknown {argv[0][2:]}: {argv[1]}" in capsys.readouterr().err


def test_counts_are_lowered_where_files_are_few_and_that_is_said():
    run = module("run")
    notes = []
    works = {work.name: work for work in run.works(run.arguments([]), 3000, notes)}
    assert (works["connect"].connections, works["connect"].window) == (3000, 1500)
    assert (works["return"].connections, works["return"].window) == (3000, 3000)
    assert (works["client-32"].connections, works["client-32"].window) == (1, 32)
    assert works["fanout-1"].connections == 1000
    assert notes == [f"`ulimit -Hn` allows 3,000 connections for {name}, not 10,000" for name in ("connect", "return")]
    assert {work.connections for work in run.works(run.arguments(["--quick"]), 20000, [])} <= {1, 50, 200}


def test_rounds_begin_elsewhere_each_time():
    rotated = module("harness.measure").rotated
    assert [rotated([1, 2, 3], by) for by in range(4)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
    assert rotated([], 1) == []


def test_servers_and_load_are_on_different_cores():
    measure = module("harness.measure")
    assert measure.split_cores({0, 1}) == ({0}, {1})
    assert measure.split_cores({2, 3, 5}) == ({2, 3}, {5})
    assert measure.split_cores({4}) is None
    before = os.sched_getaffinity(0)
    with measure.on_cores({max(before)}):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_medians_are_of_each_figure():
    measure = module("harness.measure")
    run = measure.Run(None, None)
    run.samples = {"call-1": {"wse": [{"a": 1, "b": 9}, {"a": 3, "b": 7}, {"a": 2, "b": 8}]}}
    assert run.medians() == {"call-1": {"wse": {"a": 2, "b": 8}}}


def test_what_cannot_run_is_skipped_with_a_reason(tmp_path):
    env = module("harness.env").Environment(Path(sys.executable), None, tmp_path, tmp_path)
    assert env.missing("ours", ("msgspec", "picows")) == ""
    assert env.missing("python", ("msgspec", "no_such_module")) == "not installed: no_such_module"
    assert env.missing("node", ("ws",)) == "node is not installed"


# Its programs in C.


async def load(program, port, *arguments):
    """Run the load generator; its status, and its result or what it complains of."""
    command = [program("load"), "127.0.0.1", str(port), *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, json.loads(out) if process.returncode == 0 else err.decode(errors="replace")


@pytest.fixture
async def server():
    numbers = count(1)
    server = WseServer(lambda auth: auth.accept(f"u{next(numbers)}") if auth.identity == "secret" else None, port=0)
    server.register("echo", lambda conn, payload: payload)
    server.channel.on("fan", lambda conn, payload: server.broadcast("fan", payload))

    @server.channel.on("more")
    def more(conn, number):
        for n in range(conn.data.setdefault("sent", 0), conn.data["sent"] + number):
            conn.send("item", {"a": 5, "b": 3, "n": n})
        conn.data["sent"] += number

    @server.register("items")
    async def items(conn, payload):
        for n in count():
            yield {"a": 5, "b": 3, "n": n}

    async with server:
        yield server


@pytest.fixture(params=["wse", "wse-resume"])
async def dialect(request, server):
    """With resume, the server must have confirmed and been confirmed what it keeps, and must not close a session."""
    lost = []
    server.when.error(lambda error, conn: lost.append(error))
    yield request.param
    assert lost == []


@pytest.mark.parametrize("window", [1, 32])
async def test_calls_are_made_and_answered(program, server, dialect, window):
    status, result = await load(program, server.port, dialect, "call", 10, window, 0.1, 0.02, 0)
    assert status == 0, result
    assert result["ops"] > 10 * window
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert not server.clients  # the program closed its connections before it ended


async def test_broadcasts_reach_everybody_in_order(program, server, dialect):
    status, result = await load(program, server.port, dialect, "fanout", 20, 4, 0.1, 0.02, 0)
    assert status == 0, result
    assert result["ops"] >= 20


@pytest.mark.parametrize("kind", ["wse", "wse-resume", "wse-stream"])
async def test_items_are_taken_and_credit_is_granted(program, server, kind):
    status, result = await load(program, server.port, kind, "items", 10, 32, 0.1, 0.02, 0)
    assert status == 0, result
    assert result["ops"] > 10 * 32
    assert 0 < result["p50_ms"] <= result["p99_ms"]


async def test_an_item_out_of_order_ends_the_load(program, server):
    server.channel.off("more")
    server.channel.on("more", lambda conn, number: conn.send("item", {"a": 5, "b": 3, "n": 1}))
    status, complaint = await load(program, server.port, "wse", "items", 1, 2, 0.1, 0, 0)
    assert status == 1
    assert complaint.startswith("not the item that is due")


async def test_idle_connections_are_counted(program, server, dialect):
    status, result = await load(program, server.port, dialect, "idle", 30, 20, 0.01, 0, 0)
    assert status == 0, result
    assert result["ops"] == 20


async def test_a_wrong_answer_ends_the_load(program, server):
    server.unregister("echo")
    server.register("echo", lambda conn, payload: {**payload, "a": 6})
    status, complaint = await load(program, server.port, "wse", "call", 2, 1, 0.1, 0, 0)
    assert status == 1
    assert complaint.startswith('not the answer that is due: ["~wse:response",{"a":6')


async def test_a_lost_broadcast_ends_the_load(program, server):
    server.channel.off("fan")
    server.channel.on("fan", lambda conn, payload: payload["n"] == 1 or server.broadcast("fan", payload))
    status, complaint = await load(program, server.port, "wse", "fanout", 3, 3, 0.1, 0, 0)
    assert status == 1
    assert complaint.startswith("a broadcast out of order")


async def test_a_server_that_does_not_upgrade_ends_the_load(program):
    async def nothing(connection): ...

    async with serve(nothing, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        status, complaint = await load(program, port, "wse", "call", 1, 1, 0.1, 0, 0)
    assert status == 1
    assert complaint.startswith("no subprotocol")


@pytest.fixture
async def floor(program):
    port = module("harness.measure").free_port()
    process = subprocess.Popen([program("floor"), str(port)])
    try:
        assert await asyncio.to_thread(module("harness.measure").listens, port, process, 10)
        yield port
    finally:
        process.terminate()
        process.wait(10)


async def test_the_floor_answers_a_client(floor):
    async with WseClient(f"ws://127.0.0.1:{floor}/") as client:
        for payload in ({"a": 1}, "x" * 300, None):
            assert await client.call("echo", payload) == payload


@pytest.mark.parametrize(("mode", "window"), [("call", 1), ("call", 32), ("fanout", 4)])
async def test_the_floor_stands_the_load(program, floor, mode, window):
    status, result = await load(program, floor, "wse", mode, 20, window, 0.1, 0.02, 0)
    assert status == 0, result
    assert result["ops"] >= 20


@pytest.mark.slow
def test_a_quick_run_of_ours_beside_the_floor(program, tmp_path):
    program("load")  # skips without a compiler
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        BENCH / "run.py",
        "--quick",
        "--no-install",
        "--peers",
        "floor,wse,wse-stream,wse-resume",
    ]
    done = subprocess.run([*command, "--json", out], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    medians = json.loads(out.read_text())["medians"]
    assert set(medians) == {work.name for work in module("harness.peers").WORKLOADS}
    assert set(medians["return"]) == set(medians["connect"]) - {"floor"} == {"wse", "wse-resume"}
    assert set(medians["call-1"]) == {"floor", "wse", "wse-resume"}
    assert set(medians["items-32"]) == {"wse", "wse-stream", "wse-resume"}
    assert medians["connect"]["wse"]["rss_kib"] > 0
    assert "| wse |" in done.stdout


# Clusters.


@pytest.fixture
async def nodes():
    cluster = MemoryCluster()
    nodes = []
    for _ in range(2):
        node = WseServer(
            lambda auth: auth.accept(auth.identity.partition(":")[2]), port=0, broker=MemoryBroker(cluster)
        )
        node.channel.on("fan", lambda conn, payload, node=node: node.broadcast("fan", payload))
        node.channel.on("pass", lambda conn, payload, node=node: node.send(payload["to"], "passed", payload))
        nodes.append(node)
    async with nodes[0], nodes[1]:
        yield nodes


def ports_of(nodes):
    return ",".join(str(node.port) for node in nodes)


@pytest.mark.parametrize("arguments", [(1,), (8,), (1, 200)])
async def test_messages_reach_the_user_on_the_other_node_in_order(program, nodes, arguments):
    window, *rate = arguments
    status, result = await load(
        program, ports_of(nodes), "wse", "pass", 20, window, 1, 0.1, os.getpid(), os.getpid(), *rate
    )
    assert status == 0, result
    assert result["ops"] >= 10
    assert result["engine_us"] > 0
    assert not rate or result["ops_per_s"] < 2 * rate[0]


async def test_broadcasts_reach_everybody_on_both_nodes(program, nodes):
    status, result = await load(program, ports_of(nodes), "wse", "fanout", 20, 4, 0.1, 0.02, 0)
    assert status == 0, result
    assert result["ops"] >= 20


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [([0, 0], "an answer that nobody waits for"), ([1, 0], "a message out of order")],
    ids=["doubled", "overtaken"],
)
async def test_a_message_that_does_not_come_once_and_in_order_ends_the_load(program, nodes, sent, complaint):
    payloads = []

    def faulty(conn, payload):
        payloads.append(payload)
        if len(payloads) == 2:
            for number in sent:
                nodes[0].send(payload["to"], "passed", payloads[number])

    nodes[0].channel.off("pass")
    nodes[0].channel.on("pass", faulty)
    status, said = await load(program, ports_of(nodes), "wse", "pass", 2, 2, 0.1, 0, 0)
    assert status == 1
    assert said.startswith(complaint)


async def test_held_connections_have_users_of_their_own_until_input_ends(program, nodes):
    command = [program("load"), "127.0.0.1", ports_of(nodes), "wse", "hold", "6", "6", "0", "0", "0", "0", "100"]
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["ops"] == 6
    assert {cid for node in nodes for cid in node.clients} == {f"u{number}" for number in range(100, 106)}
    assert all(len(node.clients) == 3 for node in nodes)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.slow
def test_a_quick_run_of_clusters(program, tmp_path):
    program("load")  # skips without a compiler
    out = tmp_path / "results.json"
    command = [sys.executable, BENCH / "cluster.py", "--quick", "--no-install", "--kinds", "wse-nats,wse-valkey"]
    done = subprocess.run([*command, "--json", out], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results["medians"]) == {"pass-1", "pass-8", "pass-half", "fanout-1", "fanout-4"}
    for by_kind in results["medians"].values():
        assert set(by_kind) == {"wse-nats", "wse-valkey"}
    for by_rate in results["rates"].values():
        assert by_rate["1000"]["ops_per_s"] == pytest.approx(1000, rel=0.5)
    assert {name: figures.get("lost_users") for name, figures in results["spread"].items()} == {
        "alone": None,
        "wse-nats": 20,
        "wse-valkey": 20,
    }
    for by_nodes in results["engines"].values():
        assert by_nodes["100"] > by_nodes["1"]
    assert "| wse, NATS |" in done.stdout
    page = tmp_path / "scale.md"
    page.write_text("a\n<!-- cluster:begin --><!-- cluster:end -->\nb\n")
    module("harness.cluster_report").update_docs(results, page)
    assert "| wse, NATS |" in page.read_text()


def test_unknown_kinds_are_refused_and_all_is_measured_by_default(capsys):
    arguments = module("cluster").arguments
    assert arguments([]).workloads[-3:] == ["rates", "spread", "engines"]
    assert arguments(["--kinds", "socketio"]).kinds == ["socketio"]
    with pytest.raises(SystemExit):
        arguments(["--kinds", "nobody"])
    assert "unknown kinds: nobody" in capsys.readouterr().err


# Instruction counts.


def test_a_count_is_the_difference_of_two_lengths():
    instructions = module("instructions")
    dumps = []
    for _, times in instructions.OPERATIONS.values():
        dumps += [10**9, 500 + 100 * times, 500 + 100 * times, 500 + 100 * times * instructions.LONG]
    assert set(instructions.counts_of(dumps).values()) == {100}


@pytest.mark.parametrize(
    ("now", "failed", "says"), [(1049, False, "+4.9%"), (1051, True, "ROSE"), (940, False, "fell")]
)
def test_only_a_rise_of_more_than_5_percent_fails(now, failed, says):
    lines, result = module("instructions").compare({"message": now, "new": 5}, {"message": 1000})
    assert result is failed
    assert says in lines[0]
    assert lines[1].endswith("not recorded")


@pytest.mark.parametrize(("struct", "model", "failed"), [(1150, 1450, False), (1151, 1450, True), (1150, 1451, True)])
def test_typed_calls_may_cost_only_so_much_more(struct, model, failed):
    counts = {"sync call": 1000, "sync call, payload typed": struct, "sync call, payload of pydantic": model}
    lines, result = module("instructions").typed({**counts, "sync call, no result": 900, "pydantic alone": 500})
    assert result is failed
    assert "1.15 times" in lines[0]
    assert "1.10 times" in lines[1]
    assert ("MORE" in "".join(lines)) is failed


def test_records_are_kept_by_build():
    instructions = module("instructions")
    one = instructions.build()
    newer = {**one, "msgspec": "999"}
    other = {**one, "python": "CPython 3.99"}
    records = instructions.put([], one, {"message": 1})
    records = instructions.put(records, other, {"message": 2})
    assert instructions.find(records, one) == {"message": 1}
    assert instructions.find(records, newer) is None
    records = instructions.put(records, newer, {"message": 3})
    assert instructions.find(records, one) is None
    assert [instructions.find(records, which) for which in (newer, other)] == [{"message": 3}, {"message": 2}]


def test_every_operation_does_what_it_says():
    """Without valgrind: each checks its own work."""
    command = [sys.executable, BENCH / "instructions.py", "--work"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_without_valgrind_it_says_so_and_passes(monkeypatch, capsys):
    instructions = module("instructions")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    assert instructions.main() == 0
    assert capsys.readouterr().out == "instructions: not counted, valgrind is not installed\n"


def test_without_a_record_for_this_build_it_says_so_and_passes(monkeypatch, capsys, tmp_path):
    instructions = module("instructions")
    monkeypatch.setattr(instructions.shutil, "which", lambda name: "/bin/false")
    monkeypatch.setattr(instructions, "BASELINE", tmp_path / "none.json")
    monkeypatch.setattr(sys, "argv", ["instructions.py"])
    assert instructions.main() == 0
    assert capsys.readouterr().out.startswith("instructions: not compared, none are recorded for this build: CPython")


def test_servers_that_are_compared_use_public_names_only():
    for server in (BENCH / "servers").glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(server.read_text())) if isinstance(node, ast.Attribute)}
        assert not {name for name in names if name.startswith("_")}, server.name


@pytest.mark.slow
def test_the_cost_of_presence_is_measured_and_within_its_bound():
    command = [sys.executable, BENCH / "presence.py", "--members", "100", "--seconds", "1", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 members in a room of two nodes" in done.stdout
