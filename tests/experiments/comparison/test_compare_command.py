"""The command: its output, exit codes and progress bar."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from unlearnkit.cli.app import app
from unlearnkit.cli.console import counting

ONE = ["-s", "comparison.training_seeds=[0]", "-q"]


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result, " ".join(result.output.split())


def test_a_dry_run_lists_what_is_done_and_what_is_not(small_toml, tmp_path):
    result, said = call("compare", small_toml, "--dry-run", *ONE)
    assert result.exit_code == 0, result.output
    assert said.count("to do ") == 4
    assert "4 trials, 4 to do;" in said
    assert not (tmp_path / "out").exists()
    assert call("compare", small_toml, "-m", "ssd", "-j", 1, *ONE)[0].exit_code == 0
    said = call("compare", small_toml, "--dry-run", *ONE)[1]
    assert "done ssd alpha=2 · classes=3 · training seed 0 · unlearning seed 0" in said
    assert "to do binary-mask · classes=3 · training seed 0 · unlearning seed 0" in said
    assert "4 trials, 2 to do;" in said


def test_a_failed_trial_is_exit_code_1(small_toml):
    result, said = call("compare", small_toml, "-j", 1, *ONE)
    assert result.exit_code == 1
    assert "failed: diverges · classes=3 · training seed 0 · unlearning seed 0: NonFiniteError" in said
    assert "diverges: 1 × failed (of 1)" in said
    assert "ssd alpha=1e+09: 1 × nothing changed (of 1)" in said
    assert "mean ± sd: spread over 1 forget target × 1 training seed × 1 unlearning seed" in said
    result, said = call("compare", small_toml, "-j", 1, "-m", "ssd", *ONE)
    assert result.exit_code == 0
    assert "2 trials, 0 to do" in said


def test_user_errors_have_exit_code_2(small_toml):
    result, said = call("compare", small_toml, "-s", "comparison.training_sedes=[0]")
    assert result.exit_code == 2
    assert "did you mean 'training_seeds'" in said


@pytest.mark.slow
def test_ctrl_c_of_the_command_in_several_processes(small_toml, tmp_path):
    # A terminal signals the whole process group; the workers ignore it, and the parent stops them.
    command = [sys.executable, "-m", "unlearnkit", "compare", str(small_toml), "-j", "2"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    rows = tmp_path / "out" / "trials"
    try:
        while process.poll() is None and not (rows.is_dir() and any(rows.glob("*.json"))):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert (tmp_path / "out" / "trials.csv").exists()
    assert 1 <= len(list(rows.glob("*.json"))) < 8


def test_progress_bar_shows_running_trials(capsys):
    with counting(2) as tell:
        tell("started", "a model", counts=False)
        tell("done", "a model", counts=False)
        tell("started", "one [of two]")
        tell("started", "another")
        tell("done", "one [of two]")
        tell("failed", "another")
        tell("failed", "never started")
    with counting(1, quiet=True) as tell:
        tell("started", "one")
    assert "Traceback" not in capsys.readouterr().err
