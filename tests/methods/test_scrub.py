"""`scrub`: alternates ascent on the forget set and descent on the retain set."""

import math

import torch
from torch.nn.functional import cross_entropy, kl_div
from unlearnkit_methods.scrub import Scrub

from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([Scrub(epochs=2, max_epochs=1), Scrub(epochs=1, mode="eval", max_epochs=0)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    method = Scrub(epochs=3, max_epochs=2, alpha=0.3, gamma=0.8, temperature=2.0, mode="eval", **SGD)
    model, _ = tiny.unlearned(method)
    teacher = tiny.model()

    def distance(m, x):
        p = (teacher(x) / 2).softmax(1).detach()
        return 4 * kl_div((m(x) / 2).log_softmax(1), p, reduction="batchmean")

    def climb(batch):
        return lambda m: -distance(m, batch[0])

    def descend(batch):
        x, y = batch
        return lambda m: 0.3 * distance(m, x) + 0.8 * cross_entropy(m(x), y)

    up, down = [climb(b) for b in tiny.forget], [descend(b) for b in tiny.retain]
    close(model, tiny.steps(tiny.model(), up + down + up + down + down))


def test_without_climbing_the_forget_set_does_not_matter(tiny, close):
    method = Scrub(epochs=2, max_epochs=0, mode="eval")
    close(tiny.unlearned(method)[0], tiny.unlearned(method, forget_data=tiny.data(9, 2))[0], rtol=0, atol=0)


def test_the_progress_names_the_passes(tiny):
    seen = []

    def progress(items, what, total):
        seen.append((what, total))
        return items

    tiny.unlearned(Scrub(epochs=2, max_epochs=1), progress=progress)
    assert seen == [("max epoch 1", 2), ("min epoch 1 of 2", 3), ("min epoch 2 of 2", 3)]


def test_model_diverges_from_the_original_on_the_forget_set(tiny):
    model, _ = tiny.unlearned(Scrub(epochs=4, max_epochs=4, learning_rate=0.01, mode="eval"))
    original = tiny.model()
    with torch.no_grad():
        far = [
            sum(float(kl_div(model(x).log_softmax(1), original(x).softmax(1), reduction="batchmean")) for x, _ in data)
            for data in (tiny.forget, tiny.retain)
        ]
    assert far[0] > 0.01
    assert all(map(math.isfinite, far))
