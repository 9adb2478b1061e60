"""`ssd`: θ' = θ·min(λ·F_r/F_f, 1) where F_f > α·F_r: the rule against plain arithmetic."""

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from unlearnkit_methods.prune import Prune
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD

from unlearnkit import ConfigurationError, Importance, UnlearningInputs
from unlearnkit.testing import from_unlearner, parametrize_with_checks, rule_inputs, same

searched = settings(
    max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def oracle(case, alpha, lam, epsilon=0.0):
    """Independent and slow: one weight at a time, in Python's own float64."""
    rows = zip(*(t.flatten().tolist() for t in (case.theta, case.forget, case.reference)), strict=True)
    edited = []
    for theta, forget, reference in rows:
        if forget > alpha * reference:
            beta = 0.0 if reference == 0 else min(lam * reference / (forget + epsilon), 1.0)
            edited.append(theta * beta)
        else:
            edited.append(theta)
    return torch.tensor(edited, dtype=torch.float64).reshape(case.theta.shape)


def edit(method, case):
    return method.edit(case.theta, case.forget, case.reference)


def clear(case, alpha):
    """Weights whose selection does not depend on rounding."""
    bound = alpha * case.reference.double()
    return ((case.forget.double() - bound).abs() > 1e-6 * bound) | (bound == 0) | ~bound.isfinite()


def test_worked_example():
    theta = torch.tensor([1.0, 1.0, -8.0, 3.0, 3.0])
    forget = torch.tensor([10.0, 20.0, 16.0, 0.0, 5.0])
    reference = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    # F_f = α·F_r is not selected; β = 1/20; β = 1/16; a weight with F_f = F_r = 0 stays; F_r = 0 < F_f becomes 0
    assert SSD().edit(theta, forget, reference).tolist() == pytest.approx([1.0, 0.05, -0.5, 3.0, 0.0])
    # λ = 32: β is clamped at 1 where 32/20 and 32/16 are above it
    assert SSD(lam=32.0).edit(theta, forget, reference).tolist() == [1.0, 1.0, -8.0, 3.0, 0.0]


@parametrize_with_checks(
    [
        SSD(),
        SSD(alpha=1.0, lam=4.0),
        SSD(alpha=math.inf),
        SSD(lam=0.0),
        SSD(lam=math.inf),
        SSD(alpha=0.5, epsilon=1e-8),
    ]
)
def test_contract(subject, law):
    law.check(subject, examples=None if subject == SSD() else 8)


@searched
@given(from_unlearner(SSD, epsilon=st.just(0.0)), rule_inputs(moderate=True))
def test_equals_a_loop_over_single_weights_in_every_dtype(method, case):
    seen, right = edit(method, case).double(), oracle(case, method.alpha, method.lam)
    limits = torch.finfo(case.theta.dtype)
    # within the rounding of float32 arithmetic and of the dtype of θ
    allowed = right.abs() * max(limits.eps, 8 * torch.finfo(torch.float32).eps) + limits.tiny
    sure = clear(case, method.alpha)
    assert ((seen - right).abs() <= allowed)[sure].all()


@searched
@given(from_unlearner(SSD), rule_inputs(finite=False))
def test_unselected_weights_keep_their_bits(method, case):
    kept = ~(case.forget > method.alpha * case.reference)
    assert same(edit(method, case)[kept], case.theta[kept])


@searched
@given(st.floats(2**-6, 2**6), rule_inputs())
def test_lambda_0_is_prune_of_the_same_selection(alpha, case):
    # F_f > α·F_r is F_f − α·F_r > 0, which is what prune selects at τ = 0
    selected = (case.forget > alpha * case.reference).to(case.forget.dtype)
    pruned = Prune().edit(case.theta, selected, case.reference)
    assert torch.equal(edit(SSD(alpha=alpha, lam=0.0), case), pruned)


@searched
@given(st.floats(0, 2**6), rule_inputs(finite=False))
def test_alpha_infinite_is_identity(lam, case):
    assert same(edit(SSD(alpha=math.inf, lam=lam), case), case.theta)


@pytest.mark.parametrize("alpha", [1.0, 1e10, 1e30, 3e38])  # beyond float32, α is ∞
def test_every_finite_alpha_selects_what_the_reference_does_not_need(alpha):
    edited = SSD(alpha=alpha).edit(torch.ones(2), torch.tensor([1e-30, 1.0]), torch.tensor([0.0, 1.0]))
    assert edited.tolist() == [0.0, 1.0]


@searched
@given(st.floats(2**-6, 2**6), st.floats(0, 1), rule_inputs(moderate=True))
def test_clamp_has_no_effect_for_lambda_up_to_alpha(alpha, share, case):
    lam = share * alpha
    case = case.map(torch.Tensor.double)
    beta = lam * (case.reference / case.forget)
    selected = case.forget > alpha * case.reference
    assert (beta[selected] <= 1 + 1e-12).all()
    without = torch.where(selected, case.theta * beta, case.theta)
    torch.testing.assert_close(edit(SSD(alpha=alpha, lam=lam), case), without, rtol=1e-12, atol=0)


def test_clamp_limits_lambda_above_alpha():
    assert SSD(alpha=1.0, lam=4.0).edit(torch.ones(1), torch.tensor([2.0]), torch.ones(1)).item() == 1.0


@searched
@given(st.integers(1, 5), rule_inputs(weights=[torch.float64], moderate=True))
def test_k_times_with_the_same_importances_is_beta_to_the_k(k, case):
    method, theta = SSD(alpha=2.0, lam=1.0), case.theta.clamp(-1e100, 1e100)
    assume(bool((theta.abs() > 1e-100).all()))
    for _ in range(k):
        theta = method.edit(theta, case.forget.double(), case.reference.double())
    beta = (case.reference.double() / case.forget).clamp(max=1)
    once = torch.where(case.forget > 2 * case.reference, beta, torch.ones_like(beta))
    torch.testing.assert_close(theta, case.theta.clamp(-1e100, 1e100) * once**k, rtol=1e-12, atol=0)


def test_it_is_not_idempotent():
    one = torch.ones(1)
    once = SSD().edit(one, 20 * one, one)
    assert SSD().edit(once, 20 * one, one).item() == pytest.approx(once.item() ** 2)


@pytest.mark.parametrize("lam", [0.0, 1.0, math.inf])
@pytest.mark.parametrize("alpha", [1e-3, 10.0, math.inf])
def test_weight_with_zero_importances_is_never_selected(alpha, lam):
    assert SSD(alpha=alpha, lam=lam).edit(torch.ones(1), torch.zeros(1), torch.zeros(1)).item() == 1.0


def test_lambda_infinite_zeroes_what_the_reference_does_not_need_and_nothing_else():
    edited = SSD(alpha=1.0, lam=math.inf).edit(torch.ones(3), torch.tensor([2.0, 2.0, 0.0]), torch.tensor([1.0, 0, 0]))
    assert edited.tolist() == [1.0, 0.0, 1.0]


@searched
@given(rule_inputs(weights=[torch.float32], moderate=True))
def test_epsilon_gives_the_notebook_s_formula(case):
    theta, forget, reference = case.theta, case.forget.float(), case.reference.float()
    notebook = theta.clone()
    chosen = forget > 10.0 * reference
    dampening = torch.min(1.0 * reference / (forget + 1e-8), torch.ones_like(reference))
    notebook[chosen] *= dampening[chosen]
    seen = SSD(alpha=10.0, lam=1.0, epsilon=1e-8).edit(theta, forget, reference)
    torch.testing.assert_close(seen, notebook, rtol=1e-6, atol=0)


def drawn(seed, size=4000):
    """Weights and importances with realistic ranges, on both sides of the threshold."""
    generator = torch.Generator().manual_seed(seed)
    theta, forget, reference = (torch.randn(size, generator=generator) for _ in range(3))
    return theta, forget.mul(2).exp(), reference.mul(2).exp()


def published(theta, forget, reference, alpha, lam):
    """The arithmetic of the published code of Foster, Schoepf and Brintrup, line by line."""
    edited = theta.clone()
    located = torch.where(forget > reference.mul(alpha))
    weight = ((reference.mul(lam)).div(forget)).pow(1)
    update = weight[located]
    update[torch.where(update > 1)] = 1
    edited[located] = edited[located].mul(update)
    return edited


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.3, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("alpha", [0.5, 3.0, 10.0])
def test_the_bits_are_those_of_the_published_code_at_every_lambda(alpha, lam):
    theta, forget, reference = drawn(seed=int(10 * (alpha + lam)))
    right = published(theta, forget, reference, alpha, lam)
    model = torch.nn.Linear(theta.numel(), 1, bias=False)
    model.weight.data = theta.reshape(1, -1).clone()
    inputs = UnlearningInputs(
        forget=Importance(totals={"weight": forget.reshape(1, -1)}, count=1),
        reference=Importance(totals={"weight": reference.reshape(1, -1)}, count=1),
    )
    report = SSD(alpha=alpha, lam=lam).unlearn(model, inputs)
    assert same(model.weight.detach()[0], right)
    assert report.changed == int((theta != right).sum()) > 100


def test_the_other_order_of_operations_has_other_bits():
    theta, forget, reference = drawn(seed=1)
    right = published(theta, forget, reference, 3.0, 0.3)
    selected = forget > 3.0 * reference
    other = torch.where(selected, theta * (0.3 * (reference / forget)).clamp(max=1.0), theta)
    assert int((other != right).sum()) > 0.1 * int(selected.sum())


@pytest.mark.parametrize("lam", [0.1, 0.3, 1.0, 2.5])
def test_the_bits_are_those_of_the_notebook_at_every_lambda(lam):
    theta, forget, reference = drawn(seed=2)
    notebook = theta.clone()
    chosen = forget > 10.0 * reference
    dampening = torch.min(lam * reference / (forget + 1e-8), torch.ones_like(reference))
    notebook[chosen] *= dampening[chosen]
    assert same(SSD(alpha=10.0, lam=lam, epsilon=1e-8).edit(theta, forget, reference), notebook)


def test_epsilon_makes_pruning_of_dampening_for_small_importances():
    theta, forget, reference = torch.ones(1), torch.tensor([2e-14]), torch.tensor([1e-14])
    assert SSD(alpha=1.0).edit(theta, forget, reference).item() == pytest.approx(0.5)
    assert SSD(alpha=1.0, epsilon=1e-8).edit(theta, forget, reference).item() == pytest.approx(1e-6, rel=1e-3)


@searched
@given(st.sampled_from([1.0, 10.0]), st.sampled_from([0.5, 1.0]), rule_inputs(weights=[torch.float64], moderate=True))
def test_sums_over_2_and_194_batches_are_means_with_97_times_alpha_and_lambda(alpha, lam, case):
    forget = Importance(totals={"w": case.forget.double()}, count=2)
    reference = Importance(totals={"w": case.reference.double()}, count=194)
    sums = SSD(alpha=alpha, lam=lam).edit(
        case.theta, forget.unnormalised().mean()["w"], reference.unnormalised().mean()["w"]
    )
    means = SSD(alpha=97 * alpha, lam=97 * lam).edit(case.theta, forget.mean()["w"], reference.mean()["w"])
    sure = clear(case, alpha)
    torch.testing.assert_close(sums[sure], means[sure], rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"lam": -1.0}, {"epsilon": -1e-8}, {"alpha": math.nan}])
def test_other_options_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="expected a number"):
        SSD(**wrong)
