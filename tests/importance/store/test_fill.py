"""A killed and resumed importance pass gives the totals of an uninterrupted one."""

import pytest
import torch
from torch import nn

from unlearnkit import BatchedDiagonalFisher, ConfigurationError, CrossEntropy, DiagonalFisher, SketchedFisher
from unlearnkit.importance.multi_process import estimate_resumable, fill
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.utils.errors import StoreError

EVERY = 3


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batches(count, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 4, generator=made), torch.randint(0, 3, (4,), generator=made)) for _ in range(count)]


class Killed(Exception):
    """Simulates the end of the process."""


def until(data, stop):
    for index, batch in enumerate(data):
        if index == stop:
            raise Killed
        yield batch


def run(data, checkpoint, **options):
    chosen = {"every": EVERY, "role": "full", **options}
    return estimate_resumable(
        DiagonalFisher(), model(), data, objective=CrossEntropy(), checkpoint=checkpoint, **chosen
    )


def test_sketch_segments_use_the_same_signs_and_add_their_errors(tmp_path):
    sketch = SketchedFisher(probes=2)
    found = estimate_resumable(
        sketch, model(), batches(5), objective=CrossEntropy(), checkpoint=tmp_path / "part", every=3
    )
    three, two = (sketch.relative_error({4: count}) for count in (3, 2))
    assert found.relative_error == pytest.approx((3 * three + 2 * two) / 5)
    assert found.relative_error > sketch.relative_error({4: 5})


@pytest.mark.parametrize("stop", range(8))
def test_resumed_pass_gives_the_same_bits(tmp_path, stop):
    data = batches(8)
    whole = run(data, tmp_path / "whole.part")
    part = tmp_path / "cut.part"
    with pytest.raises(Killed):
        run(until(data, stop), part)
    assert part.exists() == (stop >= EVERY)
    again = run(data, part)
    assert again.trail == whole.trail
    assert (again.count, again.samples, again.role) == (whole.count, whole.samples, whole.role)
    for name, total in whole.totals.items():
        assert torch.equal(total, again.totals[name])


def test_it_equals_one_pass_of_the_estimator_to_rounding(tmp_path):
    data = batches(7)
    whole = DiagonalFisher().estimate(model(), data, objective=CrossEntropy())
    for name, total in run(data, tmp_path / "x.part").totals.items():
        torch.testing.assert_close(total, whole.totals[name], rtol=1e-5, atol=1e-9)


def test_finished_work_is_not_measured_again(tmp_path, monkeypatch):
    data, part = batches(6), tmp_path / "x.part"
    with pytest.raises(Killed):
        run(until(data, 4), part)
    seen = []
    original = DiagonalFisher.estimate
    monkeypatch.setattr(
        DiagonalFisher, "estimate", lambda self, m, b, **k: seen.append(len(b)) or original(self, m, b, **k)
    )
    run(data, part)
    assert seen == [3]


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    part = tmp_path / "x.part"
    run(batches(6), part)
    with pytest.raises(StoreError, match="written by a pass over other data"):
        run(batches(6, seed=1), part)
    with pytest.raises(StoreError, match="or with another `every`"):
        run(batches(6), part, every=2)


def test_estimators_that_cannot_resume_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="expected an estimator with one term per sample"):
        estimate_resumable(
            BatchedDiagonalFisher(), model(), batches(2), objective=CrossEntropy(), checkpoint=tmp_path / "x"
        )
    with pytest.raises(ConfigurationError, match="saw an empty iterable"):
        run([], tmp_path / "x.part")


def test_fill_resumes_with_the_next_group(tmp_path):
    groups = {"cat": batches(4), "dog": batches(5, seed=1)}

    def filled(store, data):
        fill(store, DiagonalFisher(), model(), data, objective=CrossEntropy(), every=EVERY)
        return store

    whole = filled(ImportanceStore.create(tmp_path / "whole"), groups)
    cut = ImportanceStore.create(tmp_path / "cut")
    with pytest.raises(Killed):
        filled(cut, {"cat": groups["cat"], "dog": until(groups["dog"], 4)})
    assert cut.keys == ("cat",)
    filled(cut, groups)
    assert cut.keys == whole.keys
    for name, total in whole.total().totals.items():
        assert torch.equal(total, cut.total().totals[name])
    assert [p for p in cut.folder.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("every", [0, -1])
def test_a_segment_has_at_least_one_batch(tmp_path, every):
    with pytest.raises(ConfigurationError, match=f"every: expected at least one batch in a segment, saw {every}"):
        estimate_resumable(
            DiagonalFisher(), nn.Linear(2, 2), [], objective=CrossEntropy(), checkpoint=tmp_path / "part", every=every
        )


def test_a_key_of_a_group_is_text(tmp_path):
    store = ImportanceStore.create(tmp_path / "store")
    batch = [(torch.randn(2, 2), torch.tensor([0, 1]))]
    found = DiagonalFisher().estimate(nn.Linear(2, 2), batch, objective=CrossEntropy())
    with pytest.raises(StoreError, match=r"expected text as the key of a group, saw 1: use str\(key\)"):
        store.put(1, found)
    with pytest.raises(StoreError, match="expected text as the key of a group, saw 1"):
        fill(store, DiagonalFisher(), nn.Linear(2, 2), {1: batch}, objective=CrossEntropy())
    assert store.keys == ()
