"""Findings of a run: no effect, destroyed model."""

import json

import pytest

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.config import load_config
from unlearnkit.experiments.run import run
from unlearnkit.reporting import RunRecord
from unlearnkit.reporting.verdict import findings
from unlearnkit.unlearning.report import Report, TensorChange


def verdict(report, before, after):
    return tuple(findings(report, before, after).values())


EDITED = Report(method="m", tensors=(TensorChange(name="w", size=4, changed=1),))
NO_OP = Report(method="m", tensors=(TensorChange(name="w", size=4, changed=0),))


def scores(**accuracies):
    return {
        name.replace("_", "-"): LossAndAccuracy(loss=1.0 if a is None else 1 - a, accuracy=a, samples=100)
        for name, a in accuracies.items()
    }


GOOD = scores(retain_test=0.96, forget_test=0.9, forget_train=1.0)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (scores(retain_test=0.95, forget_test=0.2, forget_train=0.1), []),
        (scores(retain_test=0.95, forget_test=0.9, forget_train=0.99), []),
        (scores(retain_test=0.49, forget_test=0.0), []),
        (scores(retain_test=0.48, forget_test=0.0), ["The model is destroyed: retain-test accuracy 0.960→0.480."]),
        (GOOD, ["The edit has no effect: no loss and no accuracy changed (retain-test, forget-test, forget-train)."]),
        (
            scores(retain_test=0.95, forget_test=0.9, forget_train=1.0),
            ["By accuracy nothing was forgotten: forget-test accuracy 0.900→0.900, forget-train accuracy 1.000→1.000."],
        ),
        (
            scores(retain_test=0.1, forget_test=1.0),
            [
                "By accuracy nothing was forgotten: forget-test accuracy 0.900→1.000.",
                "The model is destroyed: retain-test accuracy 0.960→0.100.",
            ],
        ),
        ({}, []),
        (scores(retain_train=0.0), []),  # not measured before
        (scores(retain_test=None, forget_test=None), []),  # no classification
    ],
)
def test_sentences_for_each_outcome(after, said):
    assert list(verdict(EDITED, GOOD, after)) == said


def test_a_model_that_could_do_nothing_is_not_destroyed():
    lost = {"retain-test": LossAndAccuracy(loss=9.0, accuracy=0.0, samples=100)}
    assert verdict(EDITED, scores(retain_test=0.0), lost) == ()


def test_unchanged_weights_are_left_to_the_report():
    record = RunRecord(label="m", report=NO_OP, before=GOOD, after=GOOD)
    assert record.sentence() == "m changed nothing: 0 of 4 weights."
    assert record.to_dict()["sentence"] == record.sentence()


def test_no_op_and_destroyed_models_are_reported_in_words(digits_toml, tmp_path):
    """Nine of eleven methods changed no prediction at their defaults, and nothing said so: known defect 14.

    "Nothing changed" and "model destroyed" are results in words.
    """
    methods = [
        "{name='prune', label='destroyed'}",
        "{name='binary-mask', label='nothing', options={lam=1e30}}",
        "{name='prune', label='too-little', options={tau=1e30}}",
        "{name='fisher-topk', label='unnoticed', options={k=1, scope='tensor'}}",
    ]
    found = {r.label: r for r in run(load_config(digits_toml, [f"method=[{', '.join(methods)}]"]))}
    assert "The model is destroyed: retain-test accuracy 0.9" in found["destroyed"].sentence()
    assert found["nothing"].sentence().startswith("binary-mask changed nothing: 0 of ")
    assert found["too-little"].sentence().startswith("prune changed nothing: 0 of ")
    for label, record in found.items():
        written = json.loads((tmp_path / "out" / label / "report.json").read_text())
        assert written["sentence"] == record.sentence()
        same = all(record.before[name].accuracy == after.accuracy for name, after in record.after.items())
        words = ("changed nothing", "has no effect", "nothing was forgotten")
        assert not same or any(text in record.sentence() for text in words)
