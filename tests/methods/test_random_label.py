"""`random-label`: wrong labels for the forget set, right ones for the retain set."""

import torch
from torch.nn.functional import cross_entropy
from unlearnkit_methods.random_label import RandomLabel
from unlearnkit_methods.salun import SalUn

from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import other_labels

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}


@parametrize_with_checks([RandomLabel(epochs=1), RandomLabel(epochs=1, mode="eval", optimizer="sgd")])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    model, _ = tiny.unlearned(RandomLabel(epochs=2, **SGD))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the seed of the edit: eval mode draws no other numbers
        wrong = [[(x, other_labels(y, classes=4)) for x, y in tiny.forget] for _ in range(2)]
    data = [sample for labels in wrong for sample in [*labels, *tiny.retain]]
    close(model, tiny.steps(tiny.model(), [lambda m, x=x, y=y: cross_entropy(m(x), y) for x, y in data]))


def test_it_is_salun_with_every_weight_salient(tiny, close):
    """Every importance of the tiny model is above 0."""
    one, _ = tiny.unlearned(RandomLabel(epochs=2))
    other, _ = tiny.unlearned(SalUn(epochs=2, share=1.0))
    close(one, other, rtol=0, atol=0)
