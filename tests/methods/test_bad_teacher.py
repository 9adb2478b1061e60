"""`bad-teacher`: imitates the original on the retain set and an untrained model on the forget set."""

import math

import pytest
import torch
from unlearnkit_methods.bad_teacher import BadTeacher

from unlearnkit import ConfigurationError, Objective
from unlearnkit.testing import parametrize_with_checks
from unlearnkit.unlearning import fresh_model

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([BadTeacher(epochs=1), BadTeacher(epochs=1, mode="train", temperature=3.0)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def kl(p, q, temperature):
    """KL(p ‖ q) in Python, summed over classes and averaged over the batch, times T²."""
    total = 0
    for row_p, row_q in zip((p / temperature).softmax(1).tolist(), (q / temperature).softmax(1), strict=True):
        total = total + sum(a * (math.log(a) - b.log()) for a, b in zip(row_p, row_q, strict=True))
    return temperature**2 * total / len(p)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_a_plain_training_loop(tiny, close, temperature):
    model, report = tiny.unlearned(BadTeacher(epochs=1, temperature=temperature, **SGD))
    oracle = tiny.model()
    good, bad = tiny.model(), fresh_model(oracle, tiny.inputs(oracle)).eval()
    (f1, f2), (r1, r2, r3) = tiny.forget, tiny.retain
    losses = [
        lambda m, x=batch[0], t=teacher: kl(t(x), m(x), temperature)
        for teacher, batch in [(good, r1), (bad, f1), (good, r2), (bad, f2), (good, r3)]
    ]
    close(model, tiny.steps(oracle, losses))
    assert report.buffers_changed == ()


def test_forget_outputs_approach_the_untrained_model_and_retain_outputs_stay(tiny):
    original = tiny.model()
    bad = fresh_model(original, tiny.inputs(original)).eval()
    model, _ = tiny.unlearned(BadTeacher(epochs=60, learning_rate=0.01))
    (x_f, _), (x_r, _) = (tuple(torch.cat(part) for part in zip(*d, strict=True)) for d in (tiny.forget, tiny.retain))

    def far(one, other, x):
        with torch.no_grad():
            return float(kl(one(x), other(x), 1.0))

    assert far(bad, model, x_f) < 0.5 * far(bad, original, x_f)
    assert far(original, model, x_r) < 0.5 * far(original, bad, x_r)


def test_labels_do_not_matter(tiny, close):
    flipped = {
        name: [(x, 3 - y) for x, y in data]
        for name, data in {"forget_data": tiny.forget, "retain_data": tiny.retain}.items()
    }
    close(tiny.unlearned(BadTeacher(epochs=1))[0], tiny.unlearned(BadTeacher(epochs=1), **flipped)[0])


def test_it_needs_class_probabilities(tiny):
    class Squared(Objective):
        def losses(self, model, batch):
            return model(batch[0]).square().sum(1)

    with pytest.raises(ConfigurationError, match="expected the objective CrossEntropy"):
        tiny.unlearned(BadTeacher(), objective=Squared())
