"""Convolutions in 1, 2 and 3 dimensions and their transposes, with groups, strides, dilation and any padding.

∂ℓ_n/∂W_{o,c,κ} = Σ_p g_{n,o,p} x_{n,c,s·p+d·κ}: an outer product of the output gradient with the windows of the input,
summed over positions. A transposed convolution is the same with x and g in each other's place.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.conv_kernels import conv_kernels
from unlearnkit.importance.fisher.rules.conv_unfold import weight_gradients


@final
class ConvolutionRule(Rule):
    """y = W ∗ x + b."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.conv1d, F.conv2d, F.conv3d)

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _convolution(*args, **kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return each sample's gradient, shape (n, O, C / groups, *kernel), or Σ_p g_np; see `Rule.per_sample`."""
        if role == "bias":
            return _positions(g)
        return weight_gradients(g, call.saved[0], call.options)

    def work(self, g: Tensor, call: Call) -> int:
        """Count the windows; see `Rule.work`."""
        return _work(g, call.saved[0], call.options)

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add the squares by the kernel chosen for this layer; see `Rule.add_squares`."""
        if role == "bias":
            slot.add(_positions(g))
        elif g.numel():
            geometry: Geometry = call.options
            slot.run(conv_kernels(slot, g, call.saved[0], geometry))


@final
class TransposedConvolutionRule(Rule):
    """y = Wᵀ ∗ x + b: the formula of the convolution that maps y to x, with x as its output gradient."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _transposed(*args, **kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return each sample's gradient, shape (n, C, O / groups, *kernel), or Σ_p g_np; see `Rule.per_sample`."""
        if role == "bias":
            return _positions(g)
        return weight_gradients(call.saved[0], g, call.options)

    def work(self, g: Tensor, call: Call) -> int:
        """Count the windows; see `Rule.work`."""
        return _work(call.saved[0], g, call.options)

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add the squares by the kernel chosen for this layer; see `Rule.add_squares`."""
        if role == "bias":
            slot.add(_positions(g))
        elif g.numel():
            geometry: Geometry = call.options
            slot.run(conv_kernels(slot, call.saved[0], g, geometry))


def _convolution(  # noqa: PLR0917 - torch's own signature
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Call | None:
    geometry = _geometry(weight, stride, padding, dilation, groups)
    if input.dim() != weight.dim():
        return None
    return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=geometry)


def _transposed(  # noqa: PLR0917 - torch's own signature
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Call | None:
    del output_padding  # the positions it adds lie outside every window that counts
    if input.dim() != weight.dim():
        return None
    geometry = _geometry(weight, stride, padding, dilation, groups)
    return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=geometry)


def _geometry(
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    kernel = tuple(weight.shape[2:])
    step, spread = _each(stride, len(kernel)), _each(dilation, len(kernel))
    return Geometry(
        kernel=kernel, stride=step, padding=_padding(padding, kernel, spread), dilation=spread, groups=groups
    )


def _padding(
    padding: int | str | Sequence[int], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        return tuple((0, 0) for _ in kernel)
    return tuple((p, p) for p in _each(padding, len(kernel)))


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _work(g: Tensor, x: Tensor, geometry: Geometry) -> int:
    """Count the elements of the windows of one sample, of its padded input and of its copied gradient."""
    positions = math.prod(g.shape[3:]) * g.shape[1]
    window = x.shape[2] * math.prod(geometry.kernel)
    return 2 * positions * window + 2 * math.prod(x.shape[1:]) + math.prod(g.shape[1:])


def _positions(g: Tensor) -> Tensor:
    """Sum over rows and positions: (n, k, C, …) to (n, C)."""
    return g.flatten(3).sum((1, 3)) if g.dim() > 3 else g.sum(1)
