"""A ledger on the digits: a small trained network, importances by digit, and a method that forgets."""

import shutil

import pytest

from unlearnkit.deletion import Deletion
from unlearnkit.experiments.config import load_config

# A few samples of 1,347: their share of F_D is small, and only a large α tells their weights from all others.
LEDGER = """
[[method]]
name = "ssd"
label = "gentle"
options = { alpha = 100.0 }

[deletion]
method = "ssd"
budget = 0.05
every = 3
"""


@pytest.fixture(scope="session")
def started(tmp_path_factory, trained_checkpoint):
    """A configuration and its ledger as it was started; copied, never used itself."""
    root = tmp_path_factory.mktemp("ledger")
    text = (trained_checkpoint.parent / "experiment.toml").read_text()
    text = text.replace(f'output = "{trained_checkpoint.parent}/out"', 'output = "out"') + LEDGER
    (root / "ledger.toml").write_text(text)
    config = load_config(root / "ledger.toml", [f"output='{root}/out'"])
    Deletion.load(config).start()
    return root


@pytest.fixture
def ledger_toml(started, tmp_path, monkeypatch):
    """A configuration with a started ledger of the test's own; its paths are relative to the current folder."""
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ledger.toml"


@pytest.fixture
def deletion(ledger_toml):
    return Deletion.load(load_config(ledger_toml))


@pytest.fixture
def gentle(ledger_toml):
    """For requests of a few samples."""
    return Deletion.load(load_config(ledger_toml, ["deletion.method=gentle"]))
