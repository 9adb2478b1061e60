"""Which rows of a layer's output belong to which sample: recognised from inputs, never guessed."""

import enum
from collections.abc import Sequence
from typing import final

import attrs
from torch import Tensor


@final
class Order(enum.Enum):
    """Where the samples stand: rows of a sample side by side, every n-th row, or along dimension 1."""

    MAJOR = "major"
    MINOR = "minor"
    SECOND = "second"


@final
@attrs.frozen(kw_only=True)
class Layout:
    """How dimension 0 (or 1) of a tensor is made of samples.

    Example:
        >>> import torch
        >>> layout = Layout(order=Order.MINOR, rows=2)
        >>> layout.samples_first(torch.tensor([[0], [1], [10], [11]]), 2)[1]
        tensor([[ 1],
                [11]])
    """

    order: Order
    rows: int

    def length(self, samples: int) -> tuple[int, ...]:
        """Return the leading sizes that a tensor of so many samples must have."""
        return (self.rows, samples) if self.order is Order.SECOND else (self.rows * samples,)

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        """View a tensor sample by sample."""
        if self.order is Order.SECOND:
            return tensor.transpose(0, 1)
        if self.order is Order.MINOR:
            return tensor.view(self.rows, samples, *tensor.shape[1:]).transpose(0, 1)
        return tensor.view(samples, self.rows, *tensor.shape[1:])

    def agrees(self, touched: Sequence[Tensor]) -> bool:
        """Say whether no sample's loss reaches another sample's rows."""
        for sample, mask in enumerate(touched):
            mine = self.samples_first(mask, len(touched))
            if int(mine.count_nonzero()) != int(mine[sample].count_nonzero()):
                return False
        return True


def recognise(shape: Sequence[int], touched: Sequence[Tensor], *, free_rows: bool) -> Layout | None:
    """Find the layout of a layer's output from which rows each sample's loss touches.

    Example:
        >>> import torch
        >>> mine = [torch.tensor([True, False, True, False]), torch.tensor([False, True, False, True])]
        >>> recognise((4, 5), mine, free_rows=True)
        Layout(order=<Order.MINOR: 'minor'>, rows=2)
    """
    samples, possible = len(touched), []
    if shape and shape[0] % samples == 0:
        possible.append(Layout(order=Order.MAJOR, rows=shape[0] // samples))
    if free_rows and len(shape) > 2 and shape[1] == samples:
        possible.append(Layout(order=Order.SECOND, rows=shape[0]))
    if shape and shape[0] % samples == 0 and shape[0] > samples:
        possible.append(Layout(order=Order.MINOR, rows=shape[0] // samples))
    agreeing = [layout for layout in possible if layout.agrees(touched)]
    return agreeing[0] if len(agreeing) == 1 else None


def touched_rows(gradient: Tensor) -> Tensor:
    """Say which leading indices a gradient touches."""
    return (gradient != 0).flatten(2).any(2) if gradient.dim() > 2 else gradient != 0
