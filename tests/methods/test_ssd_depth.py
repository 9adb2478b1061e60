"""`ssd-depth`: dampening from the last layer on, weaker in earlier ones, until the forget set is forgotten."""

import pytest
import torch
from torch import nn
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD
from unlearnkit_methods.ssd_depth import DepthDampening

from unlearnkit import ConfigurationError, Importance, Objective, UnlearningInputs
from unlearnkit.importance import ratio_threshold
from unlearnkit.testing import parametrize_with_checks


@parametrize_with_checks([DepthDampening(), DepthDampening(fraction=0.5, lam=0.0, accuracy=0.0)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def case(*, forgotten_by_the_last=False):
    """Three layers; the class of the forget set is the first output, by a bias that the edit of one layer removes."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    names = list(model.state_dict())
    forget = {n: 8 * torch.rand(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    reference = {n: 0.5 + torch.rand(f.shape, generator=generator, dtype=torch.float64) for n, f in forget.items()}
    data = [(torch.rand(3, 4, generator=generator, dtype=torch.float64), torch.zeros(3).long())]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.rand(p.shape, generator=generator))
        model[4].bias.copy_(torch.tensor([50.0, 20.0, 0.0, 0.0]))
    forget["4.bias"][0] = 1e9 if forgotten_by_the_last else 0.0
    forget["4.bias"][1] = 0.0
    inputs = UnlearningInputs(
        forget=Importance(totals=forget, count=1), reference=Importance(totals=reference, count=1), forget_data=data
    )
    return model, inputs, names


def test_every_layer_against_ssd_with_its_own_thresholds():
    """Layers 4, 2 and 0 have S = 1, 2 and 3."""
    model, inputs, names = case()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    DepthDampening(fraction=0.4, lam=0.1, spread=3.0, accuracy=0.0).unlearn(model, inputs)
    alpha = ratio_threshold(inputs.forget, inputs.reference, fraction=0.4)
    selected = {}
    for name in names:
        scale = {"4": 1.0, "2": 2.0, "0": 3.0}[name[0]]
        f, r = inputs.forget.totals[name], inputs.reference.totals[name]
        expected = SSD(alpha=scale * alpha, lam=scale * 0.1).edit(before[name], f, r)
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), expected, rtol=1e-12, atol=0)
        selected[name[0]] = selected.get(name[0], 0) + int((expected != before[name]).sum())
    assert selected["4"] > selected["2"] > selected["0"]


def test_the_same_in_every_layer_is_ssd():
    model, inputs, _ = case()
    other, same, _ = case()
    one = DepthDampening(fraction=0.3, lam=0.5, spread=1.0, accuracy=0.0).unlearn(model, inputs)
    two = SSD(fraction=0.3, lam=0.5).unlearn(other, same)
    assert one.changed == two.changed > 10
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_it_stops_when_the_forget_set_is_forgotten():
    """The bias that makes the class is dampened with the last layer."""
    model, inputs, _ = case(forgotten_by_the_last=True)
    report = DepthDampening(fraction=0.4).unlearn(model, inputs)
    assert {t.name[0] for t in report.tensors if t.changed} == {"4"}


def test_an_objective_without_accuracy_is_refused():
    class Squares(Objective):
        def losses(self, model, batch):
            return model(batch[0]).square().sum(1)

    model, inputs, _ = case()
    with pytest.raises(ConfigurationError, match="ssd-depth stops at an accuracy"):
        DepthDampening().unlearn(
            model,
            UnlearningInputs(
                forget=inputs.forget, reference=inputs.reference, forget_data=inputs.forget_data, objective=Squares()
            ),
        )
