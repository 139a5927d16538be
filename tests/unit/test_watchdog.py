"""Handlers that block the event loop are found and named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from support.net import ServerLog, make_server, soon
from wse import ErrorCode
from wse.testing import connect
from wse.watchdog import Watchdog


def spin(seconds):
    """Keep the thread busy, as a computation would."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def blocking_procedure(conn, payload):
    spin(payload)
    return "done"


async def blocking_later(conn, payload):
    await asyncio.sleep(0)
    spin(payload)


@pytest.fixture
async def server():
    server = make_server(watchdog=0.1)
    server.register("block", blocking_procedure)
    server.register("block-later", blocking_later)
    server.channel.on("block", blocking_procedure)
    async with server:
        yield server


@pytest.mark.parametrize(
    ("how", "name"),
    [("block", "blocking_procedure"), ("block-later", "blocking_later"), ("message", "blocking_procedure")],
)
async def test_a_handler_that_blocks_is_named_with_its_time(server, caplog, how, name):
    log = ServerLog(server)
    async with connect(server, "ann") as client:
        if how == "message":
            client.send("block", 0.5)
        else:
            await soon(client.call(how, 0.5))
        error = await log.error()
    assert error.code == ErrorCode.HANDLER_BLOCKED
    assert error.details["handler"].startswith(f"{name} (")
    assert "test_watchdog.py:" in error.details["handler"]
    assert 0.1 < error.details["seconds"] < 5
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert name in line.getMessage()


async def test_short_handlers_are_not_reported(server, caplog):
    log = ServerLog(server)
    async with connect(server, "ann") as client:
        for _ in range(30):
            await soon(client.call("block", 0.01))
    assert log.all("error") == []


async def test_a_loop_that_something_else_blocks_is_nobody_s_fault(server, caplog):
    log = ServerLog(server)
    spin(0.4)
    turned = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, turned.set)
    await soon(turned.wait())
    assert log.all("error") == []


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "wse-watchdog"]


async def test_its_thread_ends_with_the_server():
    async with make_server():
        (thread,) = watchers()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


async def test_none_has_no_thread():
    async with make_server(watchdog=None):
        assert watchers() == []


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="seconds"):
        Watchdog(threshold, lambda handler, seconds: None)
