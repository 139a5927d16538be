"""Metrics under a real Prometheus: what it scrapes, the alert rules, and the queries of the Grafana dashboard."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
import pytest

from support.net import make_server, soon
from support.programs import ROOT, free_port
from wse import WseClient
from wse.brokers.memory import MemoryBroker
from wse.prometheus import exposition

DEPLOY = ROOT / "examples" / "deploy"
PATIENCE = 60.0

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus here")


def names_in(text):
    """The names of metrics in a query."""
    return set(re.findall(r"\bwse_\w+", text))


@pytest.fixture(scope="module")
def known():
    """The names of all samples of a node of a cluster."""
    server = make_server(broker=MemoryBroker(), metrics="/metrics")
    _, text = exposition(server._metrics.read(), "")
    names = {line.split("{")[0].split(" ")[0] for line in text.decode().splitlines() if not line.startswith("#")}
    families = re.findall(r"# TYPE (\w+) (\w+)", text.decode())
    names |= {f"{name}_bucket" for name, kind in families if kind == "histogram"}
    return names | {name for name, _ in families}


def queries():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_the_dashboard_and_the_alerts_name_only_metrics_that_there_are(known):
    wanted = names_in(" ".join(queries())) | names_in((DEPLOY / "alerts.yml").read_text())
    assert wanted - known == set()
    assert len(wanted) > 20


def test_the_dashboard_s_panels_have_places_of_their_own():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)


@needs_prometheus
def test_promtool_finds_no_fault_in_configuration_and_rules():
    done = subprocess.run(
        ["promtool", "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 rules found" in done.stdout + done.stderr


@needs_prometheus
def test_promtool_finds_no_fault_in_what_a_server_serves():
    server = make_server(broker=MemoryBroker(), metrics="/metrics")
    _, text = exposition(server._metrics.read(), "")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@asynccontextmanager
async def prometheus(target, folder):
    """A Prometheus with the repository's files that scrapes one target many times a second; yields its URL's port."""
    port = free_port()
    text = (DEPLOY / "prometheus.yml").read_text()
    text = text.replace("15s", "200ms").replace("127.0.0.1:4200", target)
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "alerts.yml", folder)
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        await process.wait()


async def get(port, path):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}{path}")
        return answer.status_code, answer.json()


async def ask(port, query, wanted):
    """The values of a query, once there is an answer for which `wanted` is true."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                status, answer = await get(port, f"/api/v1/query?query={quote(query)}")
            except (httpx.TransportError, ValueError):
                await asyncio.sleep(0.1)  # another program's start can be seen in no other way
                continue
            values = [float(found["value"][1]) for found in answer["data"]["result"]] if status == 200 else []
            if wanted(values):
                return values
            await asyncio.sleep(0.1)


@needs_prometheus
async def test_prometheus_scrapes_a_server_and_evaluates_its_rules(tmp_path):
    server = make_server(broker=MemoryBroker(), metrics="/metrics")
    server.register("add", lambda conn, payload: payload)
    async with server, prometheus(f"127.0.0.1:{server.port}", tmp_path) as port:
        async with WseClient(server.url, identity="ann") as client:
            for n in range(3):
                assert await soon(client.call("add", n)) == n
            assert await ask(port, "wse_connections", bool) == [1]
            assert await ask(port, 'wse_calls_total{direction="in",outcome="ok"}', lambda found: found == [3]) == [3]
            assert await ask(port, 'wse_call_duration_seconds_count{procedure="add"}', bool) == [3]
        await ask(port, "wse_connections", lambda found: found == [0])
        _, rules = await get(port, "/api/v1/rules")
        states = [(rule["health"], rule["state"]) for group in rules["data"]["groups"] for rule in group["rules"]]
        assert len(states) == 9
        assert set(states) <= {("ok", "inactive"), ("unknown", "inactive")}
        for query in queries():
            plain = query.replace("$__rate_interval", "1m").replace("$job", ".*")
            status, answer = await get(port, f"/api/v1/query?query={quote(plain)}")
            assert (status, answer["status"]) == (200, "success"), query
