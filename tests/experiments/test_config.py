"""Configurations: strict types and keys, and errors that say where and what to write instead."""

import attrs
import pytest

from unlearnkit.experiments.config import Config, load_config
from unlearnkit.utils.errors import ConfigurationError, StoreError

SMALL = """
output = "out"
[model]
factory = "a:b"
[data]
name = "digits"
"""


def load(tmp_path, text, *overrides):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load_config(path, overrides)


def test_the_smallest_configuration_and_its_defaults(tmp_path):
    config = load(tmp_path, SMALL)
    assert (config.importance.estimator, config.importance.reference) == ("diagonal-fisher", "full")
    assert (config.device, config.seed, config.method) == ("auto", 0, ())
    assert config.training.learning_rate == 1e-3


def test_method_labels_default_to_names(tmp_path):
    config = load(tmp_path, SMALL + '[[method]]\nname = "ssd"\noptions = {alpha = 5}\n')
    assert (config.method[0].label, config.method[0].options) == ("ssd", {"alpha": 5})


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("outptu = 1\n", ["outptu: unknown key", "did you mean 'output'?"]),
        ("", []),
    ],
)
def test_unknown_keys_are_errors_that_name_the_nearest(tmp_path, extra, words):
    text = extra + SMALL
    if not words:
        assert isinstance(load(tmp_path, text), Config)
        return
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("forget.classes='ab'", "forget.classes: expected a list, saw 'ab'"),
        ("evaluation.metrics='x'", "evaluation.metrics: expected a list, saw 'x'"),
        ("method={name='ssd'}", "method: expected a list, saw {'name': 'ssd'}"),
        ("method=['ssd']", "method.0: expected a table, saw 'ssd'"),
        ("model=3", "model: expected a table, saw 3"),
        ("data.options=[1]", "data.options: expected a table, saw [1]"),
        ("evaluation.options={x=3}", "evaluation.options.x: expected a table, saw 3"),
    ],
)
def test_text_is_no_list_and_a_value_no_table(tmp_path, override, words):
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, SMALL, override)
    assert str(caught.value).endswith(f"c.toml: {words}")


def test_every_problem_is_listed_with_its_path(tmp_path):
    text = (
        SMALL.replace('output = "out"\n', "").replace("factory", "factry")
        + 'workers = "2"\n[importance]\nbatch_size = 0\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "4 problems" in message
    assert "output: expected, but missing" in message
    assert "model.factry: unknown key; did you mean 'factory'?" in message
    assert "data.workers: expected a whole number, saw '2'" in message
    assert "batch_size: expected a whole number ≥ 1, saw 0" in message


@pytest.mark.parametrize("value", ["true", '"64"', "64.0"])
def test_types_are_not_converted(tmp_path, value):
    with pytest.raises(ConfigurationError, match=r"importance.batch_size: expected a whole number"):
        load(tmp_path, SMALL + f"[importance]\nbatch_size = {value}\n")


def test_integers_are_accepted_as_floats(tmp_path):
    config = load(tmp_path, SMALL + '[[method]]\nname = "x"\nmax_fraction = 1\n')
    assert config.method[0].max_fraction == 1.0


def test_classes_by_number_and_by_name(tmp_path):
    assert load(tmp_path, SMALL + '[forget]\nclasses = [3, "cat"]\n').forget.classes == (3, "cat")
    with pytest.raises(ConfigurationError, match=r"forget.classes"):
        load(tmp_path, SMALL + "[forget]\nclasses = [3.5]\n")


def test_labels_must_differ_and_name_folders(tmp_path):
    twice = '[[method]]\nname = "ssd"\n'
    with pytest.raises(ConfigurationError, match=r"different labels.*'ssd'"):
        load(tmp_path, SMALL + twice + twice)
    with pytest.raises(ConfigurationError, match="name of a folder"):
        load(tmp_path, SMALL + '[[method]]\nname = "ssd"\nlabel = "../x"\n')


def test_a_missing_file_and_broken_toml(tmp_path):
    with pytest.raises(StoreError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(tmp_path, "output = ")


def test_overrides_are_checked_like_the_file(tmp_path):
    assert load(tmp_path, SMALL, "importance.batch_size=7").importance.batch_size == 7
    with pytest.raises(ConfigurationError, match=r"importance.batch_sise: unknown key; did you mean 'batch_size'"):
        load(tmp_path, SMALL, "importance.batch_sise=7")


def test_plain_values_for_a_record(tmp_path):
    record = attrs.asdict(load(tmp_path, SMALL))
    assert record["model"]["factory"] == "a:b"
    assert record["training"]["epochs"] == 5


NO_NAMES = [".retrained", "x" * 201, ".", "..", "", "a/b", "a\\nb", "a\\u0000b", "a\\u001bb"]
TAKEN = ["ledger", "LEDGER", "passes", "trials", "trials.csv", "summary.csv", "summary.md", "comparison.json"]


@pytest.mark.parametrize("label", [*TAKEN, *NO_NAMES])
def test_labels_name_folders_of_their_own(tmp_path, label):
    with pytest.raises(ConfigurationError, match=r"method\.(0\.)?label: expected"):
        load(tmp_path, SMALL, f"method=[{{name='ssd', label=\"{label}\"}}]")


@pytest.mark.parametrize("key", ["importance.checkpoint", "deletion.folder", "evaluation.retrained_folder"])
def test_a_label_is_not_the_name_of_a_configured_folder(tmp_path, key):
    with pytest.raises(ConfigurationError, match=r"saw \['mine'\], where other files are kept"):
        load(tmp_path, SMALL, "method=[{name='ssd', label='mine'}]", f"{key}='./out/mine/deep'")
    assert load(tmp_path, SMALL, "method=[{name='ssd', label='mine'}]", f"{key}='out/other'").method


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_config(path).output == "out"
