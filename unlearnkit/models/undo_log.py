"""What an edit overwrote: enough to undo it, and no more."""

from typing import Protocol, final

import attrs
import numpy as np
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.utils.chunks import in_memory_order


class Entry(Protocol):
    """What was overwritten in one place."""

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""

    def undo(self) -> None:
        """Put the old bits back; a second time changes nothing."""


@final
@attrs.frozen(kw_only=True, eq=False)
class _Places:
    """Some places of one tensor and the bits that they had; ``places`` is None when it is all of them."""

    target: Tensor
    places: Tensor | None
    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.places is None else self.places.nbytes)

    def undo(self) -> None:
        if self.places is None:
            self.target.copy_(self.values)
        else:
            self.target.view(-1)[self.places.long()] = self.values


@final
class UndoLog:
    """Writes new values into tensors and remembers the old ones where, and only where, their bits change.

    Example:
        >>> weights, journal = torch.tensor([1.0, 2.0, 3.0]), UndoLog()
        >>> journal.write(weights, torch.tensor([1.0, 0.0, 3.0]))
        1
        >>> journal.undo()
        >>> weights
        tensor([1., 2., 3.])
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    @property
    def nbytes(self) -> int:
        """How much memory the old values and their places take."""
        return sum(entry.nbytes for entry in self._entries)

    def add(self, entry: Entry) -> None:
        """Remember what somebody else is about to overwrite."""
        self._entries.append(entry)

    def write(self, target: Tensor, new: Tensor) -> int:
        """Overwrite a tensor."""
        old, fresh = (bits(t) for t in in_memory_order(target.detach(), new.detach()))
        places = _differing(old, fresh)
        changed = places.numel()
        if not changed:
            return 0
        # Remembered before it is overwritten, so that an interrupt between the two can be undone.
        if old.is_contiguous() and changed * (4 + old.element_size()) < old.nbytes:
            kept = _Places(target=old, places=places.to(torch.int32), values=old.view(-1)[places])
        else:
            kept = _Places(target=old, places=None, values=old.clone())
        self._entries.append(kept)
        old.copy_(fresh)
        return changed

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def undo(self, *, since: int = 0) -> None:
        """Put the old bits back, the last first. Undoing twice is undoing once."""
        for entry in reversed(self._entries[since:]):
            entry.undo()


def _differing(one: Tensor, other: Tensor) -> Tensor:
    """Return the flat places, in row-major order, at which two integer tensors differ."""
    if one.device.type != "cpu":
        return torch.nonzero((one != other).reshape(-1)).view(-1)
    # numpy compares and searches several times as fast as torch does on a CPU.
    return torch.from_numpy(np.flatnonzero(one.numpy() != other.numpy()))
