"""`jit`: smooth the model around what is to be forgotten."""

import pytest
import torch
from torch import nn
from unlearnkit_jit import JustInTime

from unlearnkit import Evidence, UnsupportedModelError
from unlearnkit.testing import parametrize_with_checks


@parametrize_with_checks([JustInTime(draws=2), JustInTime(draws=2, through="both", sigma=0.1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


@pytest.mark.parametrize("through", ["clean", "both"])
def test_against_the_loop_by_hand(tiny, close, through):
    model, report = tiny.unlearned(JustInTime(sigma=0.7, draws=3, epochs=2, learning_rate=0.05, through=through))
    oracle = tiny.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for x, _ in tiny.forget * 2:
            noises = [0.7 * torch.randn_like(x) for _ in range(3)]

            def loss(m, x=x, noises=noises):
                terms = []
                for noise in noises:
                    moved = m(x + noise)
                    far = m(x) - (moved if through == "both" else moved.detach())
                    terms += [far[i].square().sum().sqrt() / noise[i].square().sum().sqrt() for i in range(len(x))]
                return sum(terms) / len(terms)

            tiny.steps(oracle, [loss])
    close(model, oracle)
    assert report.buffers_changed == ()


def test_neither_labels_nor_the_retain_set_are_used(tiny, close):
    flipped = [(x, 3 - y) for x, y in tiny.forget]
    one, _ = tiny.unlearned(JustInTime(draws=2))
    other, _ = tiny.unlearned(JustInTime(draws=2), forget_data=flipped, retain_data=None)
    close(one, other, rtol=0, atol=0)


def roughness(model, x):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        noise = 0.5 * torch.randn(200, *x.shape, dtype=x.dtype)
        far = torch.stack([model(x + n) - model(x) for n in noise]).norm(dim=-1)
        return float((far / noise.norm(dim=-1)).mean())


def test_the_model_becomes_smoother_where_it_forgets(tiny):
    before = tiny.model()
    model, _ = tiny.unlearned(JustInTime(epochs=10, draws=10, learning_rate=0.02, through="both"))
    for x, _ in tiny.forget:
        assert roughness(model, x) < 0.9 * roughness(before, x)


def test_an_input_that_takes_no_noise_is_refused():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(4, 3))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match=r"jit adds noise to the input: .* saw torch.int64"):
        JustInTime().unlearn(model, Evidence(forget_data=[(torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 1]))]))
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_where_noise_changes_nothing_nothing_changes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    report = JustInTime().unlearn(model, Evidence(forget_data=[(torch.ones(1, 2), torch.tensor([0]))]))
    assert report.sentence() == "jit changed nothing: 0 of 6 weights."
