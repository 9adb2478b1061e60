"""`ratio_threshold`: the α that selects a share of the weights, by counting."""

import math

import pytest
import torch

from unlearnkit import Importance
from unlearnkit.importance import ratio_threshold, ratios


def importances(forget, reference, *, counts=(1, 1)):
    pair = (forget, reference)
    return [
        Importance(totals={"w": torch.tensor(v, dtype=torch.float32)}, count=c)
        for v, c in zip(pair, counts, strict=True)
    ]


@pytest.mark.parametrize(("fraction", "ratio"), [(0.0, 8.0), (0.2, 8.0), (0.39, 8.0), (0.4, 4.0), (0.6, 2.0)])
def test_worked_example(fraction, ratio):
    """Five weights with the ratios 8, 4, 2, 1 and 0/0: a fifth of them is one."""
    forget, reference = importances([8.0, 12.0, 4.0, 1.0, 0.0], [1.0, 3.0, 2.0, 1.0, 0.0])
    assert ratio_threshold(forget, reference, fraction=fraction) == pytest.approx(ratio, rel=2e-6)


def test_means_are_compared_not_totals():
    forget, reference = importances([8.0, 2.0], [4.0, 4.0], counts=(2, 8))
    assert ratio_threshold(forget, reference, fraction=0.0) == pytest.approx(8.0, rel=2e-6)
    sums = ratio_threshold(forget.unnormalised(), reference.unnormalised(), fraction=0.0)
    assert sums == pytest.approx(2.0, rel=2e-6)


def test_weights_that_the_reference_does_not_need_count_among_the_fraction():
    """Ratios ∞, ∞, 3 and 2: half of the weights are selected at every α."""
    forget, reference = importances([1.0, 2.0, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0])
    for fraction, ratio in ((0.1, 3.0), (0.5, 3.0), (0.75, 3.0), (1.0, 2.0)):
        assert ratio_threshold(forget, reference, fraction=fraction) == pytest.approx(ratio, rel=2e-6)


def test_weights_without_importance_are_never_selected():
    forget, reference = importances([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    assert 0 < ratio_threshold(forget, reference, fraction=1.0) < 1e-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_selects_the_share_in_spite_of_rounding(dtype):
    generator = torch.Generator().manual_seed(0)
    f, r = (torch.rand(999, generator=generator, dtype=dtype) for _ in range(2))
    one, other = (Importance(totals={"w": t[:500], "v": t[500:]}, count=3) for t in (f, r))
    for fraction in (0.0, 0.002, 0.01, 0.123, 0.5, 0.9):
        alpha = ratio_threshold(one, other, fraction=fraction)
        assert int((f > alpha * r).sum()) == max(1, int(fraction * 999))


def test_all_that_tie_at_the_threshold_are_selected():
    """As where tokens occur in the forget set only: their weights all have F_f/F_D = 1/p."""
    forget, reference = importances([0.3, 0.6, 0.9, 7.0, 1.0], [0.1, 0.2, 0.3, 1.0, 1.0])
    alpha = ratio_threshold(forget, reference, fraction=0.5)
    assert int((forget.totals["w"] > alpha * reference.totals["w"]).sum()) == 4


@pytest.mark.parametrize("power", [0, 20])
def test_the_same_as_by_sorting_all_ratios(power, monkeypatch):
    """In pieces of a few weights; with many powers of ten, and with −0, which is 0."""
    monkeypatch.setattr(ratios, "_AT_A_TIME", 7)
    generator = torch.Generator().manual_seed(1)
    f, r = (
        torch.rand(500, generator=generator) * 10.0 ** (power * torch.randn(500, generator=generator)).clamp(-30, 30)
        for _ in range(2)
    )
    f[::9], r[::11] = -0.0, 0.0
    one, other = (Importance(totals={"w": t[:301], "v": t[301:].reshape(-1, 1)}, count=1) for t in (f, r))
    ordered = (f.double() / r.double()).abs()
    ordered = ordered[~ordered.isnan()].sort(descending=True).values.tolist()
    for fraction in (0.1, 0.3, 0.7, 0.88):
        seen = ratio_threshold(one, other, fraction=fraction)
        assert seen == pytest.approx(max(1e-30, ordered[math.floor(fraction * 500) - 1]), rel=2e-6)


def test_memory_for_ratios_of_a_part_of_the_weights_only(monkeypatch):
    """No tensor of all ratios is made: pieces, and those that share 16 bits with the threshold."""
    monkeypatch.setattr(ratios, "_AT_A_TIME", 10)
    seen = []
    joined = torch.cat
    monkeypatch.setattr(torch, "cat", lambda some: seen.append(joined(some)) or seen[-1])
    forget, reference = importances([float(i + 1) for i in range(1000)], [1.0] * 1000)
    assert ratio_threshold(forget, reference, fraction=0.5) == pytest.approx(501, rel=2e-6)
    assert [len(one) for one in seen] == [16]  # from 496 to 511
