"""The asyncio scheduler: binding, timers, tasks."""

from __future__ import annotations

import asyncio
import sys

from wse.scheduler import AsyncioScheduler


def test_it_is_made_without_a_loop_and_can_be_bound_again_in_another():
    scheduler = AsyncioScheduler()

    async def use_it():
        assert scheduler.bind() is asyncio.get_running_loop()
        future = scheduler.create_future()
        scheduler.call_soon(future.set_result, 1)
        assert await future == 1

    asyncio.run(use_it())
    asyncio.run(use_it())


async def test_it_binds_to_the_running_loop_when_first_used():
    scheduler = AsyncioScheduler()
    assert abs(scheduler.time() - asyncio.get_running_loop().time()) < 5
    assert scheduler.create_future().get_loop() is asyncio.get_running_loop()


async def test_timers_run_in_order_unless_cancelled():
    scheduler = AsyncioScheduler()
    heard = []
    done = scheduler.create_future()
    scheduler.call_later(0.001, heard.append, "cancelled").cancel()
    scheduler.call_later(0.002, done.set_result, None)
    scheduler.call_soon(heard.append, "soon")
    await done
    assert heard == ["soon"]


async def test_a_spawned_coroutine_is_kept_until_it_ends():
    scheduler = AsyncioScheduler()
    gate, ended = scheduler.create_future(), scheduler.create_future()

    async def work():
        await gate
        ended.set_result(None)

    scheduler.spawn(work())
    assert scheduler.running == 1
    gate.set_result(None)
    await ended
    await asyncio.sleep(0)
    assert scheduler.running == 0


async def test_spawned_coroutines_take_their_first_step_in_order_and_at_once_where_python_can():
    scheduler = AsyncioScheduler()
    heard = []

    async def work(name):
        heard.append(name)

    scheduler.spawn(work("a"))
    scheduler.spawn(work("b"))
    if sys.version_info >= (3, 12):
        assert heard == ["a", "b"]
        assert scheduler.running == 0
    await asyncio.sleep(0)
    assert heard == ["a", "b"]
    await asyncio.sleep(0)
    assert scheduler.running == 0


async def test_cancel_all_waits_for_the_end_of_every_task_but_the_one_that_asks():
    scheduler = AsyncioScheduler()
    heard = []
    asked = scheduler.create_future()

    async def stubborn():
        try:
            await scheduler.create_future()
        finally:
            await asyncio.sleep(0)
            heard.append("cleaned up")

    async def asks():
        await asyncio.sleep(0)
        await scheduler.cancel_all()
        asked.set_result(list(heard))

    scheduler.spawn(stubborn())
    scheduler.spawn(asks())
    assert await asked == ["cleaned up"]
    await asyncio.sleep(0)
    assert scheduler.running == 0


def test_after_a_hurry_nothing_is_waited_for_until_the_next_life():
    scheduler = AsyncioScheduler()

    async def waits():
        """Whether each of the two waits, when it is left some turns of the loop."""
        scheduler.bind()
        for hurried in (False, True):
            handler = asyncio.ensure_future(asyncio.Event().wait())
            for wait in (scheduler.pause(3600), scheduler.settle([handler], 3600)):
                waiting = asyncio.ensure_future(wait)
                await asyncio.sleep(0)
                assert waiting.done() is hurried
                waiting.cancel()
            handler.cancel()
            scheduler.hurry()

    for _ in range(2):
        asyncio.run(waits())
