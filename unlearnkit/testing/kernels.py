"""Check a kernel of the exact Fisher against torch operations, with or without pytest."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad

from unlearnkit import ConfigurationError
from unlearnkit.importance import ConvGeometry, Kernel, KernelOperands, KernelPlan, Layer, SumBuffers
from unlearnkit.testing.law import LawError

_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
_COARSE = 0.05
_WEIGHT_GRADIENT: dict[int, Any] = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}
_Draw = Callable[..., Tensor]
_Layers = Iterator[tuple[str, Tensor, Tensor, Any]]
_SUMS: dict[str, Callable[[Tensor], Tensor]] = {"squares": torch.square, "absolute": torch.abs, "signed": torch.clone}


def check_kernel(
    kernel: Kernel, *, device: str = "cpu", dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64)
) -> None:
    """Check that a kernel adds what torch operations add, for every layer, layout and sum that it takes.

    A kernel that adds something else, hides a NaN or takes none of the layers is a `LawError`.
    """
    if not isinstance(kernel, Kernel):
        raise ConfigurationError(f"expected an object of a subclass of Kernel, saw {kernel!r}")
    taken = 0
    for dtype in dtypes:
        for name, operands in _cases(kernel.layer, device, dtype):
            plan = kernel.plan(operands)
            if plan is not None:
                taken += 1
                _check_case(kernel, f"{kernel.name} ({name})", operands, plan)
    if not taken:
        raise LawError(f"{kernel.name}: expected a kernel for some {kernel.layer} layer on {device}, saw None for all")


def _check_case(kernel: Kernel, who: str, operands: KernelOperands, first: KernelPlan) -> None:
    per_sample, dtype, device = _per_sample(operands), operands.g.dtype, operands.g.device
    for extra in [()] if first.squares_only else [(), ("absolute",), ("signed",), ("absolute", "signed")]:
        plan = kernel.plan(operands)
        if plan is None:
            raise LawError(f"{who}: expected a plan each time, saw None the second time")
        start = {sum_: torch.ones(plan.shape, dtype=dtype, device=device) for sum_ in ("squares", *extra)}
        plan.run(SumBuffers(**start))
        for sum_, buffer in start.items():
            terms, seen = _SUMS[sum_](per_sample), plan.finish(buffer).reshape(per_sample.shape[1:]).double()
            expected = 1 + terms.sum(0)
            rounding = _TOLERANCE.get(dtype, _COARSE) * float(1 + terms.abs().sum(0).nan_to_num().max())
            fine = expected.isfinite()
            wrong = float((seen - expected)[fine].abs().max()) if bool(fine.any()) else 0.0
            if not wrong <= rounding or bool(seen[~fine].isfinite().any()):
                raise LawError(
                    f"{who}: expected Σ of {sum_} as torch adds it, added to what was there, saw a difference of "
                    f"{wrong:.3g} where {rounding:.3g} is rounding, or a NaN that got lost"
                )


def _cases(layer: Layer, device: str, dtype: torch.dtype) -> Iterator[tuple[str, KernelOperands]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    found = {"linear": _linear, "convolution": _convolutions}[layer]
    for name, g, x, options in found(draw):
        spoilt = g.clone()
        spoilt[tuple(n // 2 for n in g.shape)] = float("nan")  # where the window sees no padding
        for kind, gradient in (("", g), (", NaN", spoilt)):
            yield f"{name}{kind}, {dtype}", KernelOperands(layer=layer, g=gradient, x=x, options=options)


def _linear(draw: _Draw) -> _Layers:
    for samples, rows, out, inner in ((1, 1, 3, 4), (3, 2, 16, 17), (2, 9, 40, 5), (2, 300, 20, 33)):
        yield f"{samples}×{rows} rows, {inner} to {out}", draw(samples, rows, out), draw(samples, rows, inner), None
        g, x = (draw(rows, samples, n).transpose(0, 1) for n in (out, inner))
        yield f"the same, rows first in memory, {inner} to {out}", g, x, None


def _convolutions(draw: _Draw) -> _Layers:
    sizes = [(3, 1, 1, 1, 1), (1, 1, 0, 1, 1), (1, 2, 0, 1, 1), (5, 2, 2, 1, 1), (2, 2, 0, 2, 1), (3, 1, 2, 2, 2)]
    for (kernel, stride, padding, dilation, groups), dims in itertools.product(sizes, (1, 2, 3)):
        geometry = ConvGeometry(
            kernel=(kernel,) * dims,
            stride=(stride,) * dims,
            padding=((padding, padding),) * dims,
            dilation=(dilation,) * dims,
            groups=groups,
        )
        size = 7 if dims < 3 else 5
        positions = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for channels, out, rows in ((3, 16, 1), (8, 33, 2)):
            x = draw(2, rows, channels * groups, *[size] * dims)
            g = draw(2, rows, out * groups, *[positions] * dims)
            yield f"{geometry}, {channels} to {out} channels, {rows} rows", g, x, geometry
            if dims == 2 and rows == 1:
                g, x = (t.flatten(0, 1).contiguous(memory_format=torch.channels_last).unsqueeze(1) for t in (g, x))
                yield f"{geometry}, {channels} to {out} channels, channels last", g, x, geometry


def _per_sample(operands: KernelOperands) -> Tensor:
    """Return each sample's weight gradient, in float64."""
    g, x = operands.g.double(), operands.x.double()
    if operands.layer == "linear":
        return torch.einsum("nko,nki->noi", g, x)
    geometry: ConvGeometry = operands.options
    shape = (g.shape[2], x.shape[2] // geometry.groups, *geometry.kernel)
    padding = tuple(before for before, _ in geometry.padding)
    rest = (geometry.stride, padding, geometry.dilation, geometry.groups)
    weight_gradient = _WEIGHT_GRADIENT[len(geometry.kernel)]
    return torch.stack([weight_gradient(x_n, shape, g_n, *rest) for g_n, x_n in zip(g, x, strict=True)])
