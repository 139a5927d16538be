"""`wse top`: what nodes tell, and what is shown of it."""

import asyncio

import pytest
from click.testing import CliRunner

from support.engines import Valkey
from support.net import soon
from wse import WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.cli import top
from wse.cli.commands import wse
from wse.cli.top import Observer, table
from wse.core.cluster.envelope import Answer, encode
from wse.testing import connect


async def test_every_node_tells_what_it_has():
    cluster = MemoryCluster()
    one, two = (WseServer(lambda auth: auth.accept(auth.identity), broker=MemoryBroker(cluster)) for _ in range(2))
    observer = Observer(MemoryBroker(cluster))
    async with connect(one, "ann") as ann, connect(two, "ben"), connect(two, "eve"):
        await observer.open()
        one.register("add", lambda conn, payload: payload)
        assert await soon(ann.call("add", 1)) == 1
        users, nodes = await observer.ask()
        assert users == 3
        assert {node: told["connections"] for node, told in nodes.items()} == {one.cluster.node: 1, two.cluster.node: 2}
        assert nodes[one.cluster.node]["calls_in"] == 1
        assert nodes[one.cluster.node]["uptime"] >= 0
    await one.close()
    await two.close()
    assert await observer.ask() == (0, {})
    await observer.close()


async def test_a_node_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(top, "ANSWER_TIMEOUT", 0.01)
    cluster = MemoryCluster()
    server = WseServer(lambda auth: auth.accept(auth.identity), broker=MemoryBroker(cluster))
    observer = Observer(MemoryBroker(cluster))
    async with connect(server, "ann"):
        del server._hub.network.rpc.queries["stats"]  # as in an older version
        await observer.open()
        users, nodes = await observer.ask()
        assert (users, nodes) == (1, {server.cluster.node: {}})
        for data in (b"nonsense", encode(Answer("x", 1, {})), encode(Answer(server.cluster.node, 99, {}))):
            observer.received("n.x", data)  # of no question
        await observer.close()
    await server.close()
    assert "no answer" in table("nats://x", users, nodes, {}, 1)


def test_rates_are_per_second_and_what_makes_no_sense_is_nothing():
    now = {
        "a": {"uptime": 90061, "connections": 3, "users": 2, "messages_in": 30, "calls_in": "x"},
        "b": {"uptime": 61},
    }
    before = {"a": {"messages_in": 10, "messages_out": 5, "calls_in": 0}}
    head, _, heads, *rows = table("nats://x", 5, now, before, 2.0).splitlines()
    assert head == "nats://x   nodes: 2   users: 5   connections: 3"
    assert heads.split()[:4] == ["NODE", "UPTIME", "CONNS", "USERS"]
    assert rows[0].split() == ["a", "1d", "1h", "3", "2", "0", "10.0", "0.0", "0.0", "0.0", "0"]
    assert rows[1].split()[:3] == ["b", "1m", "01s"]


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("gopher://x", 2, "no broker has URLs"),
        ("redis://127.0.0.1:1", 1, "wse.server.broker-unavailable: the broker cannot be reached"),
    ],
)
def test_a_broker_that_is_none_is_told(url, status, said):
    result = CliRunner().invoke(wse, ["top", url, "--once"])
    assert (result.exit_code, said in result.output) == (status, True), result.output


async def test_the_command_shows_a_cluster_on_a_real_engine(tmp_path):
    with Valkey(tmp_path) as engine:
        url = engine.url()
        server = WseServer(lambda auth: auth.accept(auth.identity), broker=url)
        async with connect(server, "ann"):
            command = ["top", url, "--once", "--interval", "0.1"]
            result = await asyncio.to_thread(CliRunner().invoke, wse, command)
            assert result.exit_code == 0, result.output
            assert "nodes: 1   users: 1   connections: 1" in result.output
            assert server.cluster.node in result.output
        await server.close()
