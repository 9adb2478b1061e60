"""Totals do not change with batch size, order, chunk, memory budget, channels-last, kernels or thread count."""

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import estimate
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.importance import fisher_statistics

KERNELS = ["fixed", "compiled"] if HAS_COMPILER else ["fixed"]
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Small(nn.Module):
    """A convolution for every kernel, a depthwise one, norms, attention and a class token."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.GroupNorm(4, 16), nn.GELU())
        self.deep = nn.Sequential(nn.Conv2d(16, 24, 3, stride=4, padding=1), nn.Tanh())
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.mix = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        rows = self.deep(self.body(self.stem(x))).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(x), -1, -1), rows], 1)
        return self.head(self.norm(rows + self.mix(rows, rows, rows, need_weights=False)[0])[:, 0])


def made(dtype):
    torch.manual_seed(0)
    model = Small()
    model(torch.randn(8, 3, 16, 16) + 1)  # running statistics that are not the initial ones
    x, y = torch.randn(13, 3, 16, 16), torch.randint(0, 5, (13,))
    return model.to(dtype).eval(), x.to(dtype), y


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def furthest(seen, expected):
    """The largest difference of a total, relative to the largest of its parameter or a millionth of all."""
    scale = max(float(t.max()) for t in expected.values())
    return max(float((seen[n] - t).abs().max()) / max(float(t.max()), 1e-6 * scale) for n, t in expected.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_batch_size_and_a_last_odd_batch(dtype, size):
    model, x, y = made(dtype)
    whole = estimate(model, batches(x, y, 13))
    assert furthest(estimate(model, batches(x, y, size)), whole) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_order(dtype):
    model, x, y = made(dtype)
    shuffled = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    seen = estimate(model, batches(x[shuffled], y[shuffled], 5))
    assert furthest(seen, estimate(model, batches(x, y, 5))) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 4}, {"memory_budget": 1}, {"kernels": KERNELS[-1]}])
def test_chunk_memory_budget_and_kernels(dtype, options):
    model, x, y = made(dtype)
    assert furthest(estimate(model, [(x, y)], **options), estimate(model, [(x, y)])) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [1, 5])
def test_absolute_values_and_the_gradient(dtype, kernels, size):
    model, x, y = made(dtype)
    seen, expected = (
        fisher_statistics(
            model, data, objective=CrossEntropy(), absolute=True, gradient=True, fisher=DiagonalFisher(kernels=kernels)
        )
        for data in (batches(x, y, size), batches(x, y, 13))
    )
    scale = expected.absolute.mean()  # the terms of a gradient may cancel, up to rounding
    assert furthest(seen.absolute.totals, expected.absolute.totals) < TOLERANCE[dtype]
    for name, gradient in expected.gradient.items():
        assert (seen.gradient[name] - gradient).abs().max() < TOLERANCE[dtype] * scale[name].max(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_channels_last(dtype, kernels):
    model, x, y = made(dtype)
    expected = estimate(model, [(x, y)], kernels=kernels)
    last = [(x.to(memory_format=torch.channels_last), y)]
    seen = estimate(model.to(memory_format=torch.channels_last), last, kernels=kernels)
    assert furthest(seen, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_thread_count(dtype, kernels):
    model, x, y = made(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(estimate(model, [(x, y)], kernels=kernels))
    finally:
        torch.set_num_threads(before)
    assert furthest(found[1], found[0]) < TOLERANCE[dtype]
    assert furthest(found[2], found[0]) < TOLERANCE[dtype]
