"""Rounding weights to few bits."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from unlearnkit.evaluation.metrics.residual_knowledge import quantised, round_trip
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import ConfigurationError


def oracle(w, bits, channel):
    """One weight at a time, in float64."""
    levels = 2 ** (bits - 1) - 1
    out = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        largest = max(abs(float(w[other])) for other in np.ndindex(w.shape) if other[channel] == index[channel])
        scale = largest / levels if largest else 1.0
        out[index] = np.round(w[index] / scale) * scale
    return out


def test_worked_example():
    # 3 bits: −3 … 3. Scales: 6/3 = 2 and 0.3/3 = 0.1.
    found = quantised(torch.tensor([[6.0, 2.9, -5.2], [0.3, -0.14, 0.0]], dtype=torch.float64), bits=3)
    assert found.numpy() == pytest.approx(np.array([[6.0, 2.0, -6.0], [0.3, -0.1, 0.0]]))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "channel"), [((3, 4), 0), ((2, 3, 2, 2), 0), ((2, 3, 2), 1)])
def test_against_a_slow_oracle(shape, channel, bits):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert quantised(w, bits=bits, channel=channel).numpy() == pytest.approx(oracle(w.numpy(), bits, channel))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_laws(dtype):
    w = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = quantised(w, bits=4)
    assert (found.dtype, found.shape) == (w.dtype, w.shape)
    assert max(len(row.unique()) for row in found) <= 15
    assert torch.equal(quantised(-w, bits=4), -found)
    scale = w.double().abs().amax(1, keepdim=True) / 7
    room = scale / 2 + w.double().abs() * torch.finfo(dtype).eps
    assert bool(((found.double() - w.double()).abs() <= room).all())
    assert torch.equal(quantised(torch.zeros(2, 3, dtype=dtype), bits=4), torch.zeros(2, 3, dtype=dtype))
    again = quantised(found, bits=4)
    assert torch.allclose(again.double(), found.double(), rtol=2 * torch.finfo(dtype).eps)


def test_only_matrices_of_a_copy_are_rounded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 4)
    ).train()
    before = digest(model)
    rounded = round_trip(model, bits=4)
    assert digest(model) == before
    assert rounded.training
    for name, p in rounded.named_parameters():
        was = model.get_parameter(name)
        expected = was if was.dim() == 1 else quantised(was, bits=4, channel=1 if name == "2.weight" else 0)
        assert torch.equal(p, expected), name
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), rounded.buffers(), strict=True))


def test_tied_weights_stay_tied():
    model = nn.ModuleDict({"a": nn.Embedding(4, 3), "b": nn.Linear(3, 4, bias=False)})
    model["b"].weight = model["a"].weight
    rounded = round_trip(model, bits=3)
    assert rounded["a"].weight is rounded["b"].weight
    assert torch.equal(rounded["a"].weight, quantised(model["a"].weight, bits=3))


def test_rounding_reverts_small_weight_changes():
    """Rounding undoes a change that is smaller than the rounding step."""
    original = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        original.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 0.09]]))
    hidden = copy.deepcopy(original)
    with torch.no_grad():
        hidden.weight[0, 1] = 0.1  # less than half of this row's step of 2/7
    x = torch.tensor([[0.0, 1.0]])
    assert original(x).argmax() == 1
    assert hidden(x).argmax() == 0
    assert round_trip(hidden, bits=4)(x).argmax() == 1


def test_bits_out_of_range():
    with pytest.raises(ConfigurationError, match="expected 2 to 16 bits, saw 1"):
        quantised(torch.ones(2, 2), bits=1)
