"""`unsir`: noise that the model finds hard for the forgotten classes, then impair and repair."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from unlearnkit_methods.unsir import Unsir

from unlearnkit import UnlearningInputs, UnsupportedModelError
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05, "mode": "eval"}


@parametrize_with_checks([Unsir(epochs=1, steps=2), Unsir(epochs=1, steps=1, samples=3, mode="eval", optimizer="sgd")])
def test_contract(subject, law):
    law.check(subject, examples=6)


def adam(start, gradient, *, steps, rate):
    """Adam in plain arithmetic, with torch's β and ε."""
    x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, steps + 1):
        g = gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return x


def test_noise_of_a_linear_model_against_the_gradient_by_hand():
    """For logits W·n the gradient of −ℓ is −Wᵀ(p − e_y), that of λ·‖n‖² is 2·λ·n, both over the number of samples."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    model.weight.data = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    labels, batch = torch.tensor([1, 2]), (torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4).long())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = Unsir(steps=7, lam=0.3).noise(model, batch, labels, UnlearningInputs())
        torch.manual_seed(3)
        start = torch.randn(2, 5, dtype=torch.float64)

    def gradient(n):
        p = (n @ model.weight.detach().T).softmax(1)
        return (-(p - nn.functional.one_hot(labels, 3)) @ model.weight.detach() + 2 * 0.3 * n) / 2

    torch.testing.assert_close(found, adam(start, gradient, steps=7, rate=0.1))


def test_equals_a_plain_training_loop(tiny, close):
    """The forget set has the classes 0, 1 and 2; of 4 samples of noise the labels are 0, 1, 2 and 0."""
    classes = sorted({int(y) for _, ys in tiny.forget for y in ys})
    labels = torch.tensor((classes * 4)[:4])
    model, report = tiny.unlearned(Unsir(samples=4, steps=3, epochs=2, impair_epochs=2, **SGD))
    expected = tiny.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the seed of the edit: in eval mode nothing else draws
        noise = torch.randn(4, 3, dtype=torch.float64)

    def gradient(n):
        n = n.clone().requires_grad_()
        loss = 0.1 * (n * n).sum(1).mean() - cross_entropy(expected(n), labels)
        return torch.autograd.grad(loss, n)[0]

    noise = adam(noise, gradient, steps=3, rate=0.1)
    impair = [(torch.cat([x, noise]), torch.cat([y, labels])) for x, y in tiny.retain]
    data = [*impair, *impair, *tiny.retain, *tiny.retain]
    close(model, tiny.steps(expected, [lambda m, x=x, y=y: cross_entropy(m(x), y) for x, y in data]))
    assert report.buffers_changed == ()


def test_only_the_classes_of_the_forget_set_are_used(tiny, close):
    one, _ = tiny.unlearned(Unsir(epochs=1))
    other, _ = tiny.unlearned(Unsir(epochs=1), forget_data=[(torch.full_like(x, 9.0), y) for x, y in tiny.forget])
    close(one, other, rtol=0, atol=0)


def test_inputs_that_are_not_floating_are_refused():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 2))
    data = [(torch.tensor([[0, 1]]), torch.tensor([0]))]
    with pytest.raises(
        UnsupportedModelError,
        match=r"unsir learns inputs: expected one floating tensor by position, saw torch.int64",
    ):
        Unsir().unlearn(model, UnlearningInputs(forget_data=data, retain_data=data))
