"""Lower precision, of losses and of products, said where it counts: in the fingerprint of what is measured with it."""

from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import ConfigurationError

_IEEE = "ieee"


@final
@attrs.frozen(kw_only=True)
class Autocast(Objective):
    """Another objective, whose forward pass torch's autocast runs in bfloat16 where it thinks that safe.

    Weights keep their dtype, and the backward pass, the squares and the totals are outside of it: gradients carry the
    rounding of bfloat16 (about three digits), totals are added in float32 or more. The objective, and with it this
    precision, is part of an importance's fingerprint, so that importances of two precisions cannot meet.

    Attributes:
        objective: What is computed.

    Example:
        >>> batch = (torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> Autocast().losses(nn.Identity(), batch)
        tensor([0.6931])
        >>> Autocast().describe()
        "Autocast(objective=CrossEntropy(inputs=0, targets=-1, output='auto'))"
    """

    objective: Objective = attrs.field(factory=CrossEntropy)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the losses in float32; see `Objective.losses`."""
        with _autocast(model):
            return self.objective.losses(model, batch).float()

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits in float32, for estimators that draw labels from them; see `CrossEntropy.logits`.

        Args:
            model: As for `losses`.
            batch: As for `losses`.

        Returns:
            What the inner objective returns.

        Raises:
            ConfigurationError: The inner objective has no logits.
        """
        find = getattr(self.objective, "logits", None)
        if find is None:
            raise ConfigurationError(
                f"expected an objective with a method logits(model, batch), as CrossEntropy has, saw {self.describe()}"
            )
        with _autocast(model):
            found: Tensor = find(model, batch)
            return found.float()


def _autocast(model: nn.Module) -> torch.autocast:
    # Without the cache: a weight that was cast once would be one tensor for several calls of a layer.
    return torch.autocast(device_of(model).type, torch.bfloat16, cache_enabled=False)


def float32_products(device: torch.device) -> str:
    """Say in which precision torch multiplies float32 on a device, which its switches decide.

    Example:
        >>> float32_products(torch.device("cpu"))
        ''
    """
    backends: Any = torch.backends  # its switches are made when it is imported, unseen by type checkers
    cuda = device.type == "cuda"
    products, convolutions = (
        (backends.cuda.matmul, backends.cudnn.conv) if cuda else (backends.mkldnn.matmul, backends.mkldnn.conv)
    )
    names = [_exact(switch.fp32_precision) for switch in (products, convolutions)]
    if not cuda and set(names) == {_IEEE}:
        return ""
    return f"products {names[0]}, convolutions {names[1]}"


def _exact(name: str) -> str:
    return _IEEE if name == "none" else name  # nobody asked for anything else
