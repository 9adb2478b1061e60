"""Losses in lower precision, said where it counts: in the fingerprint of what is measured with them."""

from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.objective import CrossEntropy, Objective
from unlearnkit.parameters import device_of


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
        # Without the cache: a weight that was cast once would be one tensor for several calls of a layer.
        with torch.autocast(device_of(model).type, torch.bfloat16, cache_enabled=False):
            return self.objective.losses(model, batch).float()
