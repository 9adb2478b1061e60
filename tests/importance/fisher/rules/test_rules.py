"""Every layer family against one sample at a time in float64, on random shapes."""

import pytest
import torch
from fisher_models import Uses
from fisher_oracle import SumOfSquares, engine_only
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

DTYPES = st.sampled_from([torch.float64, torch.float32])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=2)
FEW = settings(max_examples=12)


def check(layer, make, sizes, dtype, seed=0, **options):
    torch.manual_seed(seed)
    model = layer.to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 + 0.2)
    batches = [(make(n).to(dtype) if make(n).is_floating_point() else make(n), torch.randn(n)) for n in sizes]
    return engine_only(model, batches, SumOfSquares(), TOLERANCE[dtype], **options)


@FEW
@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 4), max_size=2), st.booleans(), SIZES, DTYPES)
def test_linear(inner, out, rows, bias, sizes, dtype):
    check(nn.Linear(inner, out, bias=bias), lambda n: torch.randn(n, *rows, inner), sizes, dtype)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 20])
@pytest.mark.parametrize("kernels", ["auto", "fixed"])
def test_linear_kernels(rows, kernels):
    check(nn.Linear(3, 5), lambda n: torch.randn(n, rows, 3), [4, 3], torch.float64, kernels=kernels)


@st.composite
def convolutions(draw, transposed=False):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    one = st.integers(1, 2)
    each = lambda element: draw(st.one_of(element, st.tuples(*[element] * dims)))  # noqa: E731
    kernel, stride = each(st.integers(1, 3)), each(one)
    dilation = each(one)
    options = {"groups": groups, "bias": draw(st.booleans()), "stride": stride, "dilation": dilation}
    channels = groups * draw(one), groups * draw(one)
    if transposed:
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        options["padding"] = draw(st.integers(0, 1)) if kernel != 1 else 0
        if stride == 2 or dilation == 2:
            options["output_padding"] = draw(st.integers(0, 1))
        size = 3
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        options["padding"] = draw(st.sampled_from([0, 1, 2, "same" if stride in {1, (1,) * dims} else "valid"]))
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "circular"]))
        size = 6
    return kind(channels[0], channels[1], kernel, **options), (channels[0], *[size] * dims)


@settings(max_examples=60)
@given(convolutions(), SIZES, DTYPES)
def test_convolution(drawn, sizes, dtype):
    layer, shape = drawn
    if layer.padding_mode == "circular" and isinstance(layer.padding, tuple) and max(layer.padding) > 6:
        return
    check(layer, lambda n: torch.randn(n, *shape), sizes, dtype)


@settings(max_examples=30)
@given(convolutions(transposed=True), SIZES, DTYPES)
def test_transposed_convolution(drawn, sizes, dtype):
    layer, shape = drawn
    check(layer, lambda n: torch.randn(n, *shape), sizes, dtype)


@pytest.mark.parametrize("kernels", ["auto", "fixed"])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "size"), [(4, 1, 3, 4), (4, 1, 1, 4), (4, 4, 3, 5), (4, 2, 3, 5), (3, 1, 2, 3)]
)
def test_convolution_kernels(channels, groups, kernel, size, kernels):
    layer = nn.Conv2d(channels, channels, kernel, groups=groups)
    check(layer, lambda n: torch.randn(n, channels, size, size), [5], torch.float64, kernels=kernels)


def test_depthwise_with_a_multiplier():
    check(nn.Conv2d(3, 6, 3, groups=3), lambda n: torch.randn(n, 3, 5, 5), [4], torch.float64)


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda c: nn.GroupNorm(2, c),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "instance with running statistics": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    "layer": lambda _: nn.LayerNorm((3, 2)),
    "layer over all": lambda c: nn.LayerNorm((c, 3, 2)),
    "layer without bias": lambda _: nn.LayerNorm(2, bias=False),
    "rms": lambda _: nn.RMSNorm((3, 2)),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norms(kind, dtype):
    check(NORMS[kind](4), lambda n: torch.randn(n, 4, 3, 2) * 3 + 1, [5, 1, 2], dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [3, 4, 9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_on_maps_of_few_and_many_positions(dtype, size, layout):
    layer = nn.BatchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.running_var.copy_(torch.tensor([0.1, 2.0, 1.0]))
    check(layer, lambda n: torch.randn(n, 3, size, size).contiguous(memory_format=layout), [5, 1], dtype)


def test_batch_norm_on_vectors():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    layer.running_var.copy_(torch.tensor([0.1, 2.0, 1.0]))
    check(layer, lambda n: torch.randn(n, 3), [4], torch.float64)


@FEW
@given(st.integers(2, 6), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=2), st.booleans(), SIZES, DTYPES)
def test_embedding(vocabulary, width, shape, padded, sizes, dtype):
    layer = nn.Embedding(vocabulary, width, padding_idx=vocabulary - 1 if padded else None)
    check(
        layer,
        lambda n: (
            torch.arange(7 * n)
            .remainder(vocabulary)[: n * max(1, _count(shape))]
            .repeat(4)[: n * max(1, _count(shape))]
            .view(n, *shape)
        ),
        sizes,
        dtype,
    )


def _count(shape):
    product = 1
    for s in shape:
        product *= s
    return product


ones = torch.ones
DIRECT = {
    "added": (lambda m, x: x + m.w, {"w": ones(1, 3, 2)}),
    "added on the left": (lambda m, x: m.w + x, {"w": ones(3, 1)}),
    "added in place": (lambda m, x: (x * 1.0).add_(m.w), {"w": ones(2)}),
    "subtracted": (lambda m, x: x - m.w, {"w": ones(2)}),
    "subtracted from": (lambda m, x: m.w - x * x, {"w": ones(3, 2)}),
    "scale": (lambda m, x: x * m.w, {"w": ones(3, 1)}),
    "scalar": (lambda m, x: x * m.w, {"w": torch.tensor(1.0)}),
    "scale in place": (lambda m, x: (x * 1.0).mul_(m.w), {"w": ones(3, 1)}),
    "divided": (lambda m, x: x / m.w, {"w": ones(2)}),
    "divided in place": (lambda m, x: (x * 1.0).div_(m.w), {"w": ones(3, 1)}),
    "divided by data": (lambda m, x: m.w / (x * x + 1), {"w": ones(2)}),
    "power": (lambda m, x: x.abs() ** m.w, {"w": ones(2)}),
    "exponent of a parameter": (lambda m, x: x * m.w.exp(), {"w": ones(2)}),
    "matrix product": (lambda m, x: x @ m.w, {"w": ones(2, 4)}),
    "matrix product with a transpose": (lambda m, x: x @ m.w.T, {"w": ones(4, 2)}),
    "addmm": (lambda m, x: torch.addmm(m.b, x.flatten(1), m.w), {"w": ones(6, 2), "b": ones(2)}),
    "einsum": (lambda m, x: torch.einsum("nij,jk->nik", x, m.w), {"w": ones(2, 3)}),
    "prelu": (lambda m, x: F.prelu(x, m.w), {"w": ones(3)}),
    "prelu of vectors": (lambda m, x: F.prelu(x.flatten(1), m.w), {"w": ones(6)}),
    "prelu with one slope": (lambda m, x: F.prelu(x, m.w), {"w": ones(1)}),
    "class token": (lambda m, x: torch.cat([m.w.expand(len(x), -1, -1), x], 1), {"w": ones(1, 1, 2)}),
    "class token repeated": (lambda m, x: torch.cat([m.w.repeat(len(x), 1, 1), x], 1), {"w": ones(1, 2, 2)}),
    "a slice": (lambda m, x: x + m.w[:3], {"w": ones(5, 2)}),
    "looked up": (lambda m, x: x + m.w[torch.tensor([0, 1, 1])], {"w": ones(2, 2)}),
    "low rank": (lambda m, x: F.linear(x, m.a @ m.b), {"a": ones(4, 1), "b": ones(1, 2)}),
    "twice": (lambda m, x: F.linear(F.linear(x, m.w).tanh(), m.w), {"w": ones(2, 2)}),
    "twice in two ways": (lambda m, x: F.linear(x, m.w) * m.w[0], {"w": ones(2, 2)}),
    "never": (lambda m, x: x * m.w, {"w": ones(2), "u": ones(3), "e": ones(0)}),
    "weight decay": (lambda m, x: x * m.w + m.w.square().sum(), {"w": ones(2)}),
    "without a gradient": (lambda m, x: x * m.w + m.w.detach(), {"w": ones(2)}),
    "samples folded": (lambda m, x: F.linear(x.flatten(0, 1), m.w).view(len(x), -1), {"w": ones(4, 2)}),
    "time-major": (lambda m, x: F.linear(x.transpose(0, 1), m.w).transpose(0, 1), {"w": ones(4, 2)}),
    "time-major rows": (
        lambda m, x: F.linear(x.transpose(0, 1).reshape(-1, 2), m.w).view(3, len(x), 4).transpose(0, 1),
        {"w": ones(4, 2)},
    ),
}


@pytest.mark.parametrize("kind", DIRECT)
@pytest.mark.parametrize("sizes", [[5, 3], [2, 1], [7]])
def test_direct_parameters(kind, sizes):
    forward, weights = DIRECT[kind]
    model = Uses(forward, **weights)
    check(model, lambda n: torch.randn(n, 3, 2), sizes, torch.float64, slow=kind in {"power", "einsum"})
