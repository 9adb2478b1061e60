"""`ssd-adaptive`: SSD whose α is a percentile of the ratios, against numpy and plain arithmetic."""

import math

import attrs
import numpy as np
import pytest
import torch
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD
from unlearnkit_methods.ssd_adaptive import AdaptiveSynapticDampening as Adaptive
from unlearnkit_methods.ssd_adaptive import percentile

from unlearnkit import ConfigurationError, Importance, MismatchError, UnlearningInputs, UnlearnKitWarning
from unlearnkit.importance.sampled_reference import sampled_reference
from unlearnkit.testing import parametrize_with_checks


def importance(*values, count=1, **known):
    return Importance(totals={"weight": torch.tensor([values], dtype=torch.float64)}, count=count, **known)


def drawn(seed, size=1000):
    generator = torch.Generator().manual_seed(seed)
    f, r = torch.rand(2, size, generator=generator, dtype=torch.float64)
    f[::7], r[::11] = 0.0, 0.0  # 0/x, x/0 and, every 77th, 0/0
    return f, r


def oracle(theta, f, r, p, lam):
    """Independent: numpy's interpolated percentile, then SSD one weight at a time."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = f.numpy() / r.numpy()
    alpha = np.percentile(ratios[np.isfinite(ratios)], 100 - math.log(1 + 100 * p))
    edited = []
    for t, a, b in zip(theta.tolist(), f.tolist(), r.tolist(), strict=True):
        edited.append(t * min(lam * b / a, 1.0) if a > alpha * b else t)
    return torch.tensor(edited, dtype=torch.float64), alpha


def test_worked_example():
    # p = 1/100: q = 100 − ln 2 = 99.31; 200 ratios 1 … 200, of which the 99.31th percentile lies between 198 and 199
    ratios = [float(i) for i in range(1, 201)]
    forget = importance(*ratios, samples=1)
    full = importance(*[1.0] * 200, samples=100)
    assert percentile(forget, full) == 198.0
    ready = Adaptive(lam=2.0).prepare(forget, full)
    edited = ready.edit(torch.ones(1, 200, dtype=torch.float64), forget.totals["weight"], full.totals["weight"])
    assert edited[0, :198].tolist() == [1.0] * 198
    assert edited[0, 198:].tolist() == pytest.approx([2 / 199, 2 / 200])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("p", "lam"), [(0.0001, 1.0), (0.01, 0.5), (0.1, 3.0), (1.0, 1.0)])
def test_the_equation_against_an_oracle_in_float64(seed, p, lam):
    f, r = drawn(seed)
    theta = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    forget = Importance(totals={"a": f[:300], "b": f[300:]}, count=1, samples=round(10_000 * p))
    full = Importance(totals={"a": r[:300], "b": r[300:]}, count=1, samples=10_000)
    ready = Adaptive(lam=lam).prepare(forget, full)
    expected, alpha = oracle(theta, f, r, p, lam)
    assert ready.alpha <= alpha
    assert torch.equal(ready.edit(theta, f, r), expected)


def test_how_zeros_enter():
    # 0/0 and x/0 do not count; x/0 is dampened to 0 whatever α is, 0/0 and 0/x never are
    forget, full = importance(0.0, 5.0, 0.0, 1.0, 2.0), importance(0.0, 0.0, 1.0, 1.0, 1.0)
    ready = Adaptive().prepare(forget, full)
    assert ready.alpha == 1.0  # of 0, 1, 2
    edited = ready.edit(torch.ones(1, 5), forget.totals["weight"], full.totals["weight"])
    assert edited.tolist() == [[1.0, 0.0, 1.0, 1.0, 0.5]]
    only = Adaptive().prepare(importance(1.0, 0.0), importance(0.0, 0.0))
    assert only.alpha == 0.0
    edited = only.edit(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    assert edited.tolist() == [[0.0, 1.0]]


def test_the_share_of_the_forget_set():
    forget = importance(*map(float, range(1, 1001)), count=20, samples=10)
    ones = [1.0] * 1000

    def rank(reference):
        return round(percentile(forget, reference) * 20)

    def index(p):
        return 1 + math.floor((100 - math.log(1 + 100 * p)) / 100 * 999)

    assert rank(importance(*ones, count=1, samples=100, role="full")) == index(0.1)
    assert rank(importance(*ones, count=1, samples=90, role="retain")) == index(0.1)  # |D| = |D_f| + |D_r|
    assert rank(importance(*ones, count=1, samples=5)) == index(1.0)  # never more than all of D
    assert rank(importance(*ones, count=1)) == index(1.0)  # counts, where samples are not known: 20 of 1


@pytest.mark.parametrize("with_forget", [True, False], ids=["full", "retain"])
def test_the_share_of_the_forget_set_beside_a_reference_from_a_sample(with_forget):
    forget = importance(*map(float, range(1, 1001)), count=10, samples=10, role="forget")
    retain = importance(*[30.0] * 1000, count=30, samples=30, role="retain")  # 30 of 90
    reference = sampled_reference(retain, retained=90, seed=0, forget=forget if with_forget else None)
    known = attrs.evolve(reference, samples=reference.count, fingerprint=None)
    assert percentile(forget, reference) == percentile(forget, known)
    assert percentile(forget, reference) != percentile(forget, attrs.evolve(known, samples=reference.samples))
    with pytest.raises(MismatchError, match=r"expected normalise = true beside .* \(30 of 90 retained samples"):
        percentile(forget.unnormalised(), reference.unnormalised())


def test_a_given_alpha_is_ssd():
    f, r = drawn(9)
    theta = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    method = Adaptive(alpha=3.0)
    whole = Importance(totals={"w": f}, count=1)
    assert method.prepare(whole, whole) is method
    assert torch.equal(method.edit(theta, f, r), SSD(alpha=3.0).edit(theta, f, r))


def test_ties_select_nothing_and_the_report_says_so():
    model = torch.nn.Linear(3, 1, bias=False)
    equal = importance(2.0, 2.0, 2.0)
    with pytest.warns(UnlearnKitWarning, match="is also their largest"):
        report = Adaptive().unlearn(model, UnlearningInputs(forget=equal, reference=importance(1.0, 1.0, 1.0)))
    assert report.changed == 0
    assert "α = 2, the chosen percentile of F_f/F_r, is also their largest: nothing" in report.sentence()
    f, r = importance(1.0, 2.0, 3.0), importance(1.0, 1.0, 1.0)
    assert Adaptive().unlearn(model, UnlearningInputs(forget=f, reference=r)).changed == 1


def test_errors():
    with pytest.raises(ConfigurationError, match=r"lam \(λ\): expected a number ≥ 0, saw -1"):
        Adaptive(lam=-1)
    with pytest.raises(MismatchError, match=r"expected an object from prepare\(\)"):
        Adaptive().rule(*torch.ones(3, 1))


@parametrize_with_checks([Adaptive()])
def test_contract(subject, law):
    law.check(subject)


@pytest.mark.slow
@parametrize_with_checks([Adaptive(alpha=2.0, lam=0.5), Adaptive(lam=math.inf), Adaptive(lam=0.0, alpha=math.inf)])
def test_contract_with_other_options(subject, law):
    law.check(subject)


def test_by_name_on_the_digits(run_by_name):
    record, before, after = run_by_name("ssd-adaptive")
    differ = sum(int((after[t.name] != before[t.name]).sum()) for t in record.report.tensors)
    assert differ == record.report.changed
    # 137 of 1347 samples: ln(1 + 10.17) = 2.41 % of the weights, all of which some image depends on
    assert abs(record.report.changed - 0.02413 * record.report.size) < 1
    assert record.report.provider.startswith("unlearnkit ")
