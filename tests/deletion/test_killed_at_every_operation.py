"""Every command of a ledger, killed at every file operation: the next one finishes or sweeps, repeating completes."""

import forked_process as forked
import pytest
from kill_at_every_operation import SCENARIOS, walk

ALL = pytest.param(range(1, 10_000), marks=pytest.mark.slow, id="all")
SOME = pytest.param((4, 24), id="some")


@pytest.mark.parametrize("numbers", [SOME, ALL])
@pytest.mark.parametrize("name", SCENARIOS)
def test_next_command_finishes_or_sweeps(name, numbers, small_data, tmp_path, record_property):
    assert forked.run(walk, name, str(small_data), str(tmp_path), numbers, str(tmp_path / "kills")) == 0
    kills = int((tmp_path / "kills").read_text())
    assert kills > 0
    record_property("tried", (f"kills at a file operation of `{name}`", kills))
