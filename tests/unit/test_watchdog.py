"""Handlers that block the event loop are found and named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from support.net import TIMEOUT, ServerLog, make_server, soon
from wse import ErrorCode
from wse.server.watchdog import Watchdog
from wse.testing import connect


def block_until_found(conn, payload):
    """Keep the thread busy, as a computation would, until the watchdog has seen it."""
    end = time.monotonic() + 30
    while not FOUND and time.monotonic() < end:
        pass
    end = time.monotonic() + 0.1  # it is found once, however often the watchdog looks
    while time.monotonic() < end:
        pass


async def block_later(conn, payload):
    await asyncio.sleep(0)
    block_until_found(conn, payload)


FOUND = []


class Finder(logging.Handler):
    """Takes note of what the watchdog's thread logs."""

    def emit(self, record):
        if record.threadName == "wse-watchdog":
            FOUND.append(record.getMessage())


@pytest.fixture
def finder():
    handler = Finder()
    logger = logging.getLogger("wse")
    logger.addHandler(handler)
    FOUND.clear()
    yield
    logger.removeHandler(handler)


def new_server(threshold):
    server = make_server(watchdog=threshold)
    server.register("block", block_until_found)
    server.register("block-later", block_later)
    server.register("echo", lambda conn, payload: payload)
    server.channel.on("block", block_until_found)
    return server


@pytest.mark.parametrize(
    ("how", "name"), [("block", "block_until_found"), ("block-later", "block_later"), ("message", "block_until_found")]
)
async def test_a_handler_that_blocks_is_named_with_its_time(finder, how, name):
    server = new_server(0.1)
    log = ServerLog(server)
    async with server, connect(server, "ann") as client:
        if how == "message":
            client.send("block")
        else:
            await client.call(how)
        error = await log.error()
    assert error.code == ErrorCode.HANDLER_BLOCKED
    assert error.details["handler"].startswith(f"{name} (")
    assert "test_watchdog.py:" in error.details["handler"]
    assert error.details["seconds"] >= 0.1
    assert [name in line for line in FOUND] == [True]


async def test_a_blocked_loop_is_reported_when_nobody_listens_too(finder, caplog):
    async with new_server(0.1) as server, connect(server, "ann") as client:
        await client.call("block")
        async with asyncio.timeout(TIMEOUT):
            while not any("handler-blocked" in record.getMessage() for record in caplog.records):
                await asyncio.sleep(0)


async def test_short_handlers_are_not_reported(finder):
    server = new_server(20)
    log = ServerLog(server)
    async with server, connect(server, "ann") as client:
        for n in range(100):
            assert await soon(client.call("echo", n)) == n
    assert log.all("error") == []
    assert FOUND == []


async def test_a_loop_that_something_else_blocks_is_nobody_s_fault(finder):
    server = new_server(0.1)
    log = ServerLog(server)
    async with server:
        looks = 0
        stopped = server._lifecycle._companions[0]._stopped
        wait = stopped.wait

        def count(timeout):
            nonlocal looks
            looks += 1
            return wait(timeout)

        stopped.wait = count
        end = time.monotonic() + 30
        while looks < 10 and time.monotonic() < end:
            pass  # not a handler's doing
        assert looks >= 10
        turned = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, turned.set)
        await soon(turned.wait())
    assert log.all("error") == []
    assert FOUND == []


async def test_its_thread_ends_with_its_loop(finder):
    before = watchers()
    threads = []

    async def forget_to_close():
        server = make_server()
        await server.start()
        server._lifecycle._listener.close()  # only so that no socket is left
        threads.extend(set(watchers()) - set(before))

    await asyncio.to_thread(asyncio.run, forget_to_close())
    (thread,) = threads
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "wse-watchdog"]


async def test_its_thread_ends_with_the_server():
    before = watchers()
    async with make_server():
        (thread,) = set(watchers()) - set(before)
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


async def test_none_has_no_thread():
    before = watchers()
    async with make_server(watchdog=None):
        assert set(watchers()) <= set(before)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="seconds"):
        Watchdog(threshold, lambda handler, seconds: None)
