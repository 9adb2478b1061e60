"""Functions of torch that keep more for the way back than they need: the same results and gradients in less memory.

Only for the passes of the engine, in which no gradient is differentiated again.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - its usual name

# Bytes that go back together: what stays in a core's cache; on a device few and large operations are faster.
_ON_HOST, _ON_DEVICE = 1 << 20, 1 << 26
_LITTLE = 1 << 20  # bytes of an input below which there is little to spare, and a call costs more than that is worth


def lean(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what to call in the place of a function.

    Example:
        >>> x = torch.tensor([[[0.0, 3.0], [1.0, 2.0]]], requires_grad=True)
        >>> y = lean(F.max_pool2d)(x, 2)
        >>> y.sum().backward()
        >>> y.item(), x.grad.tolist()
        (3.0, [[[0.0, 1.0], [0.0, 0.0]]])
    """
    return _LEAN.get(function, function)


@final
class _MaxPool(torch.autograd.Function):
    """Keeps the places of the largest in 2 or 4 bytes each, where torch takes 8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...]) -> Any:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, *options)
        few = x.shape[-2] * x.shape[-1] <= torch.iinfo(torch.int16).max
        ctx.save_for_backward(x, places.to(torch.int16 if few else torch.int32))
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, places = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *ctx.options, places.long()), None


@final
class _CrossEntropy(torch.autograd.Function):
    """Goes back from the log-probabilities a piece at a time; torch makes two more tensors of their size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignored: int) -> Any:
        logs = logits.log_softmax(1)
        ctx.save_for_backward(logs, targets)
        ctx.ignored = ignored
        return F.nll_loss(logs, targets, ignore_index=ignored, reduction="none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        logs, targets = ctx.saved_tensors
        left_out = targets == ctx.ignored
        places = targets.masked_fill(left_out, 0).unsqueeze(1)
        of_labels = g.neg().masked_fill_(left_out, 0).unsqueeze(1)
        found = torch.empty_like(logs)
        for rows in _pieces(logs):
            torch.ops.aten._log_softmax_backward_data.out(  # noqa: SLF001 - torch's own, of log_softmax
                torch.zeros_like(logs[rows]).scatter_(1, places[rows], of_labels[rows]),
                *(logs[rows], 1, logs.dtype),
                out=found[rows],
            )
        return found, None, None


def _pieces(t: Tensor) -> Iterator[slice]:
    bound = _ON_HOST if t.device.type == "cpu" else _ON_DEVICE
    step = max(1, bound // max(1, t[:1].nbytes))
    return (slice(start, start + step) for start in range(0, len(t), step))


def _max_pool2d(input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - torch's name
    options = _without_places(*args, **kwargs)
    if options is None or not _goes_back(input):
        return F.max_pool2d(input, *args, **kwargs)
    return _MaxPool.apply(input, options)


def _without_places(  # noqa: PLR0917 - torch's own signature
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Any, ...] | None:
    """Return the options of a pooling that is not asked for the places of the largest; else None."""
    return None if return_indices else (kernel_size, [] if stride is None else stride, padding, dilation, ceil_mode)


def _cross_entropy(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - torch's name
    ignored = _of_each(*args, **kwargs)
    if ignored is None or not (_goes_back(input) and _labels(input, target)):
        return F.cross_entropy(input, target, *args, **kwargs)
    last = input.movedim(1, -1)
    if last.stride(-1) != 1:
        return _CrossEntropy.apply(input, target, ignored)
    rows = last.reshape(-1, last.shape[-1])  # torch would copy them into another order first
    return _CrossEntropy.apply(rows, target.reshape(-1), ignored).view(target.shape)


def _of_each(  # noqa: PLR0917 - torch's own signature
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> int | None:
    """Return the label that is left out where the losses are wanted as they are, one by one; else None."""
    usual = weight is None and size_average is None and reduce is None and not label_smoothing
    return ignore_index if usual and reduction == "none" else None


def _labels(logits: Tensor, targets: Tensor) -> bool:
    fits = logits.dim() > 1 and targets.shape == (logits.shape[0], *logits.shape[2:])
    # Which dtype autocast gives to log-probabilities is for torch to say.
    return fits and targets.dtype == torch.long and not torch.is_autocast_enabled(logits.device.type)


def _goes_back(x: Tensor) -> bool:
    """Say whether torch would keep much, of a tensor of its own kind and under none of its transforms."""
    ours = type(x) is Tensor and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
    return ours and x.requires_grad and torch.is_grad_enabled() and x.nbytes > _LITTLE


_LEAN: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {F.max_pool2d: _max_pool2d, F.cross_entropy: _cross_entropy}
)
