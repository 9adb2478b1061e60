"""`capped-neg-grad`: the retain loss plus c times what the forget loss lacks of its target."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.capped_neg_grad import CappedNegGrad
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.neg_grad_plus import NegGradPlus

from unlearnkit import ConfigurationError
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}


@parametrize_with_checks([CappedNegGrad(epochs=1), CappedNegGrad(epochs=1, target=3.0, c=1.0, mode="eval")])
def test_contract(subject, law):
    law.check(subject, examples=6)


@pytest.mark.parametrize("target", [1.3, 5.0, None])
def test_equals_a_plain_training_loop(tiny, close, target):
    """Targets that some batches have reached, that none has, and ln 4."""
    model, _ = tiny.unlearned(CappedNegGrad(target=target, c=0.7, epochs=2, **SGD))
    (x1, y1), (x2, y2) = tiny.forget
    again = [(x1, y1), (x2, y2), (x1, y1)]  # the forget set starts again in each epoch
    wanted = math.log(4) if target is None else target
    reached = []

    def loss(kept, forgotten):
        def value(m):
            lacking = wanted - cross_entropy(m(forgotten[0]), forgotten[1])
            reached.append(lacking.item() <= 0)
            retain = cross_entropy(m(kept[0]), kept[1])
            return retain if reached[-1] else retain + 0.7 * lacking

        return value

    close(model, tiny.steps(tiny.model(), [loss(k, f) for k, f in zip(tiny.retain, again, strict=True)] * 2))
    assert any(reached) == (target != 5.0)


def without_dropout(model):
    model[3].p = 0.0


def test_in_train_mode_both_batches_go_through_batch_norm_together(tiny, close):
    method = CappedNegGrad(target=5.0, c=0.7, epochs=2, **{**SGD, "mode": "train"})
    model, _ = tiny.unlearned(method, prepare=without_dropout)
    (x1, y1), (x2, y2) = tiny.forget

    def loss(kept, forgotten):
        def value(m):
            logits = m(torch.cat([kept[0], forgotten[0]]))
            retain, forget = logits.split([len(kept[0]), len(forgotten[0])])
            return cross_entropy(retain, kept[1]) + 0.7 * (5.0 - cross_entropy(forget, forgotten[1]))

        return value

    plain = tiny.model().train()
    without_dropout(plain)
    again = [(x1, y1), (x2, y2), (x1, y1)]
    tiny.steps(plain, [loss(k, f) for k, f in zip(tiny.retain, again, strict=True)] * 2)
    close(model, plain)


def test_a_target_that_is_reached_leaves_fine_tuning(tiny, close):
    one, _ = tiny.unlearned(CappedNegGrad(target=0.0, c=10.0, epochs=2, mode="eval"))
    other, _ = tiny.unlearned(FineTune(epochs=2, mode="eval"))
    close(one, other)


@pytest.mark.parametrize("target", [2.0, 4.0])
def test_the_loss_passes_the_target_and_stays_near_it_where_ascent_does_not(tiny, target):
    def loss(method):
        model, _ = tiny.unlearned(method)
        with torch.no_grad():
            return min(float(cross_entropy(model(x), y)) for x, y in tiny.forget)

    epochs = {"epochs": 300, **SGD}
    assert target - 0.1 < loss(CappedNegGrad(target=target, c=1.0, **epochs)) < target + 1
    assert loss(NegGradPlus(beta=0.5, **epochs)) > 10


@pytest.mark.parametrize("target", [2.0, None])
def test_a_single_sample_can_be_forgotten_in_train_mode(tiny, target):
    x, y = tiny.forget[0]
    _, report = tiny.unlearned(CappedNegGrad(target=target, epochs=1), forget_data=[(x[:1], y[:1])])
    assert report.changed


def test_a_negative_target_is_refused():
    with pytest.raises(ConfigurationError, match=r"CappedNegGrad.target \(t\): expected a number ≥ 0, saw -1.0"):
        CappedNegGrad(target=-1.0)


def test_counting_the_classes_changes_nothing(tiny, close):
    """The default target is ln C: the edit is the one with this number, BatchNorm and dropout included."""
    target = math.log(4)
    one, _ = tiny.unlearned(CappedNegGrad(epochs=2), seed=5)
    other, _ = tiny.unlearned(CappedNegGrad(epochs=2, target=target), seed=5)
    close(one, other, rtol=0, atol=0)
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
