"""What an edit did to one tensor."""

from collections.abc import Iterator
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.utils.chunks import chunk_size, chunks
from unlearnkit.utils.errors import MismatchError


@final
@attrs.frozen(kw_only=True, eq=False)
class TensorPatch:
    """What an edit did to one tensor, whose elements are numbered in row-major order.

    Attributes:
        index: Elements that were multiplied: int64, rising, shape (n,).
        factor: By what: float64, shape (n,). The product, rounded to the tensor's dtype, is the new value to the bit.
        value_index: Elements that no factor takes to their new value (as 0 that became 7): int64, shape (m,).
        value: Their new values, shape (m,), of the tensor's dtype.
        old: The old values of ``index`` and then of ``value_index``, shape (n + m,), or None.
    """

    index: Tensor
    factor: Tensor
    value_index: Tensor
    value: Tensor
    old: Tensor | None = None

    @classmethod
    def between(cls, before: Tensor, after: Tensor, *, keep_old: bool) -> "TensorPatch":
        """Describe what turns one tensor into another.

        Args:
            before: Any dtype.
            after: The same shape and dtype.
            keep_old: Whether to keep the old values.

        Returns:
            The patch; empty when the two are bit-identical.
        """
        was, now = before.detach().cpu().reshape(-1), after.detach().cpu().reshape(-1)
        where = _differing(was, now)
        was, now = was[where], now[where]
        factor = now.double() / was.double() if was.is_floating_point() else torch.full(was.shape, torch.nan).double()
        exact = bits((was.double() * factor).to(was.dtype)) == bits(now)
        old = torch.cat([was[exact], was[~exact]]) if keep_old else None
        return cls(index=where[exact], factor=factor[exact], value_index=where[~exact], value=now[~exact], old=old)

    @staticmethod
    def bytes_each(size: int) -> int:
        """Return how much room a changed element takes in a patch with old values.

        Args:
            size: Of the element itself, in bytes.

        Returns:
            Bytes: of its place, its factor and its old value.
        """
        return 8 + 8 + size

    @property
    def changed(self) -> int:
        """How many elements it changes."""
        return len(self.index) + len(self.value_index)

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the edited tensor.

        Args:
            tensor: The tensor before the edit.

        Returns:
            A new tensor, contiguous, on the CPU.
        """
        flat = tensor.detach().cpu().reshape(-1).clone()
        flat[self.index] = (flat[self.index].double() * self.factor).to(flat.dtype)
        flat[self.value_index] = self.value
        return flat.reshape(tensor.shape)

    def revert(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it was before the edit.

        Args:
            tensor: The edited tensor.

        Returns:
            A new tensor, contiguous, on the CPU.

        Raises:
            MismatchError: The old values were not kept.
        """
        earlier = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        self.undo(earlier)
        return earlier

    def undo(self, tensor: Tensor) -> None:
        """Put the old values into a tensor.

        Args:
            tensor: The edited tensor, changed in place.

        Raises:
            MismatchError: The old values were not kept.
        """
        if self.old is None:
            raise MismatchError("expected a patch with old values, saw one without: it can be applied, not reverted")
        target = tensor.detach()
        flat = target.reshape(-1)  # a view, but of a tensor with gaps
        flat[torch.cat([self.index, self.value_index]).to(flat.device)] = self.old.to(flat.device)
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))

    def problems(self, name: str, tensor: Tensor | None) -> Iterator[str]:
        """Say what does not fit a tensor.

        Args:
            name: For messages.
            tensor: The tensor, or None when there is none.

        Yields:
            One sentence per problem.
        """
        if tensor is None:
            yield f"{name}: in the patch, but not in the model"
            return
        for part, index in (("index", self.index), ("value_index", self.value_index)):
            if len(index) and not (int(index[0]) >= 0 and int(index[-1]) < tensor.numel()):
                seen = f"{int(index[0])} … {int(index[-1])}"
                yield f"{name}: expected {part} between 0 and {tensor.numel() - 1}, saw {seen}"
        kept = [self.value, *([self.old] if self.old is not None else [])]
        if any(len(t) and t.dtype != tensor.dtype for t in kept):
            yield f"{name}: expected values of {tensor.dtype}, saw {self.value.dtype}"

    def malformed(self, name: str) -> Iterator[str]:
        """Say what cannot be right in any patch.

        Args:
            name: For messages.

        Yields:
            One sentence per problem.
        """
        for part, index in (("index", self.index), ("value_index", self.value_index)):
            if index.dtype != torch.int64 or index.ndim != 1 or bool((index.diff() <= 0).any()):
                yield f"{name}: expected {part} as rising int64 numbers, saw {index.dtype} {tuple(index.shape)}"
        if self.factor.dtype != torch.float64 or self.factor.shape != self.index.shape:
            yield f"{name}: expected one float64 factor per index, saw {self.factor.dtype} {tuple(self.factor.shape)}"
        if self.value.shape != self.value_index.shape or (self.old is not None and self.old.shape != (self.changed,)):
            yield f"{name}: expected one value per index"


def _differing(was: Tensor, now: Tensor) -> Tensor:
    """Return the places at which two flat tensors differ; in pieces, so that nothing of their size is made."""
    found, start = [], 0
    for one, other in chunks(was, now, limit=chunk_size(was.device)):
        found.append((bits(one) != bits(other)).nonzero().reshape(-1) + start)
        start += len(one)
    return torch.cat(found)
