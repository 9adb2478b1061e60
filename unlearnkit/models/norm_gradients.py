"""Keeps a mistake of torch out of gradients: what its norms give back for a gradient that is not in order.

torch (2.11 to 2.15) takes the strides of the output's gradient for those of the input, on the CPU, when the gradient
can be read as channels-last: one sample, or maps that are one pixel wide or high, with a gradient out of a permutation.
The gradients of input and weights are then wrong. This holds for instance norm and for batch norm.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

_WRONG = (F.instance_norm, F.batch_norm)


def in_order(function: Callable[..., Any], y: Any) -> None:
    """Have a result's gradient brought in order before torch goes back through the function that made it."""
    if function not in _WRONG or not isinstance(y, Tensor) or not y.requires_grad:
        return
    if torch.compiler.is_compiling():
        return  # a hook would break the graph of a compiled layer
    if function is F.instance_norm:
        y.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    else:
        y.register_hook(partial(_laid_out, y.stride()))  # type: ignore[no-untyped-call]


def _laid_out(strides: tuple[int, ...], g: Tensor) -> Tensor:
    """Copy a gradient into the strides of what it is the gradient of, where it has others: channels-last stays so."""
    return g if g.stride() == strides else g.new_empty_strided(tuple(g.shape), strides).copy_(g)


@final
class Steady(TorchFunctionMode):
    """Does so for every call on this thread while its ``with`` block lasts."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function; see `in_order`."""
        y = func(*args, **(kwargs or {}))
        in_order(func, y)
        return y


def steady_for(model: nn.Module) -> Callable[[], AbstractContextManager[object]]:
    """Choose the context that a model is to be called in."""
    return Steady if needs_order(model) and not hasattr(model, "_orig_mod") else nullcontext


def needs_order(model: nn.Module) -> bool:
    """Say whether a model has layers that `Steady` is for."""
    kind = nn.modules.batchnorm._NormBase  # noqa: SLF001 - the only common parent of the six
    return any(isinstance(module, kind) for module in model.modules())
