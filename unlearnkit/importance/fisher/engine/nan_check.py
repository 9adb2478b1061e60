"""Finds the first batch whose gradients hold a NaN or an infinity, without looking at every weight every time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, final

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from unlearnkit.utils.errors import NonFiniteError

_SMALL = 1 << 16  # elements of the totals that are looked at after every batch: biases and norms
_TINY = 1 << 12  # elements of buffers that are copied side by side: hundreds of sums take longer
_EVERY = 16  # batches between two looks at all totals


class Running(Protocol):
    """Anything that adds up squares."""

    def running(self, *, largest: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield parameter names and buffers; see `Totals.running`."""
        ...

    def result(self) -> dict[str, Tensor]:
        """Return the totals so far."""
        ...


@final
class Watch:
    """Looks at running totals: NaN and infinity never leave a sum of squares, so a late look still finds them.

    On a CUDA device nothing waits: the looks are collected and read at the end.
    """

    def __init__(self, totals: Running) -> None:
        self._totals = totals
        self._batches = 0
        self._clean = 0
        self._flags: list[tuple[int, Tensor]] = []

    def look(self, *, whole: bool = False) -> None:
        """Look after one batch, or within it."""
        index = self._batches
        whole = whole or index % _EVERY == 0
        buffers = [buffer for _, buffer in self._totals.running(largest=None if whole else _SMALL)]
        if not buffers:
            return
        # A sum is finite when all its terms are, unless it overflows itself, which `end` then finds out.
        late = on_device(buffers[0])
        fine = torch.isfinite(sum_at_once(buffers) if late else sum_in_turn(buffers))
        if late:
            self._flags.append((index, fine))
        elif not bool(fine):
            self._raise(self._totals.result(), index)
        if whole:
            self._clean = index + 1

    def next(self) -> None:
        """Go on to the next batch."""
        self._batches += 1

    def end(self, totals: Mapping[str, Tensor]) -> None:
        """Look at everything, once."""
        first = next((index for index, fine in self._flags if not bool(fine)), None)
        if first is not None or not all(bool(torch.isfinite(t.sum())) for t in totals.values()):
            self._raise(totals, first)

    def _raise(self, totals: Mapping[str, Tensor], index: int | None) -> None:
        names = [name for name, t in totals.items() if not bool(torch.isfinite(t).all())]
        if not names:
            return
        where = (
            f"in batch {index}" if index is not None else f"in one of the batches {self._clean} to {self._batches - 1}"
        )
        raise NonFiniteError(
            f"expected finite gradients, saw NaN or infinity {where} (counted from 0) in the squares for "
            f"{', '.join(names)}: look at that batch's inputs and losses; squares overflow above 1e19 in float32"
        )


def on_device(tensor: Tensor) -> bool:
    """Say whether the host would have to wait for the value of a tensor."""
    return tensor.is_cuda


def sum_in_turn(buffers: Sequence[Tensor]) -> Tensor:
    """Add all elements up, buffer by buffer and the tiny ones side by side: fastest on a CPU."""
    tiny = [buffer.reshape(-1) for buffer in buffers if buffer.numel() <= _TINY]
    sums = [buffer.sum() for buffer in buffers if buffer.numel() > _TINY]
    sums += [torch.cat(tiny).sum()] if tiny else []
    return torch.stack([each.double() for each in sums]).sum()


def sum_at_once(buffers: Sequence[Tensor]) -> Tensor:
    """Add the absolute values of all elements up, in a few operations for all buffers: fastest on a device."""
    return get_total_norm(buffers, 1.0, foreach=True)
