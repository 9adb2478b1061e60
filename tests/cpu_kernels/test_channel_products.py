"""Batch norm's compiled sums against torch in float64."""

import pytest
import torch
from compiler import HAS_COMPILER
from hypothesis import given, settings
from hypothesis import strategies as st
from unlearnkit_cpu_kernels.channel_products import channel_sums

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


def sums(g, x, mean, variance, eps):
    flat, shifted = g.double().flatten(2), x.double().flatten(2) - mean.double().view(-1, 1)
    return (flat * shifted).sum(2) / (variance.double() + eps).sqrt()


def running(channels):
    return torch.randn(channels), torch.rand(channels) + 0.1, 1e-3


def off(seen, expected):
    return float((seen - expected).abs().sum() / expected.abs().sum())


@settings(max_examples=30)
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
    seen = channel_sums(g, x, *of)
    assert off(seen, sums(g, x, *of)) < 1e-6


def test_slices_of_larger_maps():
    g, x = torch.randn(4, 70, 9)[1:3, 2:68, 1:8], torch.randn(2, 66, 7)
    mean, variance = torch.randn(132)[::2], torch.rand(66, dtype=torch.float64)
    assert off(channel_sums(g, x, mean, variance, 0.5), sums(g, x, mean, variance, 0.5)) < 1e-6


def test_unsupported_inputs_are_left_to_torch():
    maps, of = torch.randn(2, 3, 4, 5), running(3)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert channel_sums(maps, last, *of) is None  # one lies channel by channel, the other position by position
    assert channel_sums(*[maps.flatten(2)[..., ::2]] * 2, *of) is None  # every second position
    assert channel_sums(maps.double(), maps.double(), *of) is None
    assert channel_sums(maps[:, :, 0, 0], maps[:, :, 0, 0], *of) is None


def test_thread_count_does_not_change_the_bits():
    g, x, of, before = torch.randn(3, 70, 500), torch.randn(3, 70, 500), running(70), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = channel_sums(g, x, *of)
        torch.set_num_threads(3)
        assert torch.equal(channel_sums(g, x, *of), one)
    finally:
        torch.set_num_threads(before)
