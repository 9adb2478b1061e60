"""Norms, direct parameters, activations and attention with random shapes, dtypes and batch sizes."""

import torch
from fisher_models import Uses
from fisher_oracle import SumOfSquares, engine_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

DTYPES = st.sampled_from([torch.float64, torch.float32])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=2)
MAPS = st.lists(st.integers(2, 4), min_size=1, max_size=3)
FEW = settings(max_examples=15)


def check(model, draw, sizes, dtype, **options):
    torch.manual_seed(0)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 + 0.4)
    engine_only(
        model, [(draw(n).to(dtype), torch.randn(n)) for n in sizes], SumOfSquares(), TOLERANCE[dtype], **options
    )


@FEW
@given(st.integers(1, 3), st.integers(1, 3), MAPS, SIZES, DTYPES)
def test_group_norm(groups, each, spatial, sizes, dtype):
    channels = groups * each
    check(nn.GroupNorm(groups, channels), lambda n: torch.randn(n, channels, *spatial) * 2 + 1, sizes, dtype)


@FEW
@given(st.integers(1, 4), MAPS, SIZES, DTYPES)
def test_batch_norm(channels, spatial, sizes, dtype):
    layer = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(spatial) - 1](channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    check(layer, lambda n: torch.randn(n, channels, *spatial), sizes, dtype)


@FEW
@given(st.integers(1, 4), MAPS, SIZES, DTYPES)
def test_instance_norm(channels, spatial, sizes, dtype):
    layer = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(spatial) - 1](channels, affine=True)
    check(layer, lambda n: torch.randn(n, channels, *spatial), sizes, dtype)


@FEW
@given(st.sampled_from([nn.LayerNorm, nn.RMSNorm]), st.lists(st.integers(2, 4), min_size=1, max_size=2), SIZES, DTYPES)
def test_trailing_norms(kind, shape, sizes, dtype):
    check(kind(shape), lambda n: torch.randn(n, 3, *shape) + 1, sizes, dtype)


BROADCAST = {
    "add": lambda m, x: x + m.w,
    "subtract": lambda m, x: m.w - x,
    "multiply": lambda m, x: x * m.w,
    "divide": lambda m, x: x / m.w,
    "divided by": lambda m, x: m.w / (1 + x.square()),
}


@settings(max_examples=40)
@given(st.sampled_from(sorted(BROADCAST)), MAPS, st.data(), SIZES, DTYPES)
def test_direct_parameters(kind, shape, data, sizes, dtype):
    """The parameter has the shape of a sample, with ones anywhere and leading dimensions left out."""
    ones = [1 if data.draw(st.booleans()) else d for d in shape]
    weight = ones[data.draw(st.integers(0, len(ones) - 1)) :]
    check(Uses(BROADCAST[kind], w=torch.ones(weight)), lambda n: torch.randn(n, *shape), sizes, dtype)


@FEW
@given(st.integers(1, 3), MAPS, st.booleans(), SIZES, DTYPES)
def test_prelu(channels, spatial, one, sizes, dtype):
    model = Uses(lambda m, x: F.prelu(x, m.w), w=torch.ones(1 if one else channels))
    check(model, lambda n: torch.randn(n, channels, *spatial), sizes, dtype)


@settings(max_examples=8)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(2, 4), st.booleans(), SIZES, DTYPES)
def test_attention(heads, width, length, batch_first, sizes, dtype):
    inner = nn.MultiheadAttention(heads * width, heads, batch_first=batch_first)

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            if not batch_first:
                return self.inner(*[x.transpose(0, 1)] * 3, need_weights=False)[0].transpose(0, 1)
            return self.inner(x, x, x, need_weights=False)[0]

    check(Attend(), lambda n: torch.randn(n, length, heads * width), sizes, dtype)
