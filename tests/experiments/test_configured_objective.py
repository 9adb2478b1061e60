"""The objective of a configuration: used for every loss in run, tune and train."""

import json

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from unlearnkit import ConfigurationError, CrossEntropy
from unlearnkit.cli.app import app
from unlearnkit.deletion.work import check_budget
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.experiment import Experiment
from unlearnkit.experiments.run import run
from unlearnkit.experiments.train import RECIPE, retrained_folder, train_original
from unlearnkit.experiments.tune import tune
from unlearnkit.testing.cases import Scaled

TWICE = "objective={factory='unlearnkit.testing.cases:Scaled', options={factor=2.0}}"
EXPLICIT = "objective.options={inputs=0, targets=1}"


def records(path, *overrides):
    return list(run(load_config(path, overrides)))


def test_default_is_cross_entropy_and_options_are_passed(digits_toml):
    assert Experiment.load(load_config(digits_toml)).objective == CrossEntropy()
    assert Experiment.load(load_config(digits_toml, [EXPLICIT])).objective == CrossEntropy(inputs=0, targets=1)
    assert Experiment.load(load_config(digits_toml, [TWICE])).objective == Scaled(factor=2.0)


def test_run_takes_importances_and_losses_with_it(digits_toml, tmp_path):
    plain = records(digits_toml)
    twice = records(digits_toml, TWICE, f"output='{tmp_path}/twice'")
    for one, two in zip(plain, twice, strict=True):
        # Importances are squares: four times as large, which neither a threshold of 0 nor a ratio sees.
        assert next(e.fingerprint.objective for e in two.report.evidence) == Scaled(factor=2.0).describe()
        assert two.report.model_after == one.report.model_after
        for split, scores in one.after.items():
            assert two.after[split].loss == pytest.approx(2 * scores.loss, rel=1e-6)
            assert (scores.accuracy is None, two.after[split].accuracy) == (False, None)
    plain_json = json.loads((tmp_path / "twice" / "ssd" / "report.json").read_text())
    assert plain_json["manifest"]["config"]["objective"]["options"] == {"factor": 2.0}


def test_a_method_that_trains_descends_on_it(digits_toml, tmp_path):
    method = "method=[{name='finetune', options={optimizer='sgd', epochs=1, momentum=0.0, learning_rate=0.02}}]"
    half = method.replace("0.02", "0.01")
    (one,) = records(digits_toml, method)
    (two,) = records(digits_toml, half, TWICE, f"output='{tmp_path}/twice'")
    # Half the step on twice the loss is the same step.
    assert two.report.model_after == one.report.model_after


def test_metrics_get_the_configured_objective(digits_toml):
    (record,) = records(digits_toml, TWICE, "evaluation.metrics=['zrf']", "method=[{name='prune'}]")
    reason = record.not_applicable["zrf"]["forget-train"]
    assert reason == f"{Scaled(factor=2.0).describe()} is no classification: there are no class probabilities"


def test_tune_uses_it_or_raises(digits_toml, tmp_path):
    settings = ["tuning.method=ssd", "tuning.rounds=0", "tuning.fractions=[0.1]", "tuning.strengths=[1.0]"]
    found = tune(load_config(digits_toml, [*settings, EXPLICIT]))
    objectives = {e.fingerprint.objective for e in found.record.report.evidence}
    assert objectives == {CrossEntropy(inputs=0, targets=1).describe()}
    with pytest.raises(ConfigurationError, match=r"chooses by accuracy: expected a CrossEntropy, saw Scaled\(factor=2"):
        tune(load_config(digits_toml, [*settings, TWICE, f"output='{tmp_path}/other'"]))


def test_train_uses_it_and_prints_no_accuracy_without_classes(digits_toml, tmp_path):
    checkpoint = f"model.checkpoint='{tmp_path}/new.safetensors'"
    record = train_original(load_config(digits_toml, [checkpoint, TWICE, "training.epochs=1"]))
    assert (record["test"]["accuracy"], record["test"]["loss"] > 0) == (None, True)
    flags = [flag for setting in (checkpoint, TWICE, "training.epochs=1") for flag in ("--set", setting)]
    shown = CliRunner().invoke(app, ["train", str(digits_toml), "--quiet", "--overwrite", *flags])
    assert (shown.exit_code, "accuracy" in shown.output) == (0, False)
    assert f"test: loss {record['test']['loss']:.4f}\n" in shown.output


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("objective.factory='CrossEntropy'", "expected an import path as 'package.module:name', saw 'CrossEntropy'"),
        ("objective.factory='unlearnkit:CrossEntropi'", "has no function 'CrossEntropi'; did you mean 'CrossEntropy'"),
        ("objective.options.target='fine'", r"objective.options: unknown option 'target'; did you mean 'targets'"),
        ("objective={factory='unlearnkit.testing.cases:Scaled'}", "objective.options: missing a required .* 'factor'"),
        (
            "objective.factory='unlearnkit:UnlearningInputs'",
            "expected it to return an unlearnkit.Objective, saw UnlearningInputs",
        ),
        ("objective.factori='x'", "objective.factori: unknown key; did you mean 'factory'"),
        ("objective.options.targets='nowhere'", "targets"),
    ],
)
def test_errors(digits_toml, setting, said):
    with pytest.raises(ConfigurationError, match=said):
        records(digits_toml, setting)


def test_retrained_references_are_trained_with_it_and_kept_apart(digits_toml, tmp_path):
    settings = ["evaluation.retrained_seeds=[1]", "training.epochs=1", "method=[{name='prune'}]"]
    kept = set()
    for number, extra in enumerate(([], [TWICE])):
        records(digits_toml, *settings, *extra, f"output='{tmp_path}/out{number}'")
        folder = retrained_folder(load_config(digits_toml, [*settings, f"output='{tmp_path}/out{number}'"]))
        (file,) = [path for path in folder.glob("*.safetensors") if path.name not in kept]
        kept.add(file.name)
        with safe_open(file, framework="pt") as opened:
            objective = json.loads(opened.metadata()[RECIPE])["objective"]
        assert objective == (Scaled(factor=2.0) if extra else CrossEntropy()).describe()


def test_a_budget_of_accuracy_needs_accuracies():
    scores = {"retain-test": {"accuracy": None}}
    with pytest.raises(ConfigurationError, match=r"deletion.budget is a loss of accuracy: expected a CrossEntropy"):
        check_budget(scores, scores, 0.1)
