"""The compiled kernel against per-sample gradients in float64: layers of every size, and unsupported inputs."""

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import check_plan, distance, estimate, weight_gradients_of_each
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from unlearnkit_cpu_kernels import ConvolutionSquares, LinearSquares, build, outer_squares
from unlearnkit_cpu_kernels.outer_squares import countable

from unlearnkit import ConfigurationError, CrossEntropy, DiagonalFisher, UnlearnKitWarning
from unlearnkit.importance import ConvGeometry, KernelOperands, SumBuffers, fisher_statistics
from unlearnkit.importance.fisher.engine import kernel as contract

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


def linear(g, a):
    return LinearSquares().plan(KernelOperands(layer="linear", g=g, x=a))


def convolution(g, x, geometry):
    return ConvolutionSquares().plan(KernelOperands(layer="convolution", g=g, x=x, options=geometry))


def outer(g, a):
    return torch.einsum("nto,nti->noi", g.double(), a.double())


SIZES = st.sampled_from([16, 17, 31, 32, 33, 70])


@settings(max_examples=30)
@given(st.integers(1, 5), st.sampled_from([2, 3, 65, 256, 257, 600]), SIZES, st.integers(1, 40), st.booleans())
def test_linear(samples, rows, out, inner, time_major):
    torch.manual_seed(rows + out)
    shape = (lambda n: (rows, samples, n)) if time_major else (lambda n: (samples, rows, n))
    g, a = (torch.randn(shape(n)) for n in (out, inner))
    if time_major:
        g, a = g.transpose(0, 1), a.transpose(0, 1)
    for left, right in ((g, a), (a, g)):
        check_plan(linear(left, right), outer(left, right))


@pytest.mark.parametrize("channels", [3, 8, 40])
@pytest.mark.parametrize(("groups", "out"), [(1, 16), (1, 35), (2, 64)])
@pytest.mark.parametrize("size", [2, 5, 20])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (1, 1, 0), (1, 2, 0), (3, 3, 0)])
def test_convolution(channels, groups, out, size, kernel, stride, padding):
    if size + 2 * padding < kernel:
        return
    torch.manual_seed(channels)
    x, w = torch.randn(3, channels * groups, size, size), torch.randn(out, channels, kernel, kernel)
    g = torch.randn_like(F.conv2d(x, w, None, stride, padding, 1, groups))
    geometry = ConvGeometry(
        kernel=(kernel,) * 2, stride=(stride,) * 2, padding=((padding,) * 2,) * 2, dilation=(1, 1), groups=groups
    )
    expected = weight_gradients_of_each(geometry, w, x[:, None], g[:, None])
    for layout in (torch.contiguous_format, torch.channels_last):
        rows, maps = (t.contiguous(memory_format=layout)[:, None] for t in (g, x))
        check_plan(convolution(rows, maps, geometry), expected)


def test_gradient_maps_sliced_from_larger_ones():
    w = torch.zeros(16, 8, 1, 1)
    g, x = torch.randn(2, 1, 16, 6, 6)[..., 1:4, 1:5], torch.randn(2, 1, 8, 5, 7)[..., 1:4, 2:6]
    geometry = ConvGeometry(kernel=(1, 1), stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1), groups=1)
    check_plan(convolution(g, x, geometry), weight_gradients_of_each(geometry, w, x, g))


def test_thread_count_does_not_change_the_bits():
    before = torch.get_num_threads()
    kernel = linear(torch.randn(6, 9, 70), torch.randn(6, 9, 50))
    try:
        torch.set_num_threads(1)
        one = squares(kernel)
        torch.set_num_threads(3)
        assert torch.equal(squares(kernel), one)
    finally:
        torch.set_num_threads(before)


def squares(kernel):
    into = SumBuffers(squares=torch.zeros(kernel.shape))
    kernel.run(into)
    return kernel.finish(into.squares)


def test_nan_and_infinity_are_kept():
    g, a = torch.ones(2, 2, 16), torch.ones(2, 2, 3)
    g[0, 0, 0], g[1, 1, 1] = torch.nan, torch.inf
    seen = squares(linear(g, a))
    assert seen[0].isnan().all()
    assert seen[1].isinf().all()
    assert seen[2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_left_to_torch(dtype):
    g, a = torch.ones(2, 2, 16, dtype=dtype), torch.ones(2, 2, 3, dtype=dtype)
    assert linear(g, a) is None


def test_few_output_channels_are_left_to_torch():
    geometry = ConvGeometry(kernel=(1, 1), stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1), groups=8)
    g = torch.ones(2, 1, 64, 3, 3)
    assert convolution(g, g, geometry) is None


@pytest.fixture
def nothing_compiled(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(contract, "_left_out", {})
    monkeypatch.setattr(contract, "_said", set())
    monkeypatch.setattr(build, "_loaded", {})
    outer_squares._library.cache_clear()
    yield tmp_path
    outer_squares._library.cache_clear()


def without(monkeypatch, **set_to):
    """Estimate on a machine that cannot compile the kernels, and compare with torch operations."""
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    model, batch = network(), (torch.randn(5, 3, 4, 4), torch.arange(5) % 4)
    auto = estimate(model, [batch])
    fixed = estimate(model, [batch], kernels="fixed")
    assert all(torch.equal(auto[name], total) for name, total in fixed.items())
    return model, batch


@pytest.mark.usefixtures("nothing_compiled")
def test_without_a_compiler_torch_is_used_and_compiled_raises(monkeypatch, caplog):
    with caplog.at_level("INFO"):
        model, batch = without(monkeypatch, CXX="no-such-compiler")
    assert caplog.text.count("going on with torch operations instead of the kernel") == 1
    assert "compiled kernels need a C++ compiler" in caplog.text
    with pytest.raises(ConfigurationError, match=r"kernels='compiled': the kernel cpu-.* need a C"):
        estimate(model, [batch], kernels="compiled")


@pytest.mark.usefixtures("nothing_compiled")
def test_failing_compiler_gives_one_warning(monkeypatch):
    message = r"instead of the kernel cpu-.* \(plugin 'cpu-kernels' of unlearnkit .*false .* failed"
    with pytest.warns(UnlearnKitWarning, match=message) as said:
        without(monkeypatch, CXX="false")
    assert len(said) == 1
    without(monkeypatch)  # left out from now on, without another word


@pytest.mark.parametrize("home", ["", "/proc/no-such-folder"])
def test_missing_or_unwritable_home_is_logged(nothing_compiled, monkeypatch, caplog, home):
    monkeypatch.delenv("UNLEARNKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with caplog.at_level("INFO"):
        without(monkeypatch, HOME=home)
    assert "compiled kernels cannot be kept" in caplog.text


def test_offsets_beyond_32_bits_are_left_to_torch():
    """In a time-first layout the rows of one sample are far apart."""
    assert countable(torch.empty(8, 4, 5))
    assert not countable(torch.empty(1 << 13, 1 << 12, 1 << 10, device="meta").transpose(0, 1))


def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2), nn.Flatten(2)]
    return nn.Sequential(*convolutions, nn.Linear(64, 20), nn.Tanh(), nn.Flatten(), nn.Linear(160, 4))


def test_network_with_every_statistic_of_one_pass():
    model, data = network(), [(torch.randn(n, 3, 4, 4), torch.arange(n) % 4) for n in (5, 2)]
    everything = {"objective": CrossEntropy(), "absolute": True, "gradient": True, "key": -1}
    fixed, ours = (
        fisher_statistics(model, data, fisher=DiagonalFisher(kernels=kernels), **everything)
        for kernels in ("fixed", "compiled")
    )
    exact = {n: t.double() for n, t in estimate(network().double(), [(x.double(), y) for x, y in data]).items()}
    assert distance(ours.importance.totals, exact) < 1e-5
    assert distance(ours.absolute.totals, dict(fixed.absolute.totals)) < 1e-5
    assert distance(ours.batched.totals, dict(fixed.batched.totals)) < 1e-5
    gradient = torch.autograd.grad(sum(CrossEntropy().losses(model, b).sum() for b in data) / 7, model.parameters())
    for (name, seen), expected in zip(ours.gradient.items(), gradient, strict=True):
        assert (seen - expected).abs().max() < 1e-5 * expected.abs().max(), name
    assert ours.importance.fingerprint == fixed.importance.fingerprint
    for key, group in fixed.groups.items():
        assert distance(ours.groups[key].totals, dict(group.totals)) < 1e-5
