"""`loss-free` and `output-norm`: |∂ mean ‖f(x)‖² / ∂θ| and its root, without labels."""

import copy
from typing import Any

import attrs
import pytest
import torch
import wrong_gradient_model as permuted
from torch import Tensor, nn
from unlearnkit_estimators.loss_free import LossFree, OutputNorm, logits

from unlearnkit import ConfigurationError, CrossEntropy, MismatchError, Objective
from unlearnkit.testing import SmallNet, parametrize_with_checks
from unlearnkit.testing.cases import Scaled

BOTH = [LossFree, OutputNorm]


def net(dtype=torch.float32):
    return SmallNet(layers=("conv", "batch-norm", "linear"), dtype=dtype, training=False, seed=4)


def data(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [(4 * torch.rand(size, 3, generator=generator, dtype=torch.float64).to(dtype),) for size in sizes]


def oracle(model, batches, *, squared, weights):
    """Independent: the published loop, in float64."""
    exact = copy.deepcopy(model).double().eval()
    totals = {name: torch.zeros_like(p).detach() for name, p in exact.named_parameters()}
    for (x,) in batches:
        exact.zero_grad()
        norm = torch.norm(exact(x.double()), p="fro", dim=1)
        (norm.pow(2) if squared else norm).mean().backward()
        for name, p in exact.named_parameters():
            totals[name] += p.grad.abs() * (len(x) if weights == "size" else 1)
    return totals


def linear(values):
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([values])
    return model


def test_worked_example():
    # f = x·θ with θ = (1, 2): f = 3 and −1; the batch mean of f² has gradient ½(2·3·(1, 1) + 2·(−1)·(1, −1)) = (2, 4),
    # that of |f| has ½((1, 1) − (1, −1)) = (0, 1)
    batch = [(torch.tensor([[1.0, 1.0], [1.0, -1.0]]),)]
    found = LossFree().estimate(linear([1.0, 2.0]), batch, objective=CrossEntropy())
    assert (found.totals["weight"].tolist(), found.count, found.samples) == ([[4.0, 8.0]], 2, 2)
    assert found.mean()["weight"].tolist() == [[2.0, 4.0]]
    found = OutputNorm(weights="equal").estimate(linear([1.0, 2.0]), batch, objective=CrossEntropy())
    assert (found.totals["weight"].tolist(), found.count) == ([[0.0, 1.0]], 1)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("weights", ["size", "equal"])
def test_the_equation_against_an_oracle_in_float64(kind, weights):
    model, batches = net(), data([4, 4, 3])
    found = kind(weights=weights).estimate(model, batches, objective=CrossEntropy())
    assert found.count == {"size": 11, "equal": 3}[weights]
    for name, want in oracle(model, batches, squared=kind is LossFree, weights=weights).items():
        assert torch.allclose(found.totals[name].double(), want, rtol=1e-5, atol=1e-5 * float(want.max()))


@pytest.mark.parametrize("kind", BOTH)
def test_batches_of_one_sample_equal_the_mean_over_samples_of_the_paper(kind):
    model, (batch,) = net(torch.float64), data([5], torch.float64)
    found = kind().estimate(model, [(x,) for x in batch[0].split(1)], objective=CrossEntropy()).mean()
    for name, want in oracle(
        model, [(x,) for x in batch[0].split(1)], squared=kind is LossFree, weights="size"
    ).items():
        assert torch.allclose(found[name], want / 5)
    whole = kind().estimate(model, [batch], objective=CrossEntropy()).mean()
    assert all(bool((whole[name] <= found[name] + 1e-12).all()) for name in found)  # terms cancel inside a batch


@pytest.mark.parametrize("kind", BOTH)
def test_labels_and_the_loss_do_not_matter(kind):
    model, (batch,) = net(), data([3])
    one = kind().estimate(model, [batch], objective=CrossEntropy())
    for labels in (torch.tensor([0, 1, 2]), torch.tensor([9, 9, 9])):  # 9 is no class
        other = kind().estimate(model, [(*batch, labels)], objective=Scaled(factor=3.0))
        assert all(torch.equal(one.totals[name], other.totals[name]) for name in one.totals)
    assert (one.fingerprint.labels, one.fingerprint.unit, one.fingerprint.estimator) == ("none", "batch", kind.name)


def test_no_gradient_at_zero():
    found = OutputNorm().estimate(linear([0.0, 0.0]), [(torch.ones(1, 2),)], objective=CrossEntropy())
    assert found.totals["weight"].tolist() == [[0.0, 0.0]]


def test_an_unused_weight_and_half_precision():
    model = linear([1.0, 2.0]).to(torch.bfloat16)
    model.extra = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    found = LossFree().estimate(model, [(torch.ones(1, 2, dtype=torch.bfloat16),)], objective=CrossEntropy())
    assert found.totals["extra"].tolist() == [0.0] * 3
    assert found.totals["weight"].dtype == torch.float32
    assert found.totals["weight"].tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize("kind", [LossFree, OutputNorm])
def test_sparse_gradients_of_an_embedding(kind):
    def found(sparse):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 2, sparse=sparse), nn.Flatten(), nn.Linear(4, 3))
        return kind().estimate(model, [(torch.tensor([[0, 1], [1, 3]]),)], objective=CrossEntropy()).totals

    for name, total in found(sparse=False).items():
        assert torch.equal(found(sparse=True)[name], total)


class NoLogits(Objective):
    def losses(self, model, batch):
        return model(batch[0]).square().sum(1)


@attrs.frozen
class Odd(Objective):
    """An objective whose logits are not one row per sample."""

    value: Any

    def losses(self, model, batch):
        return model(batch[0]).sum(1)

    def logits(self, *_):
        return self.value


def test_errors():
    batch = (torch.ones(1, 2),)
    with pytest.raises(ConfigurationError, match=r"expected an objective with a method logits.*saw NoLogits"):
        LossFree().estimate(linear([1.0, 2.0]), [batch], objective=NoLogits())
    with pytest.raises(ConfigurationError, match="saw Scaled"):
        OutputNorm().estimate(linear([1.0, 2.0]), [batch], objective=Scaled(factor=1.0, objective=NoLogits()))
    for value, seen in ((torch.tensor(1.0), r"shape \(\)"), ({"logits": 1}, "dict")):
        with pytest.raises(MismatchError, match=f"one row per sample, saw {seen}"):
            logits(linear([1.0, 2.0]), batch, objective=Odd(value))
    with pytest.raises(ConfigurationError, match="expected one of 'size', 'equal', saw 'sum'"):
        LossFree(weights="sum")


def test_outputs_with_positions_are_flattened_to_one_row():
    found: Tensor = logits(nn.Identity(), (torch.ones(2, 3, 4, dtype=torch.float16),), objective=CrossEntropy())
    assert (found.shape, found.dtype) == ((2, 12), torch.float32)


@parametrize_with_checks([LossFree(), OutputNorm(weights="equal")])
def test_contract(subject, law):
    law.check(subject)


@pytest.mark.parametrize("estimator", BOTH)
def test_correct_where_torch_gradients_are_wrong(estimator):
    found, expected = (
        estimator().estimate(model, permuted.data(3, 1), objective=CrossEntropy()).totals for model in permuted.pair()
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
