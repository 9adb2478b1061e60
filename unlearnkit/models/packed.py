"""Old values, packed: a bit for each weight that says whether it changed, and the values of those that did."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, final

import attrs
import numpy as np
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.utils.spare import LINE, Memory

Outcomes = np.ndarray[Any, np.dtype[np.int64]]
"""A row for each piece: where its old values are, how many there are, and whether torch must do it."""


class Target(Protocol):
    """What holds a tensor."""

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """Tensors, the first of which is overwritten, in one dimension and without gaps."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Packed:
    """Pieces of tensors that compiled code overwrites, remembered by it as it goes."""

    targets: Sequence[Target]
    first: np.ndarray[Any, np.dtype[np.int64]]
    each: int
    outcomes: Outcomes
    span: tuple[int, int]
    memory: Memory

    @property
    def nbytes(self) -> int:
        """How much memory it takes; nothing when nothing changed."""
        pieces = ((mask_bytes(target.numel()), kept * target.element_size()) for target, _, kept in self._pieces())
        return sum(masks + values for masks, values in pieces)

    def undo(self) -> None:
        """Put the old bits back; a second time changes nothing."""
        for target, at, kept in self._pieces():
            self._restore(bits(target), at, kept)

    def undo_target(self, number: int) -> None:
        """Put the old bits of one tensor back, and forget them."""
        start, stop = self._range(number)
        for target, at, kept in self._pieces(start, stop):
            self._restore(bits(target), at, kept)
        self.outcomes[start:stop, 1] = 0

    def _range(self, number: int) -> tuple[int, int]:
        end = self.first[number + 1] if number + 1 < len(self.first) else len(self.outcomes)
        return max(int(self.first[number]), self.span[0]), min(int(end), self.span[1])

    def _pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, int, int]]:
        """Yield those that changed: a view of the tensor, where its old values are, how many."""
        start, stop = max(start, self.span[0]), self.span[1] if stop is None else stop
        for place in start + np.flatnonzero(self.outcomes[start:stop, 1]):
            number = int(np.searchsorted(self.first, place, side="right")) - 1
            begin = int(place - self.first[number]) * self.each
            at, kept, _ = self.outcomes[place].tolist()
            yield self.targets[number].flat[0][begin : begin + self.each], at, kept

    def _restore(self, target: Tensor, at: int, kept: int) -> None:
        length, size = target.numel(), target.element_size()
        memory = self.memory.array[at:]
        middle = mask_bytes(length)
        places = np.flatnonzero(np.unpackbits(memory[:middle], count=length, bitorder="little"))
        target[torch.from_numpy(places)] = torch.from_numpy(memory[middle : middle + kept * size].view(f"i{size}"))


def mask_bytes(length: int) -> int:
    """Return the size of the bits for so many places, up to whole lines of the cache."""
    return -(-length // (8 * LINE)) * LINE
