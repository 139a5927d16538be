"""Half a minute of the soak; `make soak` runs ten."""

import pytest

from soak.kept import soak_kept
from soak.soak import CLIENTS, ResumingSoak, soak
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


@pytest.mark.long
@pytest.mark.filterwarnings("error")
async def test_a_soak_of_clients_that_keep_their_sessions():
    if raise_file_limit() < 2 * CLIENTS + 200:
        pytest.skip(f"{CLIENTS:,} clients and their lost sockets need {2 * CLIENTS + 200:,} open files")
    run = await soak(30, kind=ResumingSoak)
    print(run.summary())  # shown on failure
    assert run.problems == []
    assert run.counted["returns"] > 100
    assert run.after <= 1.10 * run.at_steady_state


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["valkey", "nats"])
async def test_what_is_kept_outlives_nodes_and_engines_that_are_killed(engine):
    run = await soak_kept(engine, 10)
    print(run.summary())  # shown on failure
    assert run.problems == []
    assert run.counted["kills of the engine"]
    assert run.counted["kills of a node"]
    assert run.counted["kept"] > 100
