"""The running totals: layouts, chunks and rounding."""

import pytest
import torch

from unlearnkit.importance.fisher.engine.kernel import KernelPlan
from unlearnkit.importance.fisher.engine.totals import Totals


def totals(shape=(2, 3), memory=1 << 20, **options):
    return Totals({"w": torch.zeros(shape)}, double=options.pop("double", False), memory=memory, **options)


def test_layouts_are_added_in_the_shape_of_the_parameter():
    t = totals()
    t.slot("w").add(torch.ones(4, 2, 3))
    turned = KernelPlan(name="turned", shape=(3, 2), run=lambda into: into.squares.add_(1.0), finish=lambda b: b.t())
    t.slot("w").run([turned])
    assert torch.equal(t.result()["w"], torch.full((2, 3), 5.0))


def test_single_rows():
    t = totals()
    t.slot("w").add_rows(torch.tensor([[1.0, 2, 3], [1, 1, 1]]), torch.tensor([1, 1]))
    assert t.result()["w"].tolist() == [[0, 0, 0], [2, 5, 10]]


def test_rounding_below_zero_is_zero_and_nan_stays():
    t = totals((3,))
    t.buffer("w", "plain", (3,), lambda b: b).copy_(torch.tensor([-1e-9, 1.0, float("nan")]))
    seen = t.result()["w"]
    assert float(seen[0]) == 0
    assert float(seen[1]) == 1
    assert bool(seen[2].isnan())


def test_unused_parameters_are_zero_in_the_right_dtype():
    assert totals(double=True).result()["w"].dtype == torch.float64
    assert totals((0,)).result()["w"].shape == (0,)


@pytest.mark.parametrize(("memory", "expected"), [(1, 5), (1 << 20, 1), (48, 3)])
def test_chunks_stay_within_memory(memory, expected):
    slot = totals(memory=memory).slot("w")
    cuts = list(slot.chunks(5, slot.numel))
    assert len(cuts) == expected
    assert [i for c in cuts for i in range(5)[c]] == list(range(5))


def test_half_precision_is_squared_in_float32():
    t = Totals({"w": torch.zeros(2, dtype=torch.float16)}, double=False, memory=1)
    t.slot("w").add(torch.full((1, 2), 1e-4, dtype=torch.float16))
    assert float(t.result()["w"][0]) == pytest.approx(1e-8, rel=1e-2)
