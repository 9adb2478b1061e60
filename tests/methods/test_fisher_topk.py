"""`fisher-topk`: exactly k weights, ties included; against a plain sort."""

import math

import pytest
import torch
from torch import nn
from unlearnkit_methods.fisher_topk import FisherTopK as TopK
from unlearnkit_methods.fisher_topk import largest

from unlearnkit import ConfigurationError, Importance, UnlearningInputs, UnlearnKitWarning
from unlearnkit.testing import Snapshot, parametrize_with_checks


def oracle(f, r, k):
    """Independent: Python's stable sort by (ratio, F_f), the largest first."""
    rows = [(math.inf if b == 0 else a / b, a, -i) for i, (a, b) in enumerate(zip(f, r, strict=True)) if a > 0]
    return sorted(-i for _, _, i in sorted(rows, reverse=True)[:k])


def net(dtype=torch.float32):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    return model


def importance(model, seed, levels=1000):
    generator = torch.Generator().manual_seed(seed)
    totals = {n: torch.randint(levels, p.shape, generator=generator).float() for n, p in model.named_parameters()}
    return Importance(totals=totals, count=3)


def zeroed(model):
    return torch.cat([p.detach().reshape(-1) == 0 for p in model.parameters()])


def test_worked_example():
    f = torch.tensor([2.0, 6.0, 3.0, 9.0, 0.0, 1.0], dtype=torch.float64)
    r = torch.tensor([1.0, 1.0, 0.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    # ratios 2, 6, ∞, 3, –, ∞: the two infinities by F_f, then 6, 3, 2; 0/0 never
    order = [2, 5, 1, 3, 0]
    for k in range(8):
        assert largest(f, r, k).nonzero().squeeze(1).tolist() == sorted(order[:k])


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_the_selection_against_an_oracle(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    f, r = torch.randint(levels, (2, 200), generator=generator).double()
    for k in (0, 1, 17, 100, 200):
        assert largest(f, r, k).nonzero().squeeze(1).tolist() == oracle(f.tolist(), r.tolist(), k)


@pytest.mark.parametrize("levels", [2, 1000])  # 2: nearly all tie
@pytest.mark.parametrize("method", [TopK(k=5), TopK(fraction=0.25), TopK(k=2, scope="tensor"), TopK(fraction=0.5)])
def test_never_more_than_k(levels, method):
    model = net()
    forget, full = importance(model, 1, levels), importance(model, 2, levels)
    report = method.unlearn(model, UnlearningInputs(forget=forget, reference=full))
    live = {name: int((t > 0).sum()) for name, t in forget.totals.items()}
    if method.scope == "tensor":
        assert {t.name: t.changed for t in report.tensors} == {n: min(method.k, alive) for n, alive in live.items()}
    else:
        k = method.k or int(method.fraction * 23)
        assert report.changed == min(k, sum(live.values())) == int(zeroed(model).sum())


def test_which_weights_of_a_model():
    model = net(torch.bfloat16)
    forget, full = importance(model, 3), importance(model, 4)
    TopK(k=6).unlearn(model, UnlearningInputs(forget=forget, reference=full))
    f, r = (torch.cat([t.reshape(-1).double() / 3 for t in i.totals.values()]) for i in (forget, full))
    assert zeroed(model).nonzero().squeeze(1).tolist() == oracle(f.tolist(), r.tolist(), 6)


def test_frozen_weights_are_not_among_them():
    model = net()
    model[0].requires_grad_(False)
    forget, full = (
        Importance(totals={n: t for n, t in importance(model, s).totals.items() if n[0] == "1"}, count=1)
        for s in (1, 2)
    )
    before = Snapshot.take(model)
    assert TopK(k=100).unlearn(model, UnlearningInputs(forget=forget, reference=full)).changed == 8
    assert not before.differences(Snapshot.take(model), "buffers", "modes")
    assert bool((model[0].weight == 1).all())


def test_fractions_are_rounded_down_but_not_by_rounding_errors():
    assert TopK(fraction=0.29)._count(100) == 29  # 0.29 · 100 = 28.999999999999996
    assert TopK(fraction=0.999)._count(10) == 9
    assert TopK(fraction=1.0)._count(7) == 7
    assert TopK(k=9)._count(7) == 7


def test_too_small_fraction_gives_a_remark():
    model = net()
    inputs = UnlearningInputs(forget=importance(model, 1), reference=importance(model, 2))
    with pytest.warns(UnlearnKitWarning, match="less than one"):
        report = TopK(fraction=0.01).unlearn(model, inputs)
    assert "fraction = 0.01 of 23 weights is less than one: nothing can be selected." in report.sentence()
    with pytest.warns(UnlearnKitWarning, match="of 12 weights"):
        TopK(fraction=0.05, scope="tensor").unlearn(model, inputs)


def test_idempotent():
    once = net()
    inputs = UnlearningInputs(forget=importance(once, 1), reference=importance(once, 2))
    TopK(k=5).unlearn(once, inputs)
    assert TopK(k=5).unlearn(once, inputs).changed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, r"k \(k\): expected a whole number ≥ 0, saw -1"),
        ({"fraction": 1.5}, "expected a number ≥ 0 ≤ 1, saw 1.5"),
        ({"scope": "layer"}, "expected one of 'global', 'tensor', saw 'layer'"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TopK(**options)


@parametrize_with_checks([TopK(fraction=0.2)])
def test_contract(subject, law):
    law.check(subject)


@pytest.mark.slow
@parametrize_with_checks([TopK(k=2, scope="tensor"), TopK(fraction=1.0), TopK()])
def test_contract_with_other_options(subject, law):
    law.check(subject)


def test_by_name_on_the_digits(run_by_name):
    record, before, after = run_by_name("fisher-topk", options="{k = 10}")
    assert record.report.changed == 10
    gone = [after[t.name][after[t.name] != before[t.name]] for t in record.report.tensors]
    assert torch.cat(gone).tolist() == [0.0] * 10
    assert record.report.options == {"fraction": 0.01, "k": 10, "scope": "global"}
