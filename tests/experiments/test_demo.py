"""The demonstration, with fewer epochs than a user gets."""

import io

import pytest
from rich.console import Console

from unlearnkit.experiments.demo import TRIALS, DemoResult, Row, demo
from unlearnkit.unlearning.report import Report, TensorChange


@pytest.fixture(scope="module")
def result():
    with pytest.warns(UserWarning, match="can select nothing"):
        return demo(epochs=4, device="cpu")


def test_every_trial_is_a_row(result):
    assert len(result.edits) == len(TRIALS) >= 5
    assert {row.estimator for row in result.edits} == {"per sample", "batched"}
    assert result.original.report is None


def test_what_the_table_must_show(result):
    by_name = {(row.name, row.estimator): row for row in result.edits}
    assert by_name["prune τ=0", "per sample"].report.fraction > 0.9
    assert by_name["prune τ=0", "per sample"].retain < 0.5 < result.original.retain
    assert by_name["ssd α=10", "per sample"].report.changed == 0
    assert by_name["ssd α=10", "batched"].report.changed > 0
    assert result.retrained.forget < 0.1


def test_the_table_fits_80_columns(result):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "…" not in text
    assert all(word in text for word in ("original", "retrained", "binary-mask λ=5", "batched"))


def row(name, changed, estimator="per sample", retain=0.9):
    report = Report(method="m", tensors=(TensorChange(name="w", size=10, changed=changed),))
    return Row(name=name, estimator=estimator, report=report, retain=retain, forget=0.0, seconds=0.0)


def lesson(*edits):
    reference = Row(name="x", retain=0.9, forget=0.0, seconds=1.0)
    return DemoResult(digit=3, original=reference, retrained=reference, edits=edits).lesson()


def test_printed_conclusion_matches_the_measurement():
    text = lesson(row("prune", 10, retain=0.1), row("ssd", 0), row("ssd", 4, "batched"))
    assert "(prune) takes the accuracy on the other digits from 0.900 to 0.100" in text
    assert "ssd edited no weight here, and with batched importances the same option edits 40 %" in text
    assert "Every fixed α did edit something here" in lesson(row("prune", 10), row("ssd", 1))
