"""How long a client waits before it reconnects."""

import pytest

from wse import Backoff


def test_the_bound_grows_by_the_factor_up_to_the_cap():
    backoff = Backoff(base=1, cap=10, factor=2, random=lambda: 1.0)
    assert [backoff.delay(n) for n in range(6)] == [1, 2, 4, 8, 10, 10]


def test_the_wait_is_anywhere_from_nothing_to_the_bound():
    assert Backoff(base=4, random=lambda: 0.0).delay(3) == 0
    assert Backoff(base=4, random=lambda: 0.25).delay(0) == 1
    delays = [Backoff(base=2, cap=2).delay(n) for n in range(200)]
    assert all(0 <= delay <= 2 for delay in delays)
    assert len(set(delays)) > 100


@pytest.mark.parametrize("attempt", [1_000, 10_000, 10**9])
def test_any_number_of_attempts_stays_at_the_cap(attempt):
    assert Backoff(random=lambda: 1.0).delay(attempt) == 30


def test_a_factor_of_one_does_not_grow():
    backoff = Backoff(base=2, factor=1, random=lambda: 1.0)
    assert [backoff.delay(n) for n in (0, 1, 100)] == [2, 2, 2]


def test_a_base_of_zero_never_waits():
    assert Backoff(base=0, random=lambda: 1.0).delay(7) == 0


@pytest.mark.parametrize("options", [{"base": -1}, {"cap": -1}, {"factor": 0.5}])
def test_arguments_out_of_their_range_are_rejected(options):
    with pytest.raises(ValueError, match="factor must be at least 1"):
        Backoff(**options)
