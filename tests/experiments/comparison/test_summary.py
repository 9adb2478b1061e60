"""Means, spreads and sentences, against worked examples and numpy."""

import csv
import io
import statistics

import pytest

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.experiments.comparison.tables import (
    Statistic,
    covers,
    csv_of,
    lines_of,
    long_table,
    summarise,
    summary_page,
    table_of,
    unedited,
)
from unlearnkit.experiments.comparison.trial import TrialResult, trials_of


def result(accuracy, tug, **more):
    after = LossAndAccuracy(loss=0.5, accuracy=accuracy, samples=10)
    before = LossAndAccuracy(loss=0.1, accuracy=1.0, samples=10)
    usual = {
        "options": {"alpha": 2.0},
        "changed": 3,
        "weights": 12,
        "after": {"forget-train": after},
        "before": {"forget-train": before},
        "metrics": {"tug-of-war": {"ToW": tug, "original ToW": 0.25}},
        "seconds": {"edit": 1.0, "evaluation": 9.0},
    }
    return TrialResult(**{**usual, **more})


@pytest.fixture
def done(small):
    """Two variants on two training seeds; one trial failed, one changed nothing."""
    trials = [t for t in trials_of(small()) if t.method.name == "ssd"]
    return [
        (trials[0], result(0.1, 0.9)),
        (trials[1], result(1.0, None, changed=0, findings=("nothing changed",))),
        (trials[2], result(0.3, 0.5)),
        (trials[3], TrialResult.failure(ValueError("broken | pipe"))),
    ]


def test_a_statistic_is_that_of_pythons_own():
    values = [0.25, 0.5, 0.5, 1.0, 0.125]
    found = Statistic.of(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-15)
    assert found.sd == pytest.approx(statistics.stdev(values), abs=1e-15)
    assert found.median == statistics.median(values)
    assert found.p10 == pytest.approx(0.125 + 0.4 * 0.125)  # at 0.1 · 4 = 0.4 between the first two in order
    assert (found.n, found.least, found.most) == (5, 0.125, 1.0)
    assert str(Statistic.of([0.5])) == "0.500"
    assert Statistic.of([0.5]).sd is None


def test_summary_worked_example(done):
    two, huge = summarise(table_of(done))
    assert (two.variant, two.trials, two.failed, two.remarks) == ("ssd alpha=2", 2, 0, "")
    tug = two.measures["tug-of-war:ToW"]
    assert (tug.mean, tug.median) == (pytest.approx(0.7), pytest.approx(0.7))
    assert tug.sd == pytest.approx(0.2828427, abs=1e-7)
    assert tug.p10 == pytest.approx(0.54)
    assert two.measures["fraction"].mean == 0.25
    assert (huge.trials, huge.failed, huge.remarks) == (2, 1, "1 × nothing changed, 1 × failed")
    assert "tug-of-war:ToW" not in huge.measures  # one does not apply, one failed
    assert huge.measures["accuracy:forget-train"].n == 1


def test_originals_are_counted_once(done):
    found = unedited(table_of(done))
    assert found["tug-of-war:ToW"] == Statistic.of([0.25, 0.25])
    assert found["accuracy:forget-train"].n == 2


def test_the_page_and_the_lines(done, small):
    rows = table_of(done)
    header, lines = lines_of(summarise(rows), unedited(rows))
    assert header == (
        "variant",
        "n",
        "ToW median",
        "ToW 10th p.",
        "ToW mean ± sd",
        "edited",
        "forget-train",
        "seconds",
        "remarks",
    )
    assert lines[0] == ("(original)", "2", "0.250", "0.250", "0.250 ± 0.000", "–", "1.000 ± 0.000", "–", "")
    assert lines[1][:5] == ("ssd alpha=2", "2", "0.700", "0.540", "0.700 ± 0.283")
    assert lines[1][7] == "1.00"  # without evaluation
    page = summary_page(summarise(rows), unedited(rows), rows=rows, covers=covers(small()))
    assert page.count("\n|") == 2 + 3
    assert "ssd alpha=1e+09, classes=3, training seed 1, unlearning seed 0: ValueError: broken | pipe" in page


def test_what_the_spread_covers(small):
    said = covers(small("comparison.unlearning_seeds=[1, 2, 3]"))
    assert said.startswith("spread over 1 forget target × 2 training seeds × 3 unlearning seeds; the same throughout")
    assert said.endswith("and the 2 retrained models of each target (training seeds [7, 8])")
    assert "retrained" not in covers(small("comparison.retrained_seeds=[]"))


def test_the_tables_as_csv(done, small):
    rows = table_of(done)
    read = list(csv.DictReader(io.StringIO(csv_of(rows))))
    assert [row["option:alpha"] for row in read] == ["2.0", "2.0", "2.0", "1000000000.0"]
    assert list(read[0])[-3:] == ["seconds:edit", "seconds:evaluation", "finished"]
    assert read[3]["tug-of-war:ToW"] == read[1]["tug-of-war:ToW"] == ""
    assert float(read[2]["accuracy:forget-train"]) == 0.3
    long = list(csv.DictReader(io.StringIO(csv_of(long_table(summarise(rows), covers=covers(small()))))))
    assert [r["measure"] for r in long if r["variant"] == "ssd alpha=2"][-2:] == ["seconds:edit", "seconds:evaluation"]
    assert csv_of([]) == ""


def test_without_any_result():
    assert summarise(()) == ()
    assert unedited(()) == {}
    assert lines_of((), {}) == (("variant", "n", "seconds", "remarks"), [])
