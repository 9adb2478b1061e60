"""Normalisation layers: y = γ · x̂ + β, so ∂ℓ_n/∂γ = Σ_t g_nt x̂_nt and ∂ℓ_n/∂β = Σ_t g_nt."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.linear import sum_of
from unlearnkit.utils.errors import UnsupportedModelError

_CACHED = 1 << 20  # bytes of products that stay in a core's cache until they are summed


class _Norm(Rule):
    """A norm with a γ whose products g x̂ are summed a few samples at a time, so that they stay in the cache."""

    @final
    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        if role == "bias":
            slot.add(self.per_sample(role, g, call))
        else:
            for rows in slot.chunks(len(g), math.prod(g.shape[1:]), bound=_CACHED):
                slot.add(self.per_sample(role, g[rows], call.holding(t[rows] for t in call.saved)))


class _ChannelNorm(_Norm):
    """A norm whose γ and β have one element per channel, dimension 1."""

    @abc.abstractmethod
    def products(self, g: Tensor, call: Call) -> Tensor:
        """Return Σ_t g x̂ for each row and channel: shape (rows, C)."""

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ g x̂ or Σ g, shape (n, C)."""
        samples, flat = len(g), g.flatten(0, 1)
        part = _positions(flat) if role == "bias" else self.products(flat, call)
        return sum_of(part.reshape(samples, g.shape[1], part.shape[1]))


@final
class BatchNormRule(_ChannelNorm):
    """x̂ = (x − μ) / √(σ² + ε) with running μ and σ²: Σ_t g x̂ = Σ_t g (x − μ) / √(σ² + ε)."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.batch_norm,)

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
        input: Tensor,  # noqa: A002 - torch's name
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | None:
        del momentum
        if training:
            raise UnsupportedModelError(
                "expected samples that do not mix, saw batch_norm on batch statistics: per-sample gradients do not "
                "exist there; use eval mode and track_running_stats=True, or GroupNorm"
            )
        if running_mean is None or running_var is None:
            return None
        running = running_mean.detach(), running_var.detach()
        return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=(*running, eps))

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return batch_norm(function, *args, **kwargs)

    def products(self, g: Tensor, call: Call) -> Tensor:
        mean, variance, eps = call.options
        x = call.saved[0].flatten(0, 1)
        centred = x - mean.to(x.dtype).view(-1, *(1,) * (x.dim() - 2))  # first: nothing cancels
        result: Tensor = _positions(centred.mul_(g)) * (variance.double() + eps).rsqrt().to(g.dtype)
        return result


@final
class GroupNormRule(_ChannelNorm):
    """x̂ normalised over each group of channels and all positions of a sample."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.group_norm,)

    def bind(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Call | None:
        return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=(num_groups, eps))

    def products(self, g: Tensor, call: Call) -> Tensor:
        groups, eps = call.options
        return _positions(F.group_norm(call.saved[0].flatten(0, 1), groups, None, None, eps).mul_(g))


@final
class InstanceNormRule(_ChannelNorm):
    """x̂ normalised over the positions of each channel of a sample, on its own statistics."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.instance_norm,)

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
        input: Tensor,  # noqa: A002 - torch's name
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | None:
        del momentum
        statistics = (None, None) if use_input_stats else (running_mean, running_var)
        return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=(*statistics, eps))

    def products(self, g: Tensor, call: Call) -> Tensor:
        mean, variance, eps = call.options
        x = call.saved[0].flatten(0, 1)
        return _positions(F.instance_norm(x, mean, variance, use_input_stats=mean is None, eps=eps) * g)


class _TrailingNorm(_Norm):
    """A norm over the last dimensions, whose γ and β have their shape."""

    free_rows: ClassVar[bool] = True

    @abc.abstractmethod
    def normalised(self, x: Tensor, call: Call) -> Tensor:
        """Return x̂, a new tensor."""

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ_t g x̂ or Σ_t g, shape (n, *normalised shape)."""
        part = g if role == "bias" else self.normalised(call.saved[0], call).mul_(g)
        return sum_of(part.reshape(len(g), -1, *call.options[0]))


@final
class LayerNormRule(_TrailingNorm):
    """x̂ = (x − mean) / √(var + ε) over the last dimensions."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.layer_norm,)

    def bind(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Call | None:
        if input.dim() <= len(normalized_shape):
            return None
        return Call(weights={"weight": weight, "bias": bias}, saved=(input,), options=(tuple(normalized_shape), eps))

    def normalised(self, x: Tensor, call: Call) -> Tensor:
        shape, eps = call.options
        return F.layer_norm(x, shape, None, None, eps)


@final
class RMSNormRule(_TrailingNorm):
    """x̂ = x / √(mean(x²) + ε) over the last dimensions; no β."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.rms_norm,)

    def bind(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Call | None:
        if input.dim() <= len(normalized_shape):
            return None
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        return Call(weights={"weight": weight}, saved=(input,), options=(tuple(normalized_shape), eps))

    def normalised(self, x: Tensor, call: Call) -> Tensor:
        shape, eps = call.options
        return F.rms_norm(x, shape, None, eps).clone()


@final
class FixedNorm(torch.autograd.Function):
    """Calls batch norm on running statistics; its backward is one multiplication: ∂ℓ/∂x = γ / √(σ² + ε) · ∂ℓ/∂y.

    torch's own backward reads x too, for the gradient of γ, and takes some gradients for others; see
    `unlearnkit.models.norm_gradients`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(scale)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
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
    """Call batch norm on running statistics, its weights detached."""

    def run(x: Tensor) -> Tensor:
        return function(x, running_mean, running_var, weight, bias, training, momentum, eps)

    if not input.requires_grad:
        return run(input)
    scale = (running_var + eps).rsqrt()
    scaled: Tensor = FixedNorm.apply(input, scale if weight is None else scale * weight, run)
    return scaled


def _positions(t: Tensor) -> Tensor:
    """Sum over all positions: (rows, C, …) to (rows, C)."""
    return t.flatten(2).sum(2) if t.dim() > 2 else t
