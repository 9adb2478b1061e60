"""The importance of one parameter as a method sees it: a mean, divided only piece by piece."""

from typing import final

import attrs
import torch
from torch import Tensor


@final
@attrs.frozen(kw_only=True, eq=False)
class Averaged:
    """The importance of one parameter, divided only piece by piece."""

    total: Tensor
    count: int | None = None

    def piece(self, part: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the mean of a part of the total, as a tensor that nobody else holds."""
        mean = part if self.count is None else part / self.count
        return mean.to(device, dtype, copy=mean is part)


@final
@attrs.frozen(eq=False)
class RuleOperands:
    """A parameter and its importances."""

    theta: Tensor
    forget: Averaged
    reference: Averaged | None
