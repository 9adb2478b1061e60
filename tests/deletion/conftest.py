"""A ledger on the digits: a small trained network, importances by digit, and a method that forgets."""

import shutil

import pytest
import small_ledger as small

from unlearnkit.deletion import Deletion
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.train import train_original

# A few samples of 1,347: an edit of few weights keeps the budget.
LEDGER = """
[[method]]
name = "ssd"
label = "gentle"
options = { fraction = 0.003 }

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


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Eighteen images, a configuration and a trained linear network, without a ledger; copied, never used itself."""
    root = tmp_path_factory.mktemp("small")
    small.write_images(root / "data")
    (root / "small.toml").write_text(small.TOML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train_original(load_config("small.toml"))
    return root


@pytest.fixture(scope="session")
def small_started(small_data, tmp_path_factory):
    """The same with a started ledger; copied, never used itself."""
    root = tmp_path_factory.mktemp("small-started")
    shutil.copytree(small_data, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Deletion.load(load_config("small.toml")).start()
    return root


@pytest.fixture
def load(small_started, tmp_path, monkeypatch):
    """Loads the small ledger, and its data as they are now, in a folder of the test's own."""
    shutil.copytree(small_started, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda *settings: Deletion.load(load_config("small.toml", settings))
