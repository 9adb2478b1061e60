"""A comparison on the digits that takes a second or two: five trials of different kinds."""

import pytest

from unlearnkit.experiments.config import load_config

SMALL = """
output = "{root}/out"
device = "cpu"

[model]
factory = "unlearnkit.models:small_cnn"
options = {{ width = 2 }}

[data]
name = "digits"
options = {{ test_fraction = 0.7 }}

[training]
epochs = 4
learning_rate = 1e-2

[tuning]
fractions = [0.01, 0.05]
strengths = [0.0]
rounds = 0
budget = 1.0

[comparison]
training_seeds = [0, 1]
retrained_seeds = [7, 8]
metrics = ["tug-of-war"]

[[comparison.forget]]
classes = [3]

[[method]]
name = "ssd"
[method.grid]
alpha = [2, 1e9]

[[method]]
name = "binary-mask"
tuned = true

[[method]]
name = "finetune"
label = "diverges"
options = {{ epochs = 1, learning_rate = 1e30 }}
"""


@pytest.fixture(scope="session")
def small_text():
    return SMALL


@pytest.fixture
def small_toml(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL.format(root=tmp_path))
    return path


@pytest.fixture
def small(small_toml):
    """Loads it with settings of the test's own."""
    return lambda *settings: load_config(small_toml, settings)
