"""Round trips through few bits: does what was forgotten come back when the weights are rounded?"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from unlearnkit.utils.errors import ConfigurationError


def quantised(weight: Tensor, *, bits: int, channel: int = 0) -> Tensor:
    """Return s_c·round(w/s_c) with s_c = max|w_c|/(2^(bits−1) − 1), for each output channel c by itself.

    Symmetric and per channel: zero stays zero, and each channel's largest weight stays as it is, up to rounding in the
    weight's own precision.

    Source: Nagel, Fournarakis, Amjad, Bondarenko, van Baalen and Blankevoort 2021 (A White Paper on Neural Network
    Quantization), section 2.2, symmetric and per-channel.

    Args:
        weight: Any shape with at least one dimension, finite.
        bits: 2 … 16.
        channel: The dimension whose slices have a scale each.

    Returns:
        A new tensor of the same shape and dtype, with at most 2^bits − 1 values in each channel.

    Raises:
        ConfigurationError: Bits are out of range.

    Example:
        >>> quantised(torch.tensor([[3.0, 1.2, -3.0], [0.0, 0.0, 0.0]]), bits=3)  # scales 1 and none
        tensor([[ 3.,  1., -3.],
                [ 0.,  0.,  0.]])
    """
    if not 2 <= bits <= 16:
        raise ConfigurationError(f"quantised: expected 2 to 16 bits, saw {bits!r}")
    levels = 2 ** (bits - 1) - 1
    w = weight.detach().double()
    rows = w.movedim(channel, 0)
    largest = rows.reshape(len(rows), -1).abs().amax(dim=1)
    shape = [-1 if dimension == channel else 1 for dimension in range(w.dim())]
    scale = torch.where(largest > 0, largest / levels, 1.0).reshape(shape)
    return ((w / scale).round() * scale).to(weight.dtype)


def round_trip(model: nn.Module, *, bits: int) -> nn.Module:
    """Copy a model, with every weight of two or more dimensions rounded to few bits and turned back.

    Biases, normalisation and buffers keep their precision, as is usual where models are quantised.

    Args:
        model: Left as it is.
        bits: See `quantised`.

    Returns:
        The copy, in the same mode.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> torch.equal(round_trip(model, bits=8).bias, model.bias)
        True
    """
    rounded = copy.deepcopy(model)
    sideways = {id(m.weight) for m in rounded.modules() if isinstance(m, _ConvTransposeNd)}
    with torch.no_grad():
        for p in rounded.parameters():
            if p.dim() > 1 and p.is_floating_point() and p.numel():
                # A transposed convolution has its output channels in the second dimension.
                p.copy_(quantised(p, bits=bits, channel=1 if id(p) in sideways else 0))
    return rounded
