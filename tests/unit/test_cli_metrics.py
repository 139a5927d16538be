"""The sums of several workers' metrics."""

import asyncio
import socket

import pytest

from support.net import TIMEOUT
from wse import WseServer
from wse.cli import metrics
from wse.cli.metrics import ASK, Sums, parse_address, send_report


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9300", ("127.0.0.1", 9300)), (":1", (None, 1)), ("[::1]:80", ("::1", 80)), ("host:0", ("host", 0))],
)
def test_an_address_is_a_host_and_a_port(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "9300", "host:", "host:x", "host:65536", "host:-1", "host:\u0661"])
def test_anything_else_is_none(text):
    with pytest.raises(ValueError, match="an address looks like"):
        parse_address(text)


async def value(sums, name):
    return {family.name: family.values.get(()) for family in await sums.read()}.get(name)


async def test_a_worker_that_does_not_answer_counts_with_its_last_report(monkeypatch):
    monkeypatch.setattr(metrics, "ANSWER_TIMEOUT", 0.01)
    server, sums = WseServer(lambda auth: None), Sums()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reports = sums.add()
    assert await sums.read() == []  # it is not ready
    await reports.open(ours)
    server._hub.endpoint.counters.opened = 3

    async def answer():
        assert await asyncio.to_thread(theirs.recv, 10) == ASK
        send_report(theirs, server)

    with theirs:
        monkeypatch.setattr(metrics, "ANSWER_TIMEOUT", TIMEOUT)
        _, opened = await asyncio.gather(answer(), value(sums, "wse_connections_opened"))
        assert opened == 3
        monkeypatch.setattr(metrics, "ANSWER_TIMEOUT", 0.01)
        server._hub.endpoint.counters.opened = 4
        assert await value(sums, "wse_connections_opened") == 3
        assert await value(sums, "wse_connections_opened") == 3  # it is asked once
        monkeypatch.setattr(metrics, "ANSWER_TIMEOUT", TIMEOUT)
        _, opened = await asyncio.gather(answer(), value(sums, "wse_connections_opened"))
        assert opened == 4
    assert await value(sums, "wse_connections_opened") == 4
    assert await value(sums, "wse_connections") == 0
    sums.remove(reports)
    sums.remove(reports)  # harmless
    assert await value(sums, "wse_connections_opened") == 4
    assert await value(sums, "wse_connections") is None
    ours.close()
