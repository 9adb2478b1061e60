"""`class-projection`: removes from every layer what only the forget set has in its input."""

import numpy as np
import pytest
import torch
from torch import nn
from unlearnkit_methods.class_projection import ClassProjection

from unlearnkit import MismatchError, UnlearningInputs
from unlearnkit.testing import parametrize_with_checks


@parametrize_with_checks([ClassProjection(), ClassProjection(strength=0.3)])
def test_contract(subject, law):
    law.check(subject, examples=6)


def means(features, data):
    """Class to the mean of its rows, in numpy."""
    labels = np.concatenate([y.numpy() for _, y in data])
    rows = np.concatenate([features(x).detach().numpy() for x, _ in data])
    return np.stack([rows[labels == c].mean(0) for c in sorted(set(labels))])


def oracle(weight, forget, retain):
    """The projector on the residuals by pseudo-inverses, and ρ."""
    residual = forget - forget @ np.linalg.pinv(retain, rcond=1e-9) @ retain
    rho = np.linalg.norm(residual) / np.linalg.norm(forget)
    return weight @ (np.linalg.pinv(residual, rcond=1e-9) @ residual), rho


def data(seed, labels, *, width=8):
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)
    x = torch.randn(len(y), width, generator=generator, dtype=torch.float64) + y[:, None]
    return [(x[:4], y[:4]), (x[4:], y[4:])]


FORGET, RETAIN = data(0, [3, 4, 3, 4, 3, 3]), data(1, [0, 1, 2, 0, 1, 2, 0])


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5)).double()


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_two_layers_against_pseudo_inverses(strength):
    model, before = net(), net()
    inputs = UnlearningInputs(forget_data=FORGET, retain_data=RETAIN)
    ClassProjection(strength=strength).unlearn(model, inputs)
    layers = {0: lambda x: x, 2: lambda x: before[1](before[0](x))}
    found = {
        i: oracle(before[i].weight.detach().numpy(), means(layer, FORGET), means(layer, RETAIN))
        for i, layer in layers.items()
    }
    largest = max(rho for _, rho in found.values())
    for i, (removed, rho) in found.items():
        expected = before[i].weight.detach() - strength * rho / largest * torch.from_numpy(removed)
        torch.testing.assert_close(model[i].weight.detach(), expected)
        assert torch.equal(model[i].bias, before[i].bias)


def test_a_convolution_is_edited_as_the_linear_layer_of_its_channels():
    """A kernel of 1 and inputs that are the same at every place."""
    conv, linear = nn.Conv2d(8, 5, 1).double(), nn.Linear(8, 5).double()
    linear.weight.data, linear.bias.data = conv.weight.data[:, :, 0, 0].clone(), conv.bias.data.clone()
    wide = [[(x[:, :, None, None].expand(-1, -1, 2, 3), y) for x, y in part] for part in (FORGET, RETAIN)]
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ClassProjection().unlearn(model, UnlearningInputs(forget_data=wide[0], retain_data=wide[1]))
    ClassProjection().unlearn(linear, UnlearningInputs(forget_data=FORGET, retain_data=RETAIN))
    torch.testing.assert_close(conv.weight[:, :, 0, 0], linear.weight)


def test_a_parametrized_weight_is_left_alone_and_the_others_are_edited():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(net()[0]), nn.ReLU(), net()[2])
    report = ClassProjection().unlearn(model, UnlearningInputs(forget_data=FORGET, retain_data=RETAIN))
    assert [t.name for t in report.tensors if t.changed] == ["2.weight"]


def test_where_the_retain_set_spans_everything_nothing_changes():
    model = nn.Linear(3, 5).double()
    forget, retain = data(0, [3, 3, 3, 3, 3], width=3), data(1, [0, 1, 2, 0, 1, 2], width=3)
    assert ClassProjection().unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain)).changed == 0


def test_several_labels_for_one_sample_are_refused():
    model, batch = nn.Conv1d(2, 3, 1), [(torch.zeros(2, 2, 4), torch.zeros(2, 4).long())]
    with pytest.raises(MismatchError, match=r"expected one label for each sample, saw \(2, 4\)"):
        ClassProjection().unlearn(model, UnlearningInputs(forget_data=batch, retain_data=batch))
