"""A convolution's gradient and input as the kernels that look elements up want them."""

import math

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.rules.conv_geometry import Geometry


def arranged(g: Tensor, x: Tensor, geometry: Geometry, *, pad: bool) -> tuple[Tensor, Tensor, Geometry]:
    """Bring a convolution into the form (n, O, *positions) and (n, C, *spatial) of one group.

    The rows of a sample, where there are several, become an axis that the window does not reach along.
    """
    kernel, stride, padding, dilation = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    gradient, inputs = g.transpose(1, 2), x.transpose(1, 2)
    if pad and geometry.padded:
        inputs = F.pad(inputs, geometry.sides)
        padding = ((0, 0),) * len(padding)
    if g.shape[1] == 1:
        gradient, inputs = gradient[:, :, 0], inputs[:, :, 0]
    else:
        kernel, stride, dilation, padding = (1, *kernel), (1, *stride), (1, *dilation), ((0, 0), *padding)
        gradient = gradient.contiguous()
    one = Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=1)
    return gradient if _even(gradient) else gradient.contiguous(), inputs, one


def _even(gradient: Tensor) -> bool:
    """Say whether the positions of a map lie at equal distances, in their order."""
    lengths, steps = gradient.shape[2:], gradient.stride()[2:]
    return all(step == steps[-1] * math.prod(lengths[i + 1 :]) for i, step in enumerate(steps))
