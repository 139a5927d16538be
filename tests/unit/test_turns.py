"""A bound on how much goes on at a time."""

import pytest

from support.core import FakeScheduler
from wse.core.cluster.turns import Turns


@pytest.fixture
def scheduler():
    return FakeScheduler()


def test_others_wait_for_their_turn_in_the_order_in_which_they_came(scheduler):
    turns = Turns(scheduler, 2)
    began = []

    async def work(n):
        await turns.take()
        began.append(n)

    for n in range(6):
        scheduler.start(work(n))
    scheduler.run()
    assert began == [0, 1]
    turns.give()
    scheduler.run()
    assert began == [0, 1, 2]
    for _ in range(5):
        turns.give()
    scheduler.run()
    assert began == [0, 1, 2, 3, 4, 5]
    assert turns._free == 2


@pytest.mark.parametrize("given_before", [True, False])
def test_one_that_is_cancelled_while_it_waits_takes_no_turn(scheduler, given_before):
    turns = Turns(scheduler, 1)
    scheduler.start(turns.take())
    waiting = scheduler.start(turns.take())
    other = scheduler.start(turns.take())
    scheduler.run()
    if given_before:
        turns.give()
    waiting.cancel()
    scheduler.run()
    if not given_before:
        turns.give()
    scheduler.run()
    assert waiting.cancelled()
    assert other.done()
    assert other.exception() is None
    turns.give()
    assert turns._free == 1
