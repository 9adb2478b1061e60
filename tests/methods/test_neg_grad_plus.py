"""`neg-grad-plus`: β times the retain loss minus 1 − β times the forget loss."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.neg_grad_plus import NegGradPlus

from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}


@parametrize_with_checks([NegGradPlus(epochs=1), NegGradPlus(epochs=1, beta=0.5, mode="eval", learning_rate=1e-3)])
def test_contract(subject, law):
    law.check(subject, examples=6)


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_equals_a_plain_training_loop(tiny, close, beta):
    model, _ = tiny.unlearned(NegGradPlus(beta=beta, epochs=2, **SGD))
    (x1, y1), (x2, y2) = tiny.forget
    again = [(x1, y1), (x2, y2), (x1, y1)]  # the forget set starts again in each epoch

    def loss(kept, forgotten):
        return lambda m: (
            beta * cross_entropy(m(kept[0]), kept[1]) - (1 - beta) * cross_entropy(m(forgotten[0]), forgotten[1])
        )

    close(model, tiny.steps(tiny.model(), [loss(k, f) for k, f in zip(tiny.retain, again, strict=True)] * 2))


@pytest.mark.parametrize("lam", [1.0, 3.0])
def test_gradient_difference_is_this_method(tiny, close, lam):
    """−ℓ_f + λ·ℓ_r, a loss of the papers on language models, is 1 + λ times the loss with β = λ/(1 + λ)."""
    settings = {**SGD, "learning_rate": 0.01 * (1 + lam)}
    model, _ = tiny.unlearned(NegGradPlus(beta=lam / (1 + lam), epochs=2, **settings))
    (x1, y1), (x2, y2) = tiny.forget

    def loss(kept, forgotten):
        return lambda m: lam * cross_entropy(m(kept[0]), kept[1]) - cross_entropy(m(forgotten[0]), forgotten[1])

    again = zip(tiny.retain, [(x1, y1), (x2, y2), (x1, y1)], strict=True)
    close(model, tiny.steps(tiny.model(), [loss(k, f) for k, f in again] * 2, rate=0.01))


def test_it_forgets_and_keeps(tiny):
    before, (after, _) = tiny.model(), tiny.unlearned(NegGradPlus(beta=0.7, epochs=20, **SGD))

    def mean(model, data):
        with torch.no_grad():
            return sum(float(cross_entropy(model(x), y)) for x, y in data) / len(data)

    assert mean(after, tiny.forget) > mean(before, tiny.forget) + 0.1
    assert mean(after, tiny.retain) < mean(before, tiny.retain)
