"""Every kernel of a convolution, chosen or not, against per-sample gradients in float64."""

import pytest
import torch
from fisher_oracle import CONVOLVE, check_plan, weight_gradients_of_each
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unlearnkit.importance.fisher.engine.kernel import ConvGeometry, SumBuffers
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.importance.fisher.rules.convolution import conv_plans, count_index_pairs, onednn_pays, pairs_pay


class Counter(TorchDispatchMode):
    """Counts operations: each would be a kernel launch on a device."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


@st.composite
def problems(draw):
    dims = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride, dilation, padding = each(1, 3), each(1, 2), each(1, 2), each(0, 2)
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    wide = draw(st.booleans()) and dims < 3  # sixteen channels: samples are handled together
    channels = [groups * (16 if wide else draw(st.integers(1, 3))) for _ in range(2)]
    geometry = ConvGeometry(
        kernel=kernel, stride=stride, padding=tuple((p, p) for p in padding), dilation=dilation, groups=groups
    )
    return geometry, channels, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())


@settings(max_examples=40)
@given(problems(), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1 << 8, 1 << 24]))
def test_every_kernel(problem, dtype, memory):
    geometry, (inner, out), samples, rows, last = problem
    torch.manual_seed(samples)
    x = torch.randn(samples * rows, inner, *[6] * len(geometry.kernel), dtype=dtype)
    w = torch.randn(out, inner // geometry.groups, *geometry.kernel, dtype=dtype)
    padding = tuple(p for p, _ in geometry.padding)
    y = CONVOLVE[len(geometry.kernel)](x, w, None, geometry.stride, padding, geometry.dilation, geometry.groups)
    g = torch.randn_like(y)
    if last and len(geometry.kernel) == 2:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    x, g = (t.unflatten(0, (samples, rows)) for t in (x, g))
    expected = weight_gradients_of_each(geometry, w, x, g)
    slot = Totals({"w": w}, double=False, memory=memory).slot("w")
    for kernel in conv_plans(slot, g, x, geometry):
        check_plan(kernel, expected, dtype=dtype, tolerance=1e-5 if dtype is torch.float32 else 1e-13)


def names(channels, out, size, *, kernel=3, dtype=torch.float32):
    geometry = ConvGeometry(
        kernel=(kernel,) * 2, stride=(1, 1), padding=((kernel // 2,) * 2,) * 2, dilation=(1, 1), groups=1
    )
    x, g = torch.zeros(2, 1, channels, size, size, dtype=dtype), torch.zeros(2, 1, out, size, size, dtype=dtype)
    w = torch.zeros(out, channels, kernel, kernel, dtype=dtype)
    slot = Totals({"w": w}, double=False, memory=1 << 24).slot("w")
    return [k.name for k in conv_plans(slot, g, x, geometry)]


@pytest.mark.parametrize(
    ("channels", "out", "size", "first"),
    [(512, 512, 2, "pairs"), (256, 256, 4, "offsets"), (128, 128, 8, "offsets"), (64, 64, 16, "plain")],
)
def test_the_choice_by_rule_for_the_stages_of_a_residual_network(channels, out, size, first):
    if first == "plain" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    assert names(channels, out, size)[0] == first


def test_float64_does_not_use_the_weight_gradient_of_torch():
    assert "plain" in names(64, 64, 16) or not torch.backends.mkldnn.is_available()
    assert "plain" not in names(64, 64, 16, dtype=torch.float64)


def test_kernels_take_many_samples_on_a_device():
    with FakeTensorMode():  # a device that is not there will do: nothing is computed
        w, x = torch.empty(64, 64, 3, 3, device="cuda"), torch.empty(64, 1, 64, 8, 8, device="cuda")
        slot = Totals({"w": w}, double=False, memory=1 << 26).slot("w")
        geometry = ConvGeometry(kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1), groups=1)
        kernel = conv_plans(slot, x, x, geometry)[0]
        total = torch.empty(kernel.shape, device="cuda")
        with Counter() as operations:
            kernel.run(SumBuffers(squares=total))
    assert kernel.name == "products"
    assert operations.seen < 64


def test_a_pixelwise_convolution_copies_no_windows():
    assert names(8, 8, 4, kernel=1)[0] == "pixels"


def test_offsets_in_the_padding_have_no_index_pairs():
    geometry = ConvGeometry(kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    regions = geometry.regions((2, 2), (2, 2))
    assert count_index_pairs(regions) == 16
    assert geometry.regions((1, 1), (1, 1)).count(None) == 8


def test_kernel_choice_thresholds():
    geometry = ConvGeometry(kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    assert pairs_pay(geometry.regions((2, 2), (2, 2)), 4, 9 << 18)
    assert not pairs_pay(geometry.regions((4, 4), (4, 4)), 16, 9 << 16)
    assert onednn_pays(3136, 64, 64 * 64 * 9)
    assert not onednn_pays(49, 512, 512 * 512 * 9)
    assert onednn_pays(64, 64, 64 * 128)  # 1×1, stride 2
    assert not onednn_pays(64, 128, 128 * 128 * 9)
