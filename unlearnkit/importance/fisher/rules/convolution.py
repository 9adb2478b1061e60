"""Convolutions in 1, 2 and 3 dimensions and their transposes, with groups, strides, dilation and any padding.

∂ℓ_n/∂W_{o,c,κ} = Σ_p g_{n,o,p} x_{n,c,s·p+d·κ}: an outer product of the output gradient with the windows of the input,
summed over positions. A transposed convolution is the same with x and g in each other's place.

There are several ways to add the squares; each is fastest on some layers (measured, see the performance page).
"""

import abc
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn import grad

from unlearnkit.importance.fisher.engine.kernel import ConvGeometry, KernelOperands, KernelPlan, Region, SumBuffers
from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.linear import add_pairs, add_products

_Sizes = int | Sequence[int]
_PAIRS_UP_TO = 16  # positions
_LARGE = 1 << 12  # elements for one kernel offset from which products offset by offset are as fast as larger ones
_CACHE = 1 << 20  # elements of a per-sample buffer above which it falls out of the caches
_TRAFFIC = {True: 30, False: 4}  # what that costs for each offset, in products of one position
_TOGETHER = 5 << 20  # bytes of weight gradients formed at a time by oneDNN: more falls out of the caches
_SMALL = 1 << 16  # elements of a sample's gradient, of which oneDNN then forms so many that it pays on smaller maps
_BLOCK = 16  # channels that oneDNN handles together: with other numbers one sample at a time is faster
_GRADIENTS: tuple[Callable[..., Any], ...] = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)


class _AnyConvolution(Rule):
    @abc.abstractmethod
    def maps(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output gradient and the input of the convolution whose weight gradient is wanted."""

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return each sample's gradient, shape (n, O, C / groups, *kernel), or Σ_p g_np."""
        return _positions(g) if role == "bias" else weight_gradients(*self.maps(g, call.saved[0]), call.options)

    @final
    def work(self, g: Tensor, call: Call) -> int:
        """Count the elements of the windows of one sample, of its padded input and of its copied gradient."""
        g, x = self.maps(g, call.saved[0])
        geometry: ConvGeometry = call.options
        window = x.shape[2] * math.prod(geometry.kernel)
        return 2 * math.prod(g.shape[3:]) * g.shape[1] * window + 2 * math.prod(x.shape[1:]) + math.prod(g.shape[1:])

    @final
    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        if role == "bias":
            slot.add(_positions(g))
        elif g.numel():
            g, x = self.maps(g, call.saved[0])
            if not slot.by_kernel(KernelOperands(layer="convolution", g=g, x=x, options=call.options)):
                slot.run(conv_plans(slot, g, x, call.options))


@final
class ConvolutionRule(_AnyConvolution):
    """y = W ∗ x + b."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.conv1d, F.conv2d, F.conv3d)

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
        input: Tensor,  # noqa: A002 - torch's name
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Sizes = 1,
        padding: str | _Sizes = 0,
        dilation: _Sizes = 1,
        groups: int = 1,
    ) -> Call | None:
        return _bound(input, weight, bias, _geometry(weight, stride, padding, dilation, groups))

    def maps(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return g, x


@final
class TransposedConvolutionRule(_AnyConvolution):
    """y = Wᵀ ∗ x + b: the formula of the convolution that maps y to x, with x as its output gradient."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
        input: Tensor,  # noqa: A002 - torch's name
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Sizes = 1,
        padding: _Sizes = 0,
        output_padding: _Sizes = 0,
        groups: int = 1,
        dilation: _Sizes = 1,
    ) -> Call | None:
        del output_padding  # the positions it adds lie outside every window that counts
        return _bound(input, weight, bias, _geometry(weight, stride, padding, dilation, groups))

    def maps(self, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, g


def _bound(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Call | None:
    if x.dim() != weight.dim():
        return None
    return Call(weights={"weight": weight, "bias": bias}, saved=(x,), options=geometry)


def _geometry(weight: Tensor, stride: _Sizes, padding: str | _Sizes, dilation: _Sizes, groups: int) -> ConvGeometry:
    kernel = tuple(weight.shape[2:])
    step, spread = _each(stride, len(kernel)), _each(dilation, len(kernel))
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, spread, strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((p, p) for p in _each(0 if isinstance(padding, str) else padding, len(kernel)))
    return ConvGeometry(kernel=kernel, stride=step, padding=sides, dilation=spread, groups=groups)


def _each(value: _Sizes, dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _positions(g: Tensor) -> Tensor:
    """Sum over rows and positions: (n, k, C, …) to (n, C)."""
    return g.flatten(3).sum((1, 3)) if g.dim() > 3 else g.sum(1)


def conv_plans(slot: Slot, g: Tensor, x: Tensor, geometry: ConvGeometry) -> list[KernelPlan]:
    """List the ways to add a layer's squares, the fastest first; g: (n, k, O, …), x: (n, k, C, …)."""
    products = _products(slot, g, x, geometry)
    onednn = [_onednn(slot, g, x, geometry)] if onednn_possible(g) else []
    positions, out, channels = math.prod(g.shape[3:]) * g.shape[1], g.shape[2], x.shape[2]
    if geometry.groups > 1:
        if not out == channels == geometry.groups:
            return [products, *onednn]
        wide = math.prod(geometry.kernel) > 9 and positions >= 100 and set(geometry.stride) == {1}
        return [_depthwise(slot, g, x, geometry), *onednn] if wide else [*onednn, _depthwise(slot, g, x, geometry)]
    if g.is_cuda:  # a loop over samples would start thousands of small products
        return [products]
    if geometry.pixelwise and g.shape[1] == 1:
        return [_pixels(g, x), products]
    regions = geometry.regions(tuple(x.shape[3:]), tuple(g.shape[3:]))
    offsets = _offsets(slot, g, x, geometry, regions)
    plans = [offsets, products] if out * channels >= _LARGE else [products, offsets]
    plans = [*onednn, *plans] if onednn_pays(positions, channels, slot.numel) else [*plans, *onednn]
    if positions <= _PAIRS_UP_TO:
        first = pairs_pay(regions, positions, slot.numel)
        plans.insert(0 if first else len(plans), _pairs(slot, g, x, offsets, regions))
    return plans


# --- im2col: windows of a chunk of samples are copied, multiplied and squared ---


def _products(slot: Slot, g: Tensor, x: Tensor, geometry: ConvGeometry) -> KernelPlan:
    positions, out, channels = math.prod(g.shape[3:]) * g.shape[1], g.shape[2], x.shape[2] // geometry.groups
    offsets = math.prod(geometry.kernel)
    work = offsets * x.shape[2] * positions + slot.numel

    def run(into: SumBuffers) -> None:
        for part in slot.chunks(len(g), work):
            into.add(_im2col_products(g[part], x[part], geometry), overwrite=True)

    return KernelPlan(
        name="products",
        shape=(out, offsets * channels),
        run=run,
        finish=lambda total: total.view(out, *geometry.kernel, channels).movedim(-1, 1),
    )


def weight_gradients(g: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Form every sample's weight gradient: (n, O, C / groups, *kernel)."""
    product, channels = _im2col_products(g, x, geometry), x.shape[2] // geometry.groups
    return product.view(*product.shape[:2], *geometry.kernel, channels).movedim(-1, 2)


def _im2col_products(g: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    samples, rows, out, *positions = g.shape
    groups, channels = geometry.groups, x.shape[2] // geometry.groups
    offsets = math.prod(geometry.kernel)
    u = _im2col(x.flatten(0, 1), geometry, positions)
    u = u.view(samples, rows * math.prod(positions), offsets, groups, channels).permute(0, 3, 1, 2, 4)
    left = g.flatten(3).transpose(1, 2).reshape(samples * groups, out // groups, -1)
    found = torch.bmm(left, u.reshape(samples * groups, -1, offsets * channels))
    return found.view(samples, out, offsets * channels)


def _im2col(x: Tensor, geometry: ConvGeometry, positions: list[int]) -> Tensor:
    """Copy the window of every output position, channels last, by one strided copy."""
    last = x.movedim(1, -1)
    if geometry.padded:
        last = F.pad(last, [0, 0, *geometry.sides])
    last = last.contiguous()
    steps = last.stride()[1:-1]
    moves = [s * t for s, t in zip(geometry.stride, steps, strict=True)]
    taps = [d * t for d, t in zip(geometry.dilation, steps, strict=True)]
    shape = (len(last), *positions, *geometry.kernel, last.shape[-1])
    return last.as_strided(shape, (last.stride(0), *moves, *taps, 1), last.storage_offset()).contiguous()


# --- oneDNN: each sample becomes a group of channels of one convolution's weight gradient ---


def _onednn(slot: Slot, g: Tensor, x: Tensor, geometry: ConvGeometry) -> KernelPlan:
    several = g.shape[2] % _BLOCK == 0 and x.shape[2] % _BLOCK == 0

    def run(into: SumBuffers) -> None:
        for part in slot.chunks(len(g), slot.numel, bound=_TOGETHER if several else 1):
            for one in _grouped_gradients(g[part], x[part], geometry):
                into.add_one(one)

    return KernelPlan(name="plain", shape=(slot.numel,), run=run)


def onednn_possible(g: Tensor) -> bool:
    """Say whether torch's own weight gradient is exact and quick; on CUDA it may compute in TF32, which is not."""
    here = g.device.type == "cpu" and g.dtype == torch.float32
    return here and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def onednn_pays(positions: int, channels: int, elements: int) -> bool:
    """Say whether it costs less than the other ways: on large maps, and on smaller ones where gradients are small."""
    return positions >= (1024 if channels < _BLOCK else 64 if elements <= _SMALL else 128)


def _grouped_gradients(g: Tensor, x: Tensor, geometry: ConvGeometry) -> Tensor:
    samples, _, out = g.shape[:3]
    channels = x.shape[2] // geometry.groups
    left, right = _as_groups(x), _as_groups(g)
    before = tuple(first for first, _ in geometry.padding)
    if any(first != last for first, last in geometry.padding):
        left = F.pad(left, geometry.sides)
        before = (0,) * len(before)
    found: Tensor = _GRADIENTS[len(geometry.kernel) - 1](
        left,
        (samples * out, channels, *geometry.kernel),
        right,
        stride=geometry.stride,
        padding=before,
        dilation=geometry.dilation,
        groups=samples * geometry.groups,
    )
    return found.reshape(samples, out * channels * math.prod(geometry.kernel))


def _as_groups(t: Tensor) -> Tensor:
    """Put the channels of all samples side by side: (n, k, C, …) to (k, n·C, …)."""
    return t[0] if len(t) == 1 else t.transpose(0, 1).flatten(1, 2).contiguous()


# --- kernel offset by kernel offset: no copies of windows, and each product stays in the cache ---


def _offsets(slot: Slot, g: Tensor, x: Tensor, geometry: ConvGeometry, regions: list[Region | None]) -> KernelPlan:
    def run(into: SumBuffers) -> None:
        for part in slot.chunks(len(g), 2 * (g[0].numel() + x[0].numel())):
            for offset, rows, pixels in _gathered(g[part], x[part], regions):
                add_products(into[offset], rows, pixels)

    def finish(total: Tensor) -> Tensor:
        return total.movedim(0, -1).reshape(*total.shape[1:], *geometry.kernel)

    return KernelPlan(name="offsets", shape=(len(regions), g.shape[2], x.shape[2]), run=run, finish=finish)


def _pairs(slot: Slot, g: Tensor, x: Tensor, offsets: KernelPlan, regions: list[Region | None]) -> KernelPlan:
    """Square by pairs of positions, for maps of a few pixels: nothing per sample is formed."""

    def run(into: SumBuffers) -> None:
        for offset, rows, pixels in _gathered(g, x, regions):
            add_pairs(slot, into[offset], rows, pixels)

    return attrs.evolve(offsets, name="pairs", run=run, squares_only=True)


def pairs_pay(regions: list[Region | None], positions: int, elements: int) -> bool:
    """Say whether pairs cost less than one product per sample."""
    counts = [count_index_pairs([region]) for region in regions]
    pairs = sum(count * (count + 1) // 2 for count in counts)
    return pairs <= len(regions) * (positions + _TRAFFIC[elements > _CACHE])


def _gathered(g: Tensor, x: Tensor, regions: list[Region | None]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Copy the positions and pixels that meet at each kernel offset."""
    rows, pixels = (t.movedim(2, -1).contiguous() for t in (g, x))
    for offset, region in enumerate(regions):
        if region is not None:
            outputs, inputs = ((slice(None), slice(None), *axes) for axes in region)
            yield offset, rows[outputs].flatten(1, -2), pixels[inputs].flatten(1, -2)


def count_index_pairs(regions: list[Region | None]) -> int:
    """Count the pairs of output position and pixel over all kernel offsets."""
    return sum(math.prod(axis.stop - axis.start for axis in outputs) for outputs, _ in filter(None, regions))


# --- 1×1 convolutions and depthwise ones ---


def _pixels(g: Tensor, x: Tensor) -> KernelPlan:
    def run(into: SumBuffers) -> None:
        rows, pixels = (t.flatten(3)[:, 0].transpose(1, 2) for t in (g, x))
        add_products(into, rows, pixels)

    return KernelPlan(name="pixels", shape=(g.shape[2], x.shape[2]), run=run)


def _depthwise(slot: Slot, g: Tensor, x: Tensor, geometry: ConvGeometry) -> KernelPlan:
    """Multiply g with the input shifted by each kernel offset: one channel sees one channel."""
    samples, rows, out, *positions = g.shape

    def run(into: SumBuffers) -> None:
        for part in slot.chunks(samples, rows * math.prod(positions) * out * 3):
            padded, flat = F.pad(x[part].flatten(0, 1), geometry.sides), g[part].flatten(0, 1)
            for i, offset in enumerate(itertools.product(*map(range, geometry.kernel))):
                cut = tuple(
                    slice(d * o, d * o + s * (p - 1) + 1, s)
                    for o, d, s, p in zip(offset, geometry.dilation, geometry.stride, positions, strict=True)
                )
                per = (padded[(slice(None), slice(None), *cut)] * flat).flatten(2).sum(2)
                into[i].add(per.view(-1, rows, out).sum(1), overwrite=True)

    return KernelPlan(
        name="depthwise", shape=(math.prod(geometry.kernel), out), run=run, finish=lambda total: total.t()
    )
