"""Batch norm on running statistics, with a way back that reads the gradient alone.

y = γ (x − μ) / √(σ² + ε) + β, so that ∂ℓ/∂x = γ / √(σ² + ε) · ∂ℓ/∂y. torch's own way back reads x too, for the gradient
of γ, even where nobody wants that; and it takes some gradients for others (see `unlearnkit.models.norm_gradients`).
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from unlearnkit.models.norm_gradients import fix_norm_gradient

_LARGE = 1 << 19  # elements from which reading x again costs more than another function in Python


@final
class FixedNorm(torch.autograd.Function):
    """Calls batch norm; its backward is one multiplication."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what ``run`` makes of x; ``scale`` is ∂y/∂x, shape (C,)."""
        ctx.save_for_backward(scale)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradient."""
        (scale,), (g,) = ctx.saved_tensors, grads
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - torch's own switch; no mode need see this
            return (g * scale.view(-1, *(1,) * (g.dim() - 2))).to(g.dtype), None, None


def batch_norm(  # noqa: PLR0917 - torch's own signature
    function: Callable[..., Tensor],
    input: Tensor,  # noqa: A002 - torch's name
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Call batch norm on running statistics, its weights detached.

    Example:
        >>> x = torch.ones(1 << 18, 2, requires_grad=True)
        >>> y = batch_norm(torch.nn.functional.batch_norm, x, torch.zeros(2), torch.ones(2), torch.tensor([3.0, 4.0]))
        >>> y.sum().backward()
        >>> x.grad[0].round()
        tensor([3., 4.])
    """

    def run(x: Tensor) -> Tensor:
        return function(x, running_mean, running_var, weight, bias, training, momentum, eps)

    if not input.requires_grad or input.numel() < _LARGE:
        y = run(input)
        fix_norm_gradient(function, y)
        return y
    scale = (running_var + eps).rsqrt()
    scaled: Tensor = FixedNorm.apply(input, scale if weight is None else scale * weight, run)
    return scaled
