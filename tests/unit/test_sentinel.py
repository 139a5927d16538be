"""Asking Sentinels for the primary: played ones, of which some hang, do not know it, refuse or are away."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import pytest
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from support.net import soon
from wse.brokers.redis.sentinel import Sentinels, Setup, split

PRIMARY = b"*2\r\n$8\r\n10.0.0.9\r\n$4\r\n6380\r\n"
UNKNOWN = b"*-1\r\n"
REFUSED = b"-ERR refused\r\n"
HANGS = b""

connect = partial(Connection, protocol=2, socket_timeout=None, retry=Retry(NoBackoff(), 0))


@pytest.fixture
async def sentinels():
    """`await sentinels(*answers)`: those that answer so to the question for the primary of `main`."""
    async with AsyncExitStack() as stack:

        async def make(*answers):
            addresses = []
            for answer in answers:
                server = await asyncio.start_server(partial(play, answer), "127.0.0.1", 0)
                stack.callback(server.close)
                addresses.append(server.sockets[0].getsockname())
            return Sentinels(Setup("redis://primary", "main", addresses), connect)

        yield make


async def play(answer, reader, writer):
    received = b""
    while data := await reader.read(4096):
        received += data
        while b"CLIENT" in received:  # redis-py introduces itself
            received = received.partition(b"CLIENT")[2].rpartition(b"*")[2]
            writer.write(b"+OK\r\n")
        if b"GET-MASTER-ADDR-BY-NAME" in received and received.endswith(b"main\r\n"):
            writer.write(answer)
    writer.close()


@pytest.mark.parametrize("others", [(), (HANGS,), (HANGS, UNKNOWN, REFUSED)])
async def test_the_answer_of_one_that_knows_the_primary_is_taken_without_waiting_for_others(sentinels, others):
    asked = await sentinels(*others, PRIMARY)
    assert await soon(asked.primary()) == ("10.0.0.9", 6380)
    assert await soon(asked.primary()) == ("10.0.0.9", 6380)


async def test_no_question_is_left_behind(sentinels):
    asked = await sentinels(HANGS, PRIMARY)
    before = asyncio.all_tasks()
    await soon(asked.primary())
    assert {task for task in asyncio.all_tasks() - before if task.get_coro().__name__ == "_ask"} == set()


async def test_a_primary_that_none_knows_is_an_error_with_the_last_cause(sentinels):
    asked = await sentinels(UNKNOWN, REFUSED)
    with pytest.raises(ConnectionError, match="no Sentinel knows the primary of main") as caught:
        await soon(asked.primary())
    assert isinstance(caught.value.__cause__, ResponseError)


async def test_sentinels_that_all_hang_are_given_up_with_the_attempt(sentinels):
    asked = await sentinels(HANGS, HANGS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asked.primary()


async def test_sentinels_that_are_away_are_an_error():
    asked = Sentinels(split("redis+sentinel://127.0.0.1:1/main"), connect)
    with pytest.raises(ConnectionError, match="no Sentinel knows the primary of main"):
        await soon(asked.primary())
