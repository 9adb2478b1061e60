"""`prune`: θ' = 0 where F_f > τ."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unlearnkit_methods.prune import Prune

from unlearnkit import ConfigurationError, Need, UnlearningInputs
from unlearnkit.testing import LawCase, from_unlearner, laws_for, parametrize_with_checks, rule_inputs, same

searched = settings(
    max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def oracle(theta, forget, tau):
    """Independent and slow: one weight at a time, in Python's own float64."""
    return [0.0 if f > tau else t for t, f in zip(theta.flatten().tolist(), forget.flatten().tolist(), strict=True)]


def test_worked_example():
    theta = torch.tensor([1.0, -2.0, 3.0, 4.0])
    forget = torch.tensor([0.0, 0.5, 0.25, 2.0])
    assert Prune().edit(theta, forget, torch.zeros(4)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert Prune(tau=0.25).edit(theta, forget, torch.zeros(4)).tolist() == [1.0, 0.0, 3.0, 0.0]
    assert Prune(tau=math.inf).edit(theta, forget, torch.zeros(4)).tolist() == theta.tolist()


@parametrize_with_checks([Prune(), Prune(tau=0.5), Prune(tau=math.inf)])
def test_contract(subject, law):
    law.check(subject, examples=None if subject == Prune() else 10)


@searched
@given(from_unlearner(Prune), rule_inputs())
def test_equals_a_loop_over_single_weights(method, case):
    edited = method.edit(case.theta, case.forget, case.reference)
    assert edited.dtype == case.theta.dtype
    at_the_edge = (case.forget.double() - method.tau).abs() <= 1e-6 * method.tau
    right = torch.tensor(oracle(case.theta, case.forget, method.tau), dtype=torch.float64).reshape(case.theta.shape)
    assert torch.equal(edited[~at_the_edge].double(), right.to(case.theta.dtype)[~at_the_edge].double())


@searched
@given(from_unlearner(Prune), rule_inputs(finite=False))
def test_unselected_weights_keep_their_bits(method, case):
    edited = method.edit(case.theta, case.forget, case.reference)
    kept = ~(case.forget > method.tau)
    assert same(edited[kept], case.theta[kept])
    assert same(edited[~kept], torch.zeros_like(case.theta)[~kept])


@searched
@given(rule_inputs(), st.data())
def test_the_reference_does_not_matter(case, data):
    other = data.draw(rule_inputs()).reference.flatten()[0]
    method = Prune(tau=1.0)
    elsewhere = torch.full_like(case.reference, other.item())
    assert same(method.edit(case.theta, case.forget, case.reference), method.edit(case.theta, case.forget, elsewhere))


def test_weight_with_zero_importances_is_not_selected():
    assert Prune(tau=0).edit(torch.ones(1), torch.zeros(1), torch.zeros(1)).item() == 1.0


def test_reference_is_neither_needed_nor_used():
    assert Prune.needs == {Need.FORGET_IMPORTANCE}
    law_case = LawCase()
    model = law_case.model()
    report = Prune().unlearn(model, UnlearningInputs(forget=law_case.importance(model, (0.0, 1.0))))
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert report.changed == zeros > 0


@pytest.mark.parametrize("tau", [-1.0, math.nan, "1", None])
def test_other_thresholds_are_refused(tau):
    with pytest.raises(ConfigurationError, match=r"Prune.tau \(τ\): expected a number ≥ 0"):
        Prune(tau=tau)


def test_it_promises_no_scale():
    assert "scale-free" not in {law.name for law in laws_for(Prune())}
