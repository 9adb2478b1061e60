"""Loss and accuracy, and an unchanged model."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unlearnkit.evaluation.model_outputs import LossAndAccuracy, loss_and_accuracy, undisturbed
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])


def test_worked_example():
    logits = torch.tensor([[0.0, math.log(3.0)]] * 4)
    seen = loss_and_accuracy(nn.Identity(), [(logits[:3], torch.tensor([1, 1, 1])), (logits[:1], torch.tensor([0]))])
    # Probabilities 1/4 and 3/4. A mean of batch means would give an accuracy of 0.5.
    assert seen.loss == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, abs=1e-6)
    assert seen.accuracy == 0.75
    assert seen.samples == 4


def test_it_agrees_with_float64_one_sample_at_a_time():
    model = nn.Linear(3, 3)
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    losses, hits = [], []
    for x, y in zip(X.double().numpy(), Y.numpy(), strict=True):
        logits = weight @ x + bias
        losses.append(np.log(np.exp(logits).sum()) - logits[y])
        hits.append(logits.argmax() == y)
    seen = loss_and_accuracy(model, [(X[:5], Y[:5]), (X[5:], Y[5:])])
    assert seen.loss == pytest.approx(np.mean(losses), abs=1e-6)
    assert seen.accuracy == np.mean(hits)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 8), max_size=4))
def test_batch_sizes_do_not_matter(cuts):
    edges = sorted({0, 9, *cuts})
    batches = [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(edges)]
    whole, cut = loss_and_accuracy(nn.Identity(), [(X, Y)]), loss_and_accuracy(nn.Identity(), batches)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (cut.accuracy, cut.samples) == (whole.accuracy, whole.samples)


def test_sums_are_float64():
    class Given(Objective):
        def losses(self, model, batch):
            return model(batch)

    big = torch.tensor([2.0**26])
    seen = loss_and_accuracy(nn.Identity(), [big, torch.ones(1), torch.ones(1), torch.ones(1)], objective=Given())
    assert seen == LossAndAccuracy(loss=(2.0**26 + 3) / 4, accuracy=None, samples=4)


def test_the_model_is_in_eval_mode_without_gradients():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = Spy().train()
    loss_and_accuracy(model, [(X, Y)])
    assert seen == [(False, False)]
    assert model.training


class Untidy(nn.Module):
    """Changes a buffer and draws random numbers, even in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.inner = nn.Linear(3, 3).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.norm.train()
        random.random()
        np.random.rand()
        return self.inner(self.norm(x)) + 0 * torch.rand(())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_changed(fails):
    model = Untidy()
    before, rng = digest(model), (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    modes = [module.training for module in model.modules()]
    batches = [(X, Y), (X * math.nan, Y)] if fails else [(X, Y)]
    if fails:
        with pytest.raises(NonFiniteError):
            loss_and_accuracy(model, batches)
    else:
        loss_and_accuracy(model, batches)
    assert digest(model) == before
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == rng[0]
    assert np.array_equal(np.random.get_state()[1], rng[1])
    assert torch.equal(torch.get_rng_state(), rng[2])
    assert all(p.grad is None for p in model.parameters())


def test_gradients_that_are_there_stay():
    model = nn.Linear(3, 3)
    model.weight.grad = torch.full((3, 3), 2.0)
    loss_and_accuracy(model, [(X, Y)])
    assert model.weight.grad.unique().tolist() == [2.0]


def test_undisturbed_can_be_used_by_other_metrics():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    before = digest(model)
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        model.train()
        model(X)
        assert digest(model) != before
    assert digest(model) == before
    assert torch.is_grad_enabled()


def test_objective_names_the_fields():
    batch = {"image": torch.tensor([[0.0, 1.0]]), "label": torch.tensor([1])}
    objective = CrossEntropy(inputs="image", targets="label")
    assert loss_and_accuracy(nn.Identity(), [batch], objective=objective).accuracy == 1.0


def test_progress_is_shown():
    seen = []

    def watch(items, what, total):
        seen.append((what, total))
        return items

    loss_and_accuracy(nn.Identity(), [(X, Y)] * 3, progress=watch)
    assert seen == [("evaluating", 3)]


@pytest.mark.parametrize("nothing", [[], iter(())])
def test_no_batches(nothing):
    with pytest.raises(ConfigurationError, match="expected at least one batch to evaluate on, saw none"):
        loss_and_accuracy(nn.Identity(), nothing)


def test_a_loss_that_is_not_finite_names_its_batch():
    with pytest.raises(NonFiniteError, match="saw NaN or infinity in batch 2"):
        loss_and_accuracy(nn.Identity(), [(X, Y), (X * math.nan, Y)])


@pytest.mark.gpu
def test_it_runs_where_the_model_is():
    model = nn.Linear(3, 3)
    expected = loss_and_accuracy(model, [(X, Y)])
    before = torch.cuda.get_rng_state()
    seen = loss_and_accuracy(model.cuda(), [(X, Y)])
    assert seen.loss == pytest.approx(expected.loss, abs=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), before)
