"""Batch norm's compiled sums, and its way back that reads the gradient alone, against torch in float64."""

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import distance, estimate, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from unlearnkit.importance.fisher.rules import batch_norm_eval as fixed_norm
from unlearnkit.importance.fisher.rules.batch_norm_eval import batch_norm
from unlearnkit.importance.fisher.rules.channel_products import ChannelProducts

compiled = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def sums(g, x, mean, variance, eps):
    flat, shifted = g.double().flatten(2), x.double().flatten(2) - mean.double().view(-1, 1)
    return (flat * shifted).sum(2) / (variance.double() + eps).sqrt()


def running(channels):
    return torch.randn(channels), torch.rand(channels) + 0.1, 1e-3


def off(seen, expected):
    return float((seen - expected).abs().sum() / expected.abs().sum())


@compiled
@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 63, 64, 65, 130]),
    st.sampled_from([(1,), (5,), (700,), (1, 1), (3, 4), (12, 13)]),
    st.booleans(),
)
def test_sums_of_products(samples, channels, spatial, last):
    torch.manual_seed(channels)
    g, x = torch.randn(2, samples, channels, *spatial)
    if last and len(spatial) == 2:
        g, x = (t.contiguous(memory_format=torch.channels_last) for t in (g, x))
    of = running(channels)
    seen = ChannelProducts()(g, x, *of)
    assert off(seen, sums(g, x, *of)) < 1e-6


@compiled
def test_maps_cut_out_of_larger_ones():
    g, x = torch.randn(4, 70, 9)[1:3, 2:68, 1:8], torch.randn(2, 66, 7)
    mean, variance = torch.randn(132)[::2], torch.rand(66, dtype=torch.float64)
    assert off(ChannelProducts()(g, x, mean, variance, 0.5), sums(g, x, mean, variance, 0.5)) < 1e-6


@compiled
def test_what_it_leaves_to_torch():
    maps, of = torch.randn(2, 3, 4, 5), running(3)
    last = maps.contiguous(memory_format=torch.channels_last)
    one = ChannelProducts()
    assert one(maps, last, *of) is None  # one lies channel by channel, the other position by position
    assert one(*[maps.flatten(2)[..., ::2]] * 2, *of) is None  # every second position
    assert one(maps.double(), maps.double(), *of) is None
    assert one(maps[:, :, 0, 0], maps[:, :, 0, 0], *of) is None


@compiled
def test_one_thread_or_three_give_the_same_bits():
    g, x, of, before = torch.randn(3, 70, 500), torch.randn(3, 70, 500), running(70), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ChannelProducts()(g, x, *of)
        torch.set_num_threads(3)
        assert torch.equal(ChannelProducts()(g, x, *of), one)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(fixed_norm, "_LARGE", 0)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 1), (1, 3, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_way_back(shape, dtype, affine):
    torch.manual_seed(0)
    x, g = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    layer = nn.BatchNorm1d(3, affine=affine).double()
    for t in layer.state_dict().values():
        if t.is_floating_point():
            t.uniform_(0.5, 2)
    scale = (layer.running_var + layer.eps).rsqrt() * (layer.weight if affine else 1)
    expected = g * scale.detach().view(-1, *(1,) * (g.dim() - 2))
    x = x.to(dtype).requires_grad_()
    kept = torch.float64 if dtype is torch.float64 else torch.float32
    held = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    of = [None if t is None else t.detach().to(kept) for t in held]
    y = batch_norm(F.batch_norm, x, *of)
    assert torch.equal(y, F.batch_norm(x, *of))
    permuted = g.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # torch's own takes such a one for another
    assert y.grad_fn.name() == "FixedNormBackward"
    y.backward(permuted)
    assert x.grad.dtype is dtype
    assert (x.grad.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_an_input_that_needs_no_gradient_has_no_way_back():
    y = batch_norm(F.batch_norm, torch.ones(2, 3), torch.zeros(3), torch.ones(3))
    assert y.grad_fn is None


class Deep(nn.Module):
    """Norms between layers, so that both the sums and the way back count, on maps of either layout."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(
            *(nn.Conv2d(3, 70, 3), nn.BatchNorm2d(70), nn.ReLU(inplace=True), nn.Conv2d(70, 5, 2)),
            *(nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 9 * 9, 6), nn.BatchNorm1d(6)),
        )
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.parts(x)


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("any_size")
def test_a_model_of_norms(kernels, layout):
    torch.manual_seed(0)
    model = Deep().eval().to(memory_format=layout)
    data = [(torch.randn(n, 3, 12, 12).contiguous(memory_format=layout), torch.arange(n) % 6) for n in (5, 2, 1)]
    assert distance(estimate(model, data, kernels=kernels), oracle(model, data)) < 1e-5


def test_small_maps_have_torchs_own_way_back():
    y = batch_norm(F.batch_norm, torch.ones(2, 3, requires_grad=True), torch.zeros(3), torch.ones(3))
    assert "FixedNorm" not in y.grad_fn.name()
