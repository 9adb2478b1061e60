"""Sparse undo log of an edit: the positions and old values of what changed, and nothing else."""

from typing import final

import attrs
import numpy as np
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits

_LARGEST_POSITION = torch.iinfo(torch.int32).max


@final
@attrs.frozen(kw_only=True, eq=False)
class _Entry:
    """The old bits of one tensor at some flat positions; ``positions`` is None when it is all of them."""

    target: Tensor
    positions: Tensor | None
    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.positions is None else self.positions.nbytes)

    def undo(self) -> None:
        if self.positions is None:
            self.target.copy_(self.values)
        else:
            self.target.view(-1).index_copy_(0, self.positions.long(), self.values)


@final
class UndoLog:
    """Overwrites tensors and keeps the old values where, and only where, bits change.

    Example:
        >>> weights, undo_log = torch.tensor([1.0, 2.0, 3.0]), UndoLog()
        >>> undo_log.write(weights, torch.tensor([1.0, 0.0, 3.0]))
        1
        >>> undo_log.undo()
        >>> weights
        tensor([1., 2., 3.])
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    @property
    def nbytes(self) -> int:
        """Memory of the old values and their positions."""
        return sum(entry.nbytes for entry in self._entries)

    def write(self, target: Tensor, new: Tensor, *, positions: Tensor | None = None) -> int:
        """Overwrite a tensor and count what changed; ``positions`` are its `changed_positions`, where known."""
        if positions is None:
            positions = changed_positions(target, new)
        changed = positions.numel()
        if not changed:
            return 0
        old, fresh = bits(target.detach()), bits(new.detach())
        # Logged before it is overwritten, so that an interrupt between the two can be undone.
        small = changed * (4 + old.element_size()) < old.nbytes and old.numel() <= _LARGEST_POSITION
        if small and old.is_contiguous():
            flat = old.view(-1)
            values = flat.index_select(0, positions)
            self._entries.append(_Entry(target=old, positions=positions.int(), values=values))
            flat.index_copy_(0, positions, fresh.reshape(-1).index_select(0, positions))
        else:
            self._entries.append(_Entry(target=old, positions=None, values=old.clone()))
            old.copy_(fresh)
        return changed

    def undo(self) -> None:
        """Put the old bits back, the last first; undoing twice is undoing once."""
        for entry in reversed(self._entries):
            entry.undo()


def changed_positions(before: Tensor, after: Tensor) -> Tensor:
    """Return the flat positions, in row-major order, at which the bits of two tensors differ."""
    one, other = bits(before.detach()), bits(after.detach())
    if one.device.type != "cpu":
        return torch.nonzero((one != other).reshape(-1)).view(-1)
    # numpy compares and searches several times as fast as torch does on a CPU.
    return torch.from_numpy(np.flatnonzero(one.numpy() != other.numpy()))
