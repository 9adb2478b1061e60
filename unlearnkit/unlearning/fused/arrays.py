"""The arrays of one parameter, as compiled code wants them: side by side, without gaps."""

import functools
from typing import Self, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.models.parameters import wide
from unlearnkit.unlearning.fused.kernel import Dtypes
from unlearnkit.unlearning.operands import Averaged, RuleOperands
from unlearnkit.utils.chunks import in_memory_order

_EXACT = 1 << 53  # the largest count of which every smaller one is a float64


@final
@attrs.frozen(eq=False)
class Arrays:
    """One parameter and its importances, each contiguous, in the order of the parameter's memory."""

    tensors: tuple[Tensor, ...]
    counts: tuple[int | None, ...]
    dtypes: Dtypes

    @classmethod
    def of(cls, trio: RuleOperands) -> Self | None:
        """Look at a parameter and its importances as flat arrays."""
        means = (trio.forget,) if trio.reference is None else (trio.forget, trio.reference)
        tensors = (trio.theta, *(mean.total for mean in means))
        counts = tuple(mean.count for mean in means)
        if not trio.theta.numel() or not _ordinary(tensors) or not _exact(counts):
            return None
        if not all(map(Tensor.is_contiguous, tensors)):
            tensors = in_memory_order(*tensors)
            if not all(map(Tensor.is_contiguous, tensors)):
                return None
        dtypes = _dtypes(tuple(t.dtype for t in tensors))
        return None if dtypes is None else cls(tensors, counts, dtypes)

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """The tensors in one dimension."""
        return tuple(t.detach().view(-1) for t in self.tensors)

    @property
    def computing(self) -> torch.dtype:
        """The dtype that the rule computes in."""
        dtype = wide(self.dtypes.weight)
        for t in self.tensors[1:]:
            dtype = torch.promote_types(dtype, t.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    @property
    def divisors(self) -> tuple[float, float]:
        """What F_f and F_r are divided by."""
        first, *second = (1.0 if n is None else float(n) for n in self.counts)
        return first, second[0] if second else 1.0

    @property
    def row(self) -> tuple[int, int, int, float, float, int]:
        """Addresses, divisors and length, for compiled code."""
        theta, forget, *second = (t.data_ptr() for t in self.tensors)
        return theta, forget, second[0] if second else 0, *self.divisors, self.tensors[0].numel()

    def head(self, length: int) -> RuleOperands:
        """Return the first elements."""
        theta, *totals = (t[:length] for t in self.flat)
        means = [Averaged(total=total, count=count) for total, count in zip(totals, self.counts, strict=True)]
        return RuleOperands(theta.clone(), means[0], means[1] if len(means) > 1 else None)


# What is asked for every parameter again is worked out once.
@functools.lru_cache(maxsize=64)
def _exact(counts: tuple[int | None, ...]) -> bool:
    return all(n is None or n <= _EXACT for n in counts)


@functools.cache
def _dtypes(dtypes: tuple[torch.dtype, ...]) -> Dtypes | None:
    found = Dtypes(*dtypes)
    return found if found.supported() else None


def _ordinary(tensors: tuple[Tensor, ...]) -> bool:
    device = tensors[0].device
    return device.type in {"cpu", "cuda"} and all(
        (type(t) is Tensor or type(t) is nn.Parameter) and t.device == device and t.layout is torch.strided
        for t in tensors
    )
