"""`shrink-perturb`: between fine-tuning and retraining."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.retrain import Retrain
from unlearnkit_methods.shrink_perturb import ShrinkPerturb

from unlearnkit import ConfigurationError
from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import fresh_model

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([ShrinkPerturb(epochs=1), ShrinkPerturb(epochs=1, shrink=0.8, mode="eval", optimizer="sgd")])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop_from_the_mixed_weights(tiny, close):
    model, report = tiny.unlearned(ShrinkPerturb(shrink=0.25, epochs=2, mode="eval", **SGD), seed=5)
    expected = tiny.model(5)
    fresh = fresh_model(expected, tiny.inputs(expected))
    with torch.no_grad():
        for p, new in zip(expected.parameters(), fresh.parameters(), strict=True):
            p.copy_(0.25 * p + 0.75 * new)
    losses = [lambda m, x=x, y=y: cross_entropy(m(x), y) for x, y in tiny.retain] * 2
    close(model, tiny.steps(expected, losses))
    assert report.buffers_changed == ()


def test_nothing_kept_is_retraining_but_for_the_statistics_of_batch_norm(tiny):
    """In train mode BatchNorm does not read its statistics, so the weights are the same."""
    one, _ = tiny.unlearned(ShrinkPerturb(shrink=0.0, epochs=2), seed=5)
    other, _ = tiny.unlearned(Retrain(epochs=2), seed=5)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_all_kept_is_fine_tuning(tiny, close):
    one, _ = tiny.unlearned(ShrinkPerturb(shrink=1.0, epochs=2), seed=5)
    other, _ = tiny.unlearned(FineTune(epochs=2), seed=5)
    close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_other_shares_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"ShrinkPerturb.shrink \(s\): expected a number ≥ 0 ≤ 1"):
        ShrinkPerturb(shrink=wrong)
