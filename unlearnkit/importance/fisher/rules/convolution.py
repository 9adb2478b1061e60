"""Convolutions in 1, 2 and 3 dimensions and their transposes, with groups, strides, dilation and any padding.

∂ℓ_n/∂W_{o,c,κ} = Σ_p g_{n,o,p} x_{n,c,s·p+d·κ}: an outer product of the output gradient with the windows of the input,
summed over positions. A transposed convolution is the same with x and g in each other's place.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.kernel import ConvGeometry, KernelOperands
from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.conv_kernels import conv_plans, weight_gradients

_Sizes = int | Sequence[int]


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
