"""Result folders are written atomically."""

import itertools
import json
import signal

import attrs
import pytest
from forked_process import run
from overwrite_and_kill import overwrite, result
from torch import nn

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.importance.provenance import Fingerprint
from unlearnkit.models.checkpoint import load_checkpoint
from unlearnkit.reporting import RunRecord, read_record, write_result
from unlearnkit.unlearning.report import Report, ReportedImportance, TensorChange
from unlearnkit.utils.errors import StoreError


def record(**changes):
    report = Report(method="m", options={"alpha": float("inf")}, tensors=(TensorChange(name="w", size=4, changed=1),))
    return RunRecord(label="m", report=report, **changes)


def test_plain_values():
    score = LossAndAccuracy(loss=0.5, accuracy=None, samples=3)
    plain = record(before={"forget-test": score}).to_dict()
    assert plain["options"] == {"alpha": "inf"}
    assert (plain["changed"], plain["size"], plain["fraction"]) == (1, 4, 0.25)
    assert plain["before"] == {"forget-test": {"loss": 0.5, "accuracy": None, "samples": 3}}
    assert plain["sentence"] == "m changed 1 of 4 weights (25 %)."
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_record_marks_estimated_importances(tmp_path):
    def used(role, error):
        kind = Fingerprint(estimator="sketched-fisher")
        return ReportedImportance(
            role=role, count=9, samples=9, batches="9 × 1", order="", fingerprint=kind, relative_error=error
        )

    def said(*evidence):
        known = record()
        known = attrs.evolve(known, report=attrs.evolve(known.report, evidence=evidence))
        write_result(tmp_path / "m", None, known, metadata={})
        again = read_record(str(tmp_path / "m"))
        assert again.report.evidence == evidence
        return again.sentence()

    where = "where its gradients are spread evenly over the batches."
    assert said(used("forget", 0.25), used("full", 0.0123)).endswith(
        "Importances are estimates: standard deviation of a weight's total up to 25 % (forget), up to 1.2 % (full), "
        + where
    )
    assert "total not known (full), where" in said(used("forget", 0.0), used("full", None))
    assert said(used("forget", 0.0)) == "m changed 1 of 4 weights (25 %)."


def test_a_folder_with_both_files(tmp_path):
    write_result(tmp_path / "deep" / "m", nn.Linear(2, 2), record(), metadata={"k": "v"})
    assert sorted(p.name for p in (tmp_path / "deep" / "m").iterdir()) == ["model.safetensors", "report.json"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m"]


@pytest.mark.parametrize("there", [False, True])
def test_failure_keeps_the_earlier_results(tmp_path, there):
    folder = tmp_path / "m"
    if there:
        folder.mkdir()
        (folder / "old").write_text("old")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_result(folder, nn.Linear(2, 2), record(forget={"x": float("nan")}), metadata={})
    assert folder.exists() == there
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if there else [])
    assert not there or (folder / "old").read_text() == "old"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write the results"):
        write_result(tmp_path / "file" / "m", nn.Linear(2, 2), record(), metadata={})


def number_of(folder):
    """Read which results a folder holds, and that its two files belong together."""
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "report.json"]
    model = nn.Linear(2, 2)
    load_checkpoint(model, folder / "model.safetensors")
    label = read_record(folder).label
    assert model.weight.unique().tolist() == [float(label)]
    return int(label)


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_overwrite_leaves_the_old_or_the_new_results(tmp_path, exchange):
    seen = []
    for kill_at in itertools.count(1):
        folder = tmp_path / str(kill_at) / "m"
        result(folder, 1)
        code = run(overwrite, folder, kill_at, exchange=exchange)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        seen.append(number_of(folder) if folder.exists() else None)
        result(folder, 3)
        assert number_of(folder) == 3
        assert [p.name for p in folder.parent.iterdir()] == ["m"]  # and nothing is left of the killed one
    assert seen == sorted(seen, key=[1, None, 2].index)
    assert {1, 2} <= set(seen)
    assert seen.count(None) <= (0 if exchange else 1)


def test_next_run_restores_folders_after_a_kill_between_two_renames(tmp_path):
    result(tmp_path / "m", 1)
    (tmp_path / "m").rename(tmp_path / ".m.abc.old")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_result(tmp_path / "m", nn.Linear(2, 2), record(forget={"x": float("nan")}), metadata={})
    assert number_of(tmp_path / "m") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
