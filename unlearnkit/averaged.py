"""The importance of one parameter as a method sees it: a mean, divided only piece by piece."""

from typing import final

import attrs
import torch
from torch import Tensor


@final
@attrs.frozen(kw_only=True, eq=False)
class Averaged:
    """The importance of one parameter, divided only piece by piece.

    Attributes:
        total: F times ``count``.
        count: How many terms the total has; None leaves it undivided.
    """

    total: Tensor
    count: int | None = None

    def piece(self, part: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the mean of a part of the total, as a tensor that nobody else holds.

        Args:
            part: A view of ``total``.
            device: Where it is needed.
            dtype: In which dtype.

        Returns:
            A new tensor, the same bits as a part of `Importance.mean`.
        """
        mean = part if self.count is None else part / self.count
        return mean.to(device, dtype, copy=mean is part)


@final
@attrs.frozen(eq=False)
class Trio:
    """A parameter and its importances.

    Attributes:
        theta: The weights, on any device, of any strides.
        forget: F_f, of their shape.
        reference: F_r, likewise, or None for zeros.
    """

    theta: Tensor
    forget: Averaged
    reference: Averaged | None
