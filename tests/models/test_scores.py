"""Losses and right predictions from one forward pass."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from unlearnkit.models import BinaryCrossEntropy, CausalLanguageModel, SquaredError
from unlearnkit.models.objective import BatchScores, CrossEntropy, Objective, score_batch, total
from unlearnkit.utils.errors import MismatchError, UnlearnKitWarning


class Squares(Objective):
    def losses(self, model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1)


def test_loss_and_accuracy_of_two_samples():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    losses, scores = score_batch(nn.Identity(), (logits, torch.tensor([1, 0])), objective=CrossEntropy())
    # Probabilities 1/4 and 3/4: losses ln 4/3 and ln 4.
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-6)
    assert scores.loss == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)
    assert (scores.correct, scores.predictions, scores.samples) == (1, 2, 2)
    assert scores.accuracy == 0.5


def test_the_model_runs_once_and_losses_carry_gradients():
    calls = []
    model = nn.Linear(2, 3)
    model.register_forward_hook(lambda *_: calls.append(1))
    losses, _ = score_batch(model, (torch.ones(4, 2), torch.zeros(4, dtype=torch.long)), objective=CrossEntropy())
    torch.autograd.backward(losses.sum())
    assert len(calls) == 1
    assert model.weight.grad.abs().sum() > 0


def test_fields_and_outputs_are_found_where_the_objective_says():
    class Named(nn.Module):
        def forward(self, x):
            return {"out": x}

    batch = {"x": torch.tensor([[0.0, 1.0]]), "y": torch.tensor([1])}
    objective = CrossEntropy(inputs="x", targets="y", output="out")
    assert score_batch(Named(), batch, objective=objective)[1].correct == 1


def test_labels_that_are_left_out_do_not_count():
    logits = torch.zeros(2, 2, 3)
    logits[:, 1] = 1.0  # class 1 everywhere
    labels = torch.tensor([[1, 0, -100], [-100, -100, 1]])
    _, scores = score_batch(nn.Identity(), (logits, labels), objective=CrossEntropy())
    assert (scores.correct, scores.predictions, scores.samples) == (2, 3, 2)
    nothing = torch.full((2, 3), -100)
    assert score_batch(nn.Identity(), (logits, nothing), objective=CrossEntropy())[1].accuracy is None


def test_labels_may_be_probabilities():
    logits = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    soft = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    assert score_batch(nn.Identity(), (logits, soft), objective=CrossEntropy(probabilities=True))[1].correct == 1


def test_another_objective_has_no_accuracy():
    batch = (torch.ones(2, 2), torch.zeros(2, 2))
    _, scores = score_batch(nn.Identity(), batch, objective=Squares())
    assert scores.loss == 2.0
    assert scores.accuracy is None


def test_an_objective_must_return_one_loss_per_sample():
    class Mean(Objective):
        def losses(self, model, batch):
            return model(batch[0]).mean()

    with pytest.raises(MismatchError, match=r"Mean.losses must return one loss per sample"):
        score_batch(nn.Identity(), (torch.ones(2, 2),), objective=Mean())


def test_totals_are_weighted_by_samples():
    one = BatchScores(loss_sum=3.0, samples=1, correct=0, predictions=1)
    three = BatchScores(loss_sum=3.0, samples=3, correct=3, predictions=3)
    both = total([one, three])
    assert (both.loss, both.accuracy, both.samples) == (1.5, 0.75, 4)


def test_sums_are_float64():
    losses = torch.full((1, 3), 1.0)
    _, scores = score_batch(nn.Identity(), (losses, losses * 0), objective=Squares())
    big = BatchScores(loss_sum=2.0**30, samples=1, correct=None, predictions=0)
    assert total([big, scores]).loss_sum == 2.0**30 + 3.0  # float32 would lose the 3
    assert total([big, scores]).accuracy is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", [CausalLanguageModel(), CrossEntropy(), BinaryCrossEntropy(), SquaredError()])
def test_losses_of_a_model_in_half_precision_are_summed_in_float32(dtype, objective):
    """400 positions: a sum in bfloat16 would be rounded to 2 to 8 nats."""
    made = torch.Generator().manual_seed(0)
    table = torch.randn(7, 7, generator=made).to(dtype)
    tokens = torch.randint(0, 7, (2, 401), generator=made)
    if isinstance(objective, CausalLanguageModel):
        model = nn.Embedding.from_pretrained(table)
        batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
        objective = CausalLanguageModel(pass_mask=False)
        want = [nn.functional.cross_entropy(table.double()[row[:-1]], row[1:], reduction="sum") for row in tokens]
    else:
        model, logits = nn.Identity(), table[tokens].transpose(1, 2)  # (batch, classes, positions)
        labels = tokens if isinstance(objective, CrossEntropy) else (logits > 0.5).to(dtype)
        batch = (logits, labels)
        want = objective.losses(model, (logits.double(), labels if labels.dtype == torch.int64 else labels.double()))
    found = objective.losses(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([*want]).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "seen"), [(torch.float32, False), (torch.bfloat16, True)])
def test_probabilities_are_told_by_the_rounding_of_the_dtype(dtype, seen):
    near = torch.tensor([[0.2, 0.3, 0.505]], dtype=dtype)
    expected = pytest.warns(UnlearnKitWarning, match="as after a softmax") if seen else nullcontext()
    with expected:
        score_batch(nn.Identity(), (near, torch.tensor([0])), objective=CrossEntropy())
