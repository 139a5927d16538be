"""A minute of chaos; `make chaos` has all nemeses."""

import pytest

from chaos.nemeses import Scenario
from chaos.run import Options, Run

SELECTION = [("nats", "kill,cut,engine-restart"), ("valkey", "stop,part-recv,engine-pause")]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "nemeses"), SELECTION)
async def test_a_cluster_keeps_its_promises_under_faults(engine, nemeses, tmp_path):
    report = await Run(Options(engine, Scenario(nemeses), seconds=30), tmp_path / "run").run()
    assert report.violations == []


@pytest.mark.parametrize("text", ["storm", "kill,storm", "kill+storm/persist"])
def test_a_nemesis_that_there_is_not_is_rejected(text):
    with pytest.raises(ValueError, match="storm"):
        Scenario(text).check()
