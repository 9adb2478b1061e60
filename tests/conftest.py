"""Shared fixtures: a model trained on the digits, and its configuration."""

import os
from collections import Counter

os.environ.setdefault("COLUMNS", "100")  # rich measures the terminal, and there is none
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start; they share the cores too

import pytest
import torch
from hypothesis import settings

from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.train import train_original

# Selected by --hypothesis-profile in pyproject.toml: the same failure on every run, on however slow a machine.
settings.register_profile("unlearnkit", derandomize=True, deadline=None)
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=20_000)

DIGITS = """
output = "{root}/out"
device = "cpu"

[model]
factory = "unlearnkit.models:small_cnn"
options = {{ width = 4 }}
checkpoint = "{root}/original.safetensors"

[data]
name = "digits"

[forget]
classes = [3]

[evaluation]
page = false

[training]
epochs = 4
learning_rate = 1e-2

[[method]]
name = "prune"

[[method]]
name = "ssd"
options = {{ alpha = 3.0 }}
"""


def pytest_collection_modifyitems(items):
    """Skip tests that need a GPU on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter):
    """Show how many kills, mutations and hostile inputs the tests that passed have tried."""
    tried = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for what, count in (value for name, value in report.user_properties if name == "tried"):
            tried[what] += count
    if tried:
        terminalreporter.section("tried")
        for what, count in sorted(tried.items()):
            terminalreporter.line(f"{count:6} {what}")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Test processes share the cores, so torch uses one thread in each."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Skip fsync: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def trained_checkpoint(tmp_path_factory):
    """The path of a small network trained on the digits; treat it as read-only."""
    root = tmp_path_factory.mktemp("digits")
    (root / "experiment.toml").write_text(DIGITS.format(root=root))
    config = load_config(root / "experiment.toml")
    train_original(config)
    return root / "original.safetensors"


@pytest.fixture
def digits_toml(tmp_path, trained_checkpoint):
    """A configuration on the digits with a trained checkpoint and an output folder of the test's own."""
    path = tmp_path / "experiment.toml"
    text = DIGITS.format(root=tmp_path)
    path.write_text(text.replace(f"{tmp_path}/original.safetensors", str(trained_checkpoint)))
    return path
