"""Works around wrong CPU gradients of batch_norm and instance_norm for a non-contiguous grad_output (torch 2.11–2.15).

torch reads the output's gradient with the strides of the input when the gradient could be channels-last: for one
sample, or maps that are one pixel wide or high, after a permutation. The gradients of input and weights are then wrong.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

_AFFECTED = (F.instance_norm, F.batch_norm)


def fix_norm_gradient(function: Callable[..., Any], y: Any) -> None:
    """Register a hook on a norm's output that gives its gradient the strides that torch expects."""
    affected = function in _AFFECTED and isinstance(y, Tensor) and y.requires_grad
    if affected and not torch.compiler.is_compiling():  # a hook would break the graph of a compiled layer
        y.register_hook(partial(_with_strides, y.stride()))


def _with_strides(strides: tuple[int, ...], g: Tensor) -> Tensor:
    """Copy a gradient to the strides of its output, so that channels-last stays channels-last."""
    return g if g.stride() == strides else g.new_empty_strided(tuple(g.shape), strides).copy_(g)


@final
class FixNormGradients(TorchFunctionMode):
    """Applies `fix_norm_gradient` to every call on this thread inside its ``with`` block."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function; see `fix_norm_gradient`."""
        y = func(*args, **(kwargs or {}))
        fix_norm_gradient(func, y)
        return y


def norm_gradient_fix(model: nn.Module) -> Callable[[], AbstractContextManager[object]]:
    """Return the context to call a model in: `FixNormGradients`, or nothing for a model without norm layers."""
    kind = nn.modules.batchnorm._NormBase  # noqa: SLF001 - the only common parent of the six
    affected = any(isinstance(module, kind) for module in model.modules()) and not hasattr(model, "_orig_mod")
    return FixNormGradients if affected else nullcontext
