"""The benchmark behind docs/results/reference-samples.md: its rows, that it resumes, and its sizes for CIFAR-10."""

import pytest

from tests.benchmarks.reference_samples import DIGITS, Worker, measure, table
from unlearnkit.experiments.comparison import worker as trials
from unlearnkit.experiments.config import ForgetConfig, MethodConfig

QUICK = (
    "comparison.forget=[{classes=[3]}]",
    "comparison.retrained_seeds=[100]",
    "model.options={width=4}",
    "training.epochs=4",
    "training.learning_rate=0.01",
    "tuning.fractions=[0.01, 0.1]",
    "tuning.strengths=[0.0]",
    "tuning.rounds=0",
    "tuning.budget=1",
)


def test_rows_and_table_and_going_on_after_a_stop(tmp_path, monkeypatch):
    worker = Worker(path=DIGITS, folder=tmp_path, settings=QUICK)
    rows = list(measure(worker, [50], [0]))
    assert [row[:2] for row in rows] == [(0, "tuned"), *((50, kind) for kind in ("tuned", "same α", "same fraction"))]
    assert all(0 <= row[2] <= 1 for row in rows)
    assert rows[2][3] != pytest.approx(rows[0][3], rel=0.05), "the same options select another share with a sample"
    assert rows[3][3] == pytest.approx(rows[0][3], abs=0.01)
    head, *lines = table(rows, [50])
    assert head.split()[:3] == ["samples", "options", "n"]
    assert [" ".join(line.split()[:-7]) for line in lines] == ["all tuned", "50 tuned", "50 same α", "50 same fraction"]

    def none(*_):
        raise AssertionError("a trial was done again")

    monkeypatch.setattr(trials.Worker, "run", none)
    assert list(measure(worker, [50], [0])) == rows


@pytest.mark.parametrize("samples", [100, 3000])
def test_the_sizes_for_cifar10(tmp_path, samples):
    path = DIGITS.with_name("cifar10-full-class.toml")
    worker = Worker(path=path, folder=tmp_path, settings=("data.options.per_class=2000", "training.epochs=20"))
    config = worker.config(samples, 1, MethodConfig(name="ssd", tuned=True), "tuned")
    assert config.importance.reference_samples == samples
    assert (config.comparison.training_seeds, config.comparison.unlearning_seeds) == ((1,), (1,))
    assert config.data.options["per_class"] == 2000
    assert config.forget == ForgetConfig(classes=("hoofed",))
