"""`ssd-soft`: θ' = θ·F_r/(F_r + α·F_f), against exact fractions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from unlearnkit_methods.ssd_soft import SoftSynapticDampening as Soft

from unlearnkit import ConfigurationError
from unlearnkit.testing import from_unlearner, parametrize_with_checks, rule_inputs


def oracle(theta, f, r, alpha):
    """Independent: exact rational arithmetic, one weight at a time."""
    edited = []
    for t, a, b in zip(theta.tolist(), f.tolist(), r.tolist(), strict=True):
        down = Fraction(b) + Fraction(alpha) * Fraction(a)
        edited.append(float(Fraction(t) * Fraction(b) / down) if down else t)
    return torch.tensor(edited, dtype=torch.float64)


def test_worked_example():
    theta = torch.tensor([4.0, -4.0, 4.0, 4.0, 4.0])
    forget = torch.tensor([2.0, 6.0, 0.0, 5.0, 0.0])
    reference = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    # the factors are 1 of 1 + 1, 1 of 1 + 3, 1 of 1 + 0, 0 of 0 + 2.5, and 0 of 0, which keeps the weight
    assert Soft(alpha=0.5).edit(theta, forget, reference).tolist() == [2.0, -1.0, 4.0, 0.0, 4.0]


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 1.0, 250.0])
def test_the_equation_against_an_oracle_in_float64(alpha):
    generator = torch.Generator().manual_seed(3)
    theta, f, r = torch.randn(3, 400, generator=generator, dtype=torch.float64)
    f, r = (10.0 ** (6 * t) for t in (f, r))
    f[::7], r[::11] = 0.0, 0.0
    expected = oracle(theta, f, r, alpha)
    assert torch.allclose(Soft(alpha=alpha).edit(theta, f, r), expected, rtol=1e-12, atol=0)


def test_limits_of_alpha():
    theta, f, r = torch.full((4,), -7.0), torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert Soft(alpha=math.inf).edit(theta, f, r).tolist() == [0.0, -7.0, 0.0, -7.0]
    assert Soft(alpha=0.0).edit(theta, f, r).tolist() == [-7.0] * 4
    largest = torch.full((1,), torch.finfo(torch.float32).max)
    assert Soft(alpha=1.0).edit(torch.ones(1), largest, largest).item() == 0.5  # F_r + α·F_f would overflow


@given(case=rule_inputs(weights=(torch.float64,)), method=from_unlearner(Soft))
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_a_larger_alpha_leaves_less(case, method):
    more = Soft(alpha=2 * method.alpha)
    one, other = (m.edit(case.theta, case.forget, case.reference).abs() for m in (method, more))
    # α = 0 keeps a weight with F_r = 0 < F_f, where the factor is 0/0
    assert bool((other <= one).all())


def test_errors():
    with pytest.raises(ConfigurationError, match=r"alpha \(α\): expected a number ≥ 0, saw -0.5"):
        Soft(alpha=-0.5)


@parametrize_with_checks([Soft()])
def test_contract(subject, law):
    law.check(subject)


@pytest.mark.slow
@parametrize_with_checks([Soft(alpha=math.inf), Soft(alpha=0.0), Soft(alpha=3.0)])
def test_contract_with_other_options(subject, law):
    law.check(subject)


def test_by_name_on_the_digits(run_by_name):
    record, before, after = run_by_name("ssd-soft", options="{alpha = 0.3}")
    for name in (t.name for t in record.report.tensors):
        assert bool((after[name].abs() <= before[name].abs()).all())
    assert record.report.fraction > 0.5
    assert record.after["forget-test"].accuracy < record.before["forget-test"].accuracy
