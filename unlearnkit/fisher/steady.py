"""Keeps a mistake of torch out of gradients: what instance norm gives back for a gradient that is not in order.

torch 2.14.1 takes the strides of the output's gradient for those of the input, on the CPU, when the two together look
channels-last: for one sample, say, whose gradient comes out of a permutation. The gradient of the input is then wrong.
"""

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode


def in_order(function: Callable[..., Any], y: Any) -> None:
    """Have a result's gradient brought in order before torch goes back through the function that made it.

    Args:
        function: Any; nothing is done for others than `instance_norm`.
        y: What it returned.
    """
    if function is F.instance_norm and isinstance(y, Tensor) and y.requires_grad:
        y.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]


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


def needs_order(model: nn.Module) -> bool:
    """Say whether a model has layers that `Steady` is for.

    Args:
        model: Any.

    Returns:
        True for an instance norm of any dimension, as a module.
    """
    kind = nn.modules.instancenorm._InstanceNorm  # noqa: SLF001 - the only common parent of the three
    return any(isinstance(module, kind) for module in model.modules())
