"""The arrays of one parameter, as compiled code wants them: side by side, without gaps."""

from typing import Self, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.averaged import Averaged
from unlearnkit.chunks import in_memory_order
from unlearnkit.fused.kernel import Dtypes
from unlearnkit.parameters import wide

_EXACT = 1 << 53  # the largest count of which every smaller one is a float64


@final
@attrs.frozen(kw_only=True, eq=False)
class Arrays:
    """One parameter and its importances, each in one dimension, in the order of the parameter's memory.

    Attributes:
        theta: The weights.
        forget: F_f.
        reference: F_r, or None for zeros.
    """

    theta: Tensor
    forget: Averaged
    reference: Averaged | None

    @classmethod
    def of(cls, theta: Tensor, forget: Averaged, reference: Averaged | None) -> Self | None:
        """Look at a parameter and its importances as flat arrays.

        Args:
            theta: Of any device and strides.
            forget: F_f.
            reference: F_r, or None for zeros.

        Returns:
            Views; None when there are no such views in this computer's memory.
        """
        means = (forget,) if reference is None else (forget, reference)
        if not theta.numel() or not all(map(_ordinary, (theta, *(mean.total for mean in means)))):
            return None
        found = in_memory_order(theta.detach(), *(mean.total for mean in means))
        if not all(t.is_contiguous() for t in found) or any((mean.count or 0) > _EXACT for mean in means):
            return None
        weights, first, *second = (t.view(-1) for t in found)
        return cls(
            theta=weights,
            forget=Averaged(total=first, count=forget.count),
            reference=None if reference is None else Averaged(total=second[0], count=reference.count),
        )

    @property
    def dtypes(self) -> Dtypes:
        """What a kernel for them is compiled for."""
        reference = None if self.reference is None else self.reference.total.dtype
        return Dtypes(weight=self.theta.dtype, forget=self.forget.total.dtype, reference=reference)

    @property
    def computing(self) -> torch.dtype:
        """The dtype that the rule computes in."""
        second = self.forget if self.reference is None else self.reference
        totals = torch.promote_types(self.forget.total.dtype, second.total.dtype)
        return torch.promote_types(wide(self.theta.dtype), totals)

    def head(self, length: int) -> "Arrays":
        """Return the first elements.

        Args:
            length: How many.

        Returns:
            Copies of the weights, views of the importances.
        """
        forget, reference = self.forget, self.reference
        return Arrays(
            theta=self.theta[:length].clone(),
            forget=Averaged(total=forget.total[:length], count=forget.count),
            reference=None if reference is None else Averaged(total=reference.total[:length], count=reference.count),
        )


def _ordinary(t: Tensor) -> bool:
    return type(t) in {Tensor, nn.Parameter} and t.device.type == "cpu" and t.layout == torch.strided
