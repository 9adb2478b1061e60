"""`rmu`: hidden activations steered to one direction on the forget set, kept on the retain set."""

import pytest
import torch
from torch import nn
from unlearnkit_methods.rmu import Rmu, layer_of

from unlearnkit import ConfigurationError, UnlearningInputs
from unlearnkit.testing import parametrize_with_checks

SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}


@parametrize_with_checks([Rmu(epochs=1)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def test_equals_a_plain_training_loop(tiny, close):
    (x1, _), (x2, _) = tiny.forget
    original = tiny.model()
    direction = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction /= direction.norm()

    def loss(kept, forgotten):
        def value(model):
            steered = (model[:3](forgotten) - 2 * direction).square().mean()
            moved = (model[:3](kept) - original[:3](kept).detach()).square().mean()
            # The layers behind have no gradient: times zero, so that the plain loop finds one.
            return steered + 5 * moved + 0 * model(kept).sum()

        return value

    model, report = tiny.unlearned(Rmu(layer="2", c=2.0, alpha=5.0, epochs=2, **SGD))
    steps = [loss(k[0], f) for k, f in zip(tiny.retain, (x1, x2, x1), strict=True)]
    close(model, tiny.steps(tiny.model(), steps * 2))
    assert {t.name: t.changed > 0 for t in report.tensors if t.name.startswith("4.")} == {
        "4.weight": False,
        "4.bias": False,
    }


class Residual(nn.Module):
    """Blocks that are added to, each of which returns a tuple, as those of transformers may."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(4, 1, batch_first=True) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x, x, x)[0]
        return self.head(x.mean(1))


def test_activations_reach_the_direction_on_the_forget_set_and_stay_on_the_retain_set():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(4, 3, 4)
    forget, retain = [(x[:1], torch.tensor([0]))], [(x[1:], torch.tensor([0, 1, 1]))]
    seen = []
    model.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output[0].detach()))
    model(x)
    Rmu(layer="blocks.1", c=2.0, alpha=1.0, epochs=300, learning_rate=0.01).unlearn(
        model, UnlearningInputs(forget_data=forget, retain_data=retain)
    )
    model(x)
    before, after = seen[0], seen[-1]
    steered = after[0].mean(0)
    assert steered.norm().item() == pytest.approx(2.0, rel=0.1)
    assert bool((steered > 0).all())
    moved = (after - before).square().mean((1, 2))
    assert moved[1:].max() < 0.05 * moved[0]


def gpt():
    model = nn.Module()
    model.wte, model.head = nn.Embedding(5, 4), nn.Linear(4, 5)
    model.h = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
    return model


def test_a_layer_is_found_by_name_by_glob_or_a_third_of_the_way_in():
    assert layer_of(gpt(), "h.2") == layer_of(gpt(), "*.2") == "h.2"
    assert layer_of(gpt(), "auto") == "h.1"
    assert layer_of(nn.Linear(1, 1), "auto") == layer_of(nn.Linear(1, 1), "") == ""


@pytest.mark.parametrize(("wanted", "count"), [("h.*", 4), ("layers.7", 0)])
def test_a_layer_that_is_not_one_module_is_refused(wanted, count):
    with pytest.raises(ConfigurationError, match=rf"matches {count}: write the name of one, such as .*'h\.0'"):
        layer_of(gpt(), wanted)
