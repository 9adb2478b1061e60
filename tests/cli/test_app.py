"""The command line: output, errors in one message, exit codes."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from unlearnkit import __version__
from unlearnkit.cli.app import app


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_run_prints_a_table_and_where_the_results_are(digits_toml, tmp_path):
    result = call("run", digits_toml, "--quiet")
    assert result.exit_code == 0
    assert "retain-test" in result.output
    assert "prune changed" in result.output
    assert (tmp_path / "out" / "ssd" / "report.json").exists()


def test_dry_run_prints_what_would_be_edited(digits_toml, tmp_path):
    result = call("run", digits_toml, "--dry-run", "--method", "ssd", "-q")
    assert result.exit_code == 0
    assert "head.weight" in result.output
    assert "nothing was written" in result.output
    assert "prune" not in result.output
    assert not (tmp_path / "out").exists()


def test_settings_reach_the_method(digits_toml):
    result = call("run", digits_toml, "-q", "--dry-run", "-m", "ssd", "--set", "method.ssd.options.alpha=9.8")
    assert "ssd changed" in result.output
    assert call("run", digits_toml, "-q", "-m", "sdd").exit_code == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.ssd.options.alpha=-1", "expected a number > 0, saw -1"),
        ("importence.batch_size=1", "did you mean 'importance'?"),
        ("forget.classes=[11]", "expected a class between 0 and 9"),
        ("model.checkpoint=none.safetensors", "does not exist"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(digits_toml, setting, message):
    result = call("run", digits_toml, "-q", "--set", setting)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_traceback_on_request(digits_toml):
    result = call("run", digits_toml, "-q", "--traceback", "--set", "device=gpu")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "ConfigurationError"


def test_a_remark_is_shown_as_a_warning(digits_toml):
    result = call("run", digits_toml, "-q", "-m", "ssd", "--set", "method.ssd.options.alpha=10")
    assert result.exit_code == 0
    assert "warning: ssd: α = 10 can select nothing: F_f/F_D is at most 1/p = 9.83212" in result.output
    assert "ssd changed nothing: 0 of" in result.output


def test_train(digits_toml, tmp_path):
    settings = ("--set", f"model.checkpoint={tmp_path}/new.safetensors", "--set", "training.epochs=2")
    result = call("train", digits_toml, "-q", *settings)
    assert result.exit_code == 0
    assert "epoch 2: loss" in result.output
    assert "test: loss" in result.output
    again = call("train", digits_toml, "-q", *settings)
    assert again.exit_code == 2
    assert "already exists" in again.output


def test_methods_and_plugins_are_listed_with_their_origin():
    methods = call("methods").output
    assert all(
        word in methods for word in ("binary-mask", "prune", "ssd", "alpha (α) = 10.0", f"unlearnkit {__version__}")
    )
    plugins = call("plugins").output
    assert "unlearnkit_methods.ssd" in plugins
    assert "usable" in plugins


def test_the_version():
    assert call("--version").output.strip() == f"unlearnkit {__version__}"


def test_help_names_every_command():
    text = call("--help").output
    assert all(command in text for command in ("run", "train", "demo", "methods", "plugins"))


@pytest.mark.parametrize("module", [["-m", "unlearnkit"], ["-c", "from unlearnkit.cli.app import main; main()"]])
def test_the_module_is_the_command(module):
    result = subprocess.run([sys.executable, *module, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"unlearnkit {__version__}"


@pytest.mark.parametrize("command", ["train", "ledger", "forget"])
def test_commands_for_one_process_refuse_torchrun(digits_toml, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(command, digits_toml, "-q")
    assert result.exit_code == 2
    assert "works in one process: expected no torchrun, saw 2 processes" in " ".join(result.stderr.split())
