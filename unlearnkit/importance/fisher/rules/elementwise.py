"""Parameters added to, subtracted from, multiplied with or divided into data: position embeddings, layer scales."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.rule import Call, Rule


class _Broadcast(Rule):
    """y = x ∘ θ with broadcasting: ∂ℓ_n/∂θ is the sum of g_n · ∂y/∂θ over the positions that share an element of θ."""

    free_rows: ClassVar[bool] = True
    saves_data: ClassVar[bool] = True
    """Whether ∂y/∂θ depends on x."""

    @abc.abstractmethod
    def slope(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return g · ∂y/∂θ, position by position; the role says on which side θ stands."""

    @final
    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """Take two tensors; scalars and options such as ``alpha`` are not covered."""
        if kwargs or len(args) != 2 or not all(isinstance(a, Tensor) for a in args):
            return None
        theta = _theta(args)
        if theta is None:
            return None
        return Call(
            weights={("left", "right")[theta]: args[theta]}, saved=(args[1 - theta],) if self.saves_data else ()
        )

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        theta = call.weights[role]
        assert theta is not None, "a role with a gradient has a weight"
        # g has one dimension more than y: (n, k, …) for y of (n·k, …), or as many for y of (k, n, …); θ is aligned at
        # the right.
        own = tuple(theta.shape)
        while len(own) >= g.dim() and own[0] == 1:
            own = own[1:]
        shape = (1,) * (g.dim() - 1 - len(own)) + own
        if len(shape) != g.dim() - 1 or shape[0] != 1:
            raise RuntimeError(f"expected a parameter that every sample shares, saw shape {tuple(theta.shape)}")
        found: Tensor = self.slope(role, g, call).sum_to_size(len(g), *shape)
        return found


@final
class AddRule(_Broadcast):
    """y = x + θ: the slope is 1."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.add, Tensor.add, Tensor.add_, Tensor.__radd__)
    saves_data: ClassVar[bool] = False

    def slope(self, role: str, g: Tensor, call: Call) -> Tensor:
        del role, call
        return g


@final
class SubtractRule(_Broadcast):
    """y = x − θ: the slope is −1; θ − x: it is 1."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.sub, Tensor.sub, Tensor.sub_)
    saves_data: ClassVar[bool] = False

    def slope(self, role: str, g: Tensor, call: Call) -> Tensor:
        del call
        return g if role == "left" else -g


@final
class MultiplyRule(_Broadcast):
    """y = x · θ: the slope is x."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.mul, Tensor.mul, Tensor.mul_, Tensor.__rmul__)

    def slope(self, role: str, g: Tensor, call: Call) -> Tensor:
        del role
        return g * call.saved[0]


@final
class DivideRule(_Broadcast):
    """y = x / θ: the slope is −x / θ²; y = θ / x: it is 1 / x. Rounding divisions are not covered."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.div,
        torch.true_divide,
        Tensor.div,
        Tensor.div_,
        Tensor.true_divide,
        Tensor.__truediv__,
    )

    def slope(self, role: str, g: Tensor, call: Call) -> Tensor:
        theta = call.weights[role]
        assert theta is not None, "a role with a gradient has a weight"
        if role == "left":
            return g / call.saved[0]
        return g * call.saved[0] / theta.detach().to(g.dtype).square().neg()


@final
class PReLURule(Rule):
    """y = max(x, 0) + a · min(x, 0), with one a for all channels or one for each: dimension 1 of x."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.prelu, Tensor.prelu)

    def bind(self, input: Tensor, weight: Tensor) -> Call:  # noqa: A002 - torch's name
        return Call(weights={"weight": weight}, saved=(input,))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ g min(x, 0), shape (n, C) or (n, 1)."""
        slope = g * call.saved[0].clamp(max=0)
        theta = call.weights[role]
        assert theta is not None, "a role with a gradient has a weight"
        if theta.numel() == 1 or slope.dim() < 3:
            return slope.flatten(1).sum(1, keepdim=True)
        return slope.flatten(3).sum((1, 3)) if slope.dim() > 3 else slope.sum(1)


def _theta(args: tuple[Any, ...]) -> int | None:
    """Find the argument that every sample shares: the one that broadcasts against the other."""
    left, right = args
    if left.dim() == 0 or right.dim() == 0:
        return 0 if left.dim() == 0 else 1
    if left.dim() != right.dim():
        return 0 if left.dim() < right.dim() else 1
    if (left.shape[0] == 1) == (right.shape[0] == 1):
        return None
    return 0 if left.shape[0] == 1 else 1
