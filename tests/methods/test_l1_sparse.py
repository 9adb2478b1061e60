"""`l1-sparse`: the retain loss and a penalty on |θ| that falls over the epochs."""

import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.finetune import FineTune
from unlearnkit_methods.l1_sparse import L1Sparse

from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}


@parametrize_with_checks([L1Sparse(epochs=1), L1Sparse(epochs=2, gamma=0.1, mode="eval", optimizer="sgd")])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    """The penalty is γ in the first of three epochs, then ⅔·γ and ⅓·γ; its gradient is the sign of a weight."""
    model, _ = tiny.unlearned(L1Sparse(gamma=0.3, epochs=3, **SGD))
    expected = tiny.model()
    for gamma in (0.3, 0.2, 0.1):
        for x, y in tiny.retain:
            weights = list(expected.parameters())
            grads = torch.autograd.grad(cross_entropy(expected(x), y), weights)
            with torch.no_grad():
                for p, grad in zip(weights, grads, strict=True):
                    p.sub_(0.05 * (grad + gamma * p.sign()))
    close(model, expected)


def test_no_penalty_is_fine_tuning(tiny, close):
    one, _ = tiny.unlearned(L1Sparse(gamma=0.0, epochs=2))
    other, _ = tiny.unlearned(FineTune(epochs=2))
    close(one, other)


def test_frozen_weights_are_not_in_the_penalty(tiny):
    def freeze(model):
        model[0].requires_grad_(requires_grad=False)

    model, _ = tiny.unlearned(L1Sparse(gamma=100.0, epochs=1, **SGD), prepare=freeze)
    assert torch.equal(model[0].weight, tiny.model()[0].weight)
