"""Half a minute of the soak; `make soak` runs ten."""

import pytest

from soak.soak import CLIENTS, soak
from support.counts import raise_file_limit


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
async def test_soak():
    if raise_file_limit() < CLIENTS + 200:
        pytest.skip(f"{CLIENTS:,} clients need {CLIENTS + 200:,} open files, and the limit here is lower")
    run = await soak(30)
    print(run.summary())  # shown on failure
    assert run.problems == []
    assert run.after <= 1.05 * run.at_steady_state
