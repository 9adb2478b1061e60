"""The folder of results appears whole or not at all."""

import json

import pytest
from torch import nn

from unlearnkit.errors import StoreError
from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.report import Report, TensorChange
from unlearnkit.reporting import RunRecord, write_result


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


def test_a_folder_with_both_files(tmp_path):
    write_result(tmp_path / "deep" / "m", nn.Linear(2, 2), record(), metadata={"k": "v"})
    assert sorted(p.name for p in (tmp_path / "deep" / "m").iterdir()) == ["model.safetensors", "report.json"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m"]


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, there):
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
