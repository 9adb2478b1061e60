"""`undial`: the original model's own outputs, with the logit of the label lowered."""

import torch
from unlearnkit_methods.undial import Undial

from unlearnkit import CrossEntropy
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([Undial(epochs=1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    """Cross entropy to the adjusted softmax, as in the paper: its gradient is that of the divergence."""
    original = tiny.model()

    def loss(x, y):
        def value(model):
            with torch.no_grad():
                target = original(x)
                target[range(len(y)), y] -= 1.5
            return -(torch.softmax(target, 1) * torch.log_softmax(model(x), 1)).sum(1).mean()

        return value

    model, _ = tiny.unlearned(Undial(gamma=1.5, epochs=2, **SGD))
    close(model, tiny.steps(tiny.model(), [loss(x, y) for x, y in tiny.forget] * 2))


def test_gamma_0_changes_nothing_but_rounding(tiny, close):
    close(tiny.unlearned(Undial(gamma=0.0, epochs=2, **SGD))[0], tiny.model())


def test_labels_of_minus_100_are_not_lowered(tiny, close):
    (x, y), *_ = tiny.forget
    ignored = [(x, torch.full_like(y, -100))]
    close(tiny.unlearned(Undial(epochs=2, **SGD), forget_data=ignored, objective=CrossEntropy())[0], tiny.model())
