"""`binary-mask`: θ' = 0 where F_f > λ·F_r."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from unlearnkit_methods.binary_mask import BinaryMask
from unlearnkit_methods.ssd import SelectiveSynapticDampening

from unlearnkit import ConfigurationError
from unlearnkit.testing import from_unlearner, parametrize_with_checks, rule_inputs, same

searched = settings(
    max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def oracle(case, lam):
    """Independent and slow: one weight at a time, in Python's own float64."""
    rows = zip(*(t.flatten().tolist() for t in (case.theta, case.forget, case.reference)), strict=True)
    return torch.tensor([0.0 if f > lam * r else t for t, f, r in rows], dtype=torch.float64).reshape(case.theta.shape)


def edit(method, case):
    return method.edit(case.theta, case.forget, case.reference)


def test_worked_example():
    theta = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0])
    forget = torch.tensor([1.0, 3.0, 0.0, 0.5, 2.0])
    reference = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    assert BinaryMask().edit(theta, forget, reference).tolist() == [1.0, 0.0, 3.0, 0.0, 0.0]
    assert BinaryMask(lam=2.0).edit(theta, forget, reference).tolist() == [1.0, 0.0, 3.0, 0.0, 5.0]


@parametrize_with_checks([BinaryMask(), BinaryMask(lam=0.25), BinaryMask(lam=math.inf)])
def test_contract(subject, law):
    law.check(subject, examples=None if subject == BinaryMask() else 10)


@searched
@given(from_unlearner(BinaryMask), rule_inputs(moderate=True))
def test_equals_a_loop_over_single_weights(method, case):
    bound = method.lam * case.reference.double()
    clear = ((case.forget.double() - bound).abs() > 1e-6 * bound) | (bound == 0) | bound.isnan()
    assert torch.equal(edit(method, case)[clear].double(), oracle(case, method.lam)[clear])


@searched
@given(from_unlearner(BinaryMask), rule_inputs(finite=False))
def test_unselected_weights_keep_their_bits(method, case):
    kept = ~(case.forget > method.lam * case.reference)
    edited = edit(method, case)
    assert same(edited[kept], case.theta[kept])
    assert same(edited[~kept], torch.zeros_like(case.theta)[~kept])


@searched
@given(from_unlearner(BinaryMask), rule_inputs())
def test_it_is_dampening_to_zero(method, case):
    assert same(
        edit(method, case),
        edit(SelectiveSynapticDampening(alpha=method.lam, lam=0.0), case)
        .abs()
        .where(case.forget > method.lam * case.reference, case.theta),
    )


@searched
@given(rule_inputs(weights=[torch.float64], moderate=True))
def test_sums_over_2_and_194_batches_are_means_with_97_times_lambda(case):
    bound = case.reference.double()
    clear = (case.forget.double() - bound).abs() > 1e-9 * bound
    sums = BinaryMask(lam=1.0).edit(case.theta, case.forget, case.reference)
    means = BinaryMask(lam=97.0).edit(case.theta, case.forget / 2, case.reference.double() / 194)
    assert torch.equal(sums[clear], means[clear])


def test_weight_with_zero_importances_is_not_selected():
    for lam in (0.5, 1.0, math.inf):
        assert BinaryMask(lam=lam).edit(torch.ones(1), torch.zeros(1), torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, True])
def test_other_options_are_refused(lam):
    with pytest.raises(ConfigurationError, match=r"BinaryMask.lam \(λ\): expected a number > 0"):
        BinaryMask(lam=lam)
