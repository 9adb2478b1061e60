"""`sampled-fisher` and `exact-fisher`: labels from the model, drawn per sample or in expectation."""

import collections
import copy
import dataclasses
import math

import attrs
import pytest
import torch
from torch import Tensor, nn
from unlearnkit_estimators.sampled_fisher import ExactFisher, SampledFisher, uniforms

from unlearnkit import ConfigurationError, CrossEntropy, DiagonalFisher, Objective
from unlearnkit.testing import SmallNet, parametrize_with_checks
from unlearnkit.testing.cases import Scaled

BOTH = [SampledFisher, ExactFisher]


def net(dtype=torch.float64):
    return SmallNet(layers=("conv", "batch-norm", "linear"), dtype=dtype, training=False, seed=4)


def inputs(size, dtype=torch.float64):
    return 4 * torch.rand(size, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def oracle(model, x, weight_of):
    """Independent: Σ_i Σ_c weight(i, c)·(∂ −log p_c)², one sample and one class at a time, in float64."""
    exact = copy.deepcopy(model).double().eval()
    totals = {name: torch.zeros_like(p).detach() for name, p in exact.named_parameters()}
    for i, row in enumerate(x.double()):
        for c in range(4):
            exact.zero_grad()
            log_p = torch.log_softmax(exact(row[None]), 1)[0]
            (-log_p[c]).backward()
            for name, p in exact.named_parameters():
                totals[name] += weight_of(i, c, log_p.exp().detach()) * p.grad**2
    return totals


def close(found, want, rtol=1e-9):
    for name, total in want.items():
        assert torch.allclose(found[name].double(), total, rtol=rtol, atol=rtol * float(total.max())), name


def logit_net(*logits):
    """Return these logits for every input, times the input's first number in their gradient."""
    model = nn.Linear(1, len(logits))
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor(logits))
    return model


def test_worked_example():
    # p = (¾, ¼). For label 0 the gradient of the bias is p − (1, 0) = (−¼, ¼), for label 1 (¾, −¾);
    # in expectation ¾·1/16 + ¼·9/16 = 3/16
    model, data = logit_net(math.log(3.0), 0.0), [(torch.zeros(2, 1),)]
    found = ExactFisher().estimate(model, data, objective=CrossEntropy())
    assert found.mean()["bias"].tolist() == pytest.approx([3 / 16, 3 / 16])
    assert (found.count, found.samples) == (2, 2)
    drawn = {
        round(float(SampledFisher(seed=s).estimate(model, data, objective=CrossEntropy()).mean()["bias"][0]), 6)
        for s in range(20)
    }
    assert drawn == {1 / 16, 9 / 16}


def test_exact_against_an_oracle_in_float64():
    found = ExactFisher().estimate(net(), [(inputs(5),)], objective=CrossEntropy())
    close(found.totals, oracle(net(), inputs(5), lambda _, c, p: float(p[c])))


@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_against_an_oracle_in_float64(draws):
    x, model = inputs(6), net()
    u = uniforms((x,), seed=8, draws=draws)
    below = model(x).detach().double().softmax(1).cumsum(1)
    # the label is the first class at which the distribution function passes u
    labels = [[next(c for c in range(4) if u[k, i] < below[i, c]) for i in range(6)] for k in range(draws)]
    assert len({label for row in labels for label in row}) > 1
    found = SampledFisher(seed=8, draws=draws).estimate(model, [(x,)], objective=CrossEntropy())
    close(found.totals, oracle(model, x, lambda i, c, _: sum(row[i] == c for row in labels) / draws))


def test_many_draws_converge_to_the_exact_one():
    x, model = inputs(16), net()
    exact = ExactFisher().estimate(model, [(x,)], objective=CrossEntropy()).totals
    sampled = SampledFisher(draws=100).estimate(model, [(x,)], objective=CrossEntropy()).totals
    largest = max(float(t.max()) for t in exact.values())
    assert max(float((sampled[n] - exact[n]).abs().max()) for n in exact) < 0.1 * largest


def test_the_empirical_fisher_is_another_number():
    x, model = inputs(4), net()
    labels = model(x).argmin(1)
    data = DiagonalFisher().estimate(model, [(x, labels)], objective=CrossEntropy()).totals
    exact = ExactFisher().estimate(model, [(x, labels)], objective=CrossEntropy()).totals
    assert all(float(exact[n].sum()) < float(data[n].sum()) for n in exact)


@pytest.mark.parametrize("kind", BOTH)
def test_provenance(kind):
    found = kind().estimate(net(), [(inputs(2),)], objective=CrossEntropy())
    assert (found.fingerprint.labels, found.fingerprint.unit) == ("model", "sample")
    assert "memory_budget" not in found.fingerprint.options
    assert ("seed=0, draws=1" if kind is SampledFisher else "") == found.fingerprint.options
    assert found.relative_error == (None if kind is SampledFisher else 0.0)


@pytest.mark.parametrize("kind", BOTH)
def test_the_loss_of_the_objective_does_not_matter(kind):
    one = kind().estimate(net(), [(inputs(3),)], objective=CrossEntropy())
    other = kind().estimate(net(), [(inputs(3),)], objective=Scaled(factor=7.0))
    assert all(torch.equal(one.totals[n], other.totals[n]) for n in one.totals)


@pytest.mark.parametrize("kind", BOTH)
def test_confident_models(kind):
    # p underflows to 0 for all classes but one: no NaN, no label without probability
    found = kind().estimate(logit_net(0.0, 900.0, 0.0, -900.0), [(torch.ones(8, 1),)], objective=CrossEntropy())
    assert found.totals["bias"].tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", BOTH)
def test_half_precision(kind):
    found = kind().estimate(net(torch.bfloat16), [(inputs(3, torch.bfloat16),)], objective=CrossEntropy())
    assert all(t.dtype == torch.float32 for t in found.totals.values())


class TestUniforms:
    def test_uniform(self):
        u = uniforms(torch.arange(4000.0), seed=0, draws=2)
        assert u.shape == (2, 4000)
        assert 0.0 <= float(u.min()) < 0.001 < 0.999 < float(u.max()) < 1.0
        for row in u:
            assert float((row.sort().values - torch.linspace(0, 1, 4000)).abs().max()) < 1.63 / math.sqrt(4000)
        assert abs(float(torch.corrcoef(u)[0, 1])) < 4 / math.sqrt(4000)

    def test_draws_depend_on_the_sample_not_its_position(self):
        x, y = inputs(6), torch.arange(6)
        whole = uniforms((x, y), seed=3, draws=2)
        parts = torch.cat([uniforms((x[rows], y[rows]), seed=3, draws=2) for rows in (slice(4), slice(4, 6))], 1)
        assert torch.equal(whole, parts)
        assert torch.equal(uniforms((x.flip(0), y.flip(0)), seed=3, draws=2), whole.flip(1))
        assert torch.equal(uniforms((x, y), seed=3, draws=5)[:2], whole)

    def test_every_bit_of_sample_and_seed_counts(self):
        x = torch.zeros(1, 3)
        seen = {float(uniforms(x, seed=seed, draws=1)) for seed in (0, 1, 255, 256, 2**64, 2**64 + 1)}
        seen |= {float(uniforms(t, seed=0, draws=1)) for t in (x.index_fill(1, torch.tensor(2), 1e-45), x[:, :2])}
        assert len(seen) == 8

    def test_every_kind_of_batch(self):
        x, y = torch.arange(3.0), torch.arange(3)

        @dataclasses.dataclass
        class Data:
            x: Tensor
            name: str = "a name is not hashed"
            y: Tensor = dataclasses.field(default_factory=lambda: y)

        @attrs.frozen
        class Slotted:
            x: Tensor
            y: Tensor

        named = collections.namedtuple("named", "x y")
        kinds = [(x, y), [x, (y,)], {"x": x, "y": y}, named(x, y), Data(x), Slotted(x, y), (x, "text", None, y)]
        assert all(torch.equal(uniforms(kind, seed=0, draws=1), uniforms((x, y), seed=0, draws=1)) for kind in kinds)
        assert uniforms(torch.zeros(2, 0), seed=0, draws=1).shape == (1, 2)


class NoLogits(Objective):
    def losses(self, model, batch):
        return model(batch[0]).square().sum(1)


@pytest.mark.parametrize("kind", BOTH)
def test_errors(kind):
    with pytest.raises(ConfigurationError, match=r"expected an objective with a method logits.*saw NoLogits"):
        kind().estimate(net(), [(inputs(2),)], objective=NoLogits())
    with pytest.raises(ValueError, match=r"shape \(batch, classes\), saw shape \(2, 3, 4\)"):
        kind().estimate(nn.Conv1d(5, 3, 1), [(torch.ones(2, 5, 4),)], objective=CrossEntropy())


def test_too_many_classes_are_refused_with_the_cost():
    with pytest.raises(ConfigurationError, match=r"at most max_classes = 3 classes, saw 4: it costs 4 times as much"):
        ExactFisher(max_classes=3).estimate(net(), [(inputs(2),)], objective=CrossEntropy())
    with pytest.raises(ConfigurationError, match=r"draws \(m\): expected a whole number ≥ 1, saw 0"):
        SampledFisher(draws=0)


@parametrize_with_checks([SampledFisher(), ExactFisher()])
def test_contract(subject, law):
    law.check(subject, examples=6)  # each example costs a pass a class


@pytest.mark.slow
@parametrize_with_checks([SampledFisher(), SampledFisher(draws=3), ExactFisher()])
def test_contract_in_full(subject, law):
    law.check(subject)
