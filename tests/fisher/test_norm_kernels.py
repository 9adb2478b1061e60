"""Batch norm's compiled sums, and its way back that reads the gradient alone, against torch in float64."""

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import distance, estimate, oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from unlearnkit.fisher.families.channel_products import ChannelProducts
from unlearnkit.fisher.families.fixed_norm import batch_norm

compiled = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def sums(g, x, mean):
    inside = tuple(range(2, g.dim()))
    return (g.double() * (x.double() - mean.double().view(-1, *(1,) * len(inside)))).sum(inside)


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
    mean = torch.randn(channels)
    seen = ChannelProducts()(g, x, mean)
    assert seen.dtype is torch.float64
    assert off(seen, sums(g, x, mean)) < 1e-6


@compiled
def test_maps_cut_out_of_larger_ones():
    g, x, mean = torch.randn(4, 70, 9)[1:3, 2:68, 1:8], torch.randn(2, 66, 7), torch.randn(132)[::2]
    assert off(ChannelProducts()(g, x, mean), sums(g, x, mean)) < 1e-6


@compiled
def test_what_it_leaves_to_torch():
    maps, mean = torch.randn(2, 3, 4, 5), torch.zeros(3)
    last = maps.contiguous(memory_format=torch.channels_last)
    one = ChannelProducts()
    assert one(maps, last, mean) is None  # one lies channel by channel, the other position by position
    assert one(*[maps.flatten(2)[..., ::2]] * 2, mean) is None  # every second position
    assert one(maps.double(), maps.double(), mean.double()) is None
    assert one(maps[:, :, 0, 0], maps[:, :, 0, 0], mean) is None


@compiled
def test_one_thread_or_three_give_the_same_bits():
    g, x, mean, before = torch.randn(3, 70, 500), torch.randn(3, 70, 500), torch.randn(70), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ChannelProducts()(g, x, mean)
        torch.set_num_threads(3)
        assert torch.equal(ChannelProducts()(g, x, mean), one)
    finally:
        torch.set_num_threads(before)


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
def test_a_model_of_norms(kernels, layout):
    torch.manual_seed(0)
    model = Deep().eval().to(memory_format=layout)
    data = [(torch.randn(n, 3, 12, 12).contiguous(memory_format=layout), torch.arange(n) % 6) for n in (5, 2, 1)]
    assert distance(estimate(model, data, kernels=kernels), oracle(model, data)) < 1e-5
