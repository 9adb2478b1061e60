"""Which rows of a layer's output belong to which sample: recognised from evidence, never guessed."""

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

    Attributes:
        order: ``MAJOR``: n·k rows, those of one sample side by side (k = 1: dimension 0 is the batch; k > 1: folded
            windows or frames). ``MINOR``: k·n rows, the sample running fastest (flattened time-major rows).
            ``SECOND``: dimension 1 is the batch (time-major).
        rows: k, the rows of dimension 0 that one sample has; for ``SECOND`` the length of dimension 0.

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
        """Return the leading sizes that a tensor of so many samples must have.

        Args:
            samples: n.

        Returns:
            (n·k,), or (k, n) for ``SECOND``.
        """
        return (self.rows, samples) if self.order is Order.SECOND else (self.rows * samples,)

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        """View a tensor sample by sample.

        Args:
            tensor: Its leading sizes are `length`.
            samples: n.

        Returns:
            Shape (n, k, …), a view.
        """
        if self.order is Order.SECOND:
            return tensor.transpose(0, 1)
        if self.order is Order.MINOR:
            return tensor.view(self.rows, samples, *tensor.shape[1:]).transpose(0, 1)
        return tensor.view(samples, self.rows, *tensor.shape[1:])

    def agrees(self, touched: Sequence[Tensor]) -> bool:
        """Say whether no sample's loss reaches another sample's rows.

        Args:
            touched: For each sample a mask over the leading one or two dimensions: where the gradient of that
                sample's loss alone is not zero.

        Returns:
            True when the masks do not contradict this layout.
        """
        for sample, mask in enumerate(touched):
            mine = self.samples_first(mask, len(touched))
            if int(mine.count_nonzero()) != int(mine[sample].count_nonzero()):
                return False
        return True


def recognise(shape: Sequence[int], touched: Sequence[Tensor], *, free_rows: bool) -> Layout | None:
    """Find the layout of a layer's output from which rows each sample's loss touches.

    Args:
        shape: The shape of the output for ``len(touched)`` samples.
        touched: See `Layout.agrees`.
        free_rows: Whether the layer treats every leading index alike, so that dimension 1 may be the batch.

    Returns:
        The layout, or None when none agrees, or more than one does: where few rows were touched, several may.

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
    """Say which leading indices a gradient touches.

    Args:
        gradient: Shape (a, b, …) or (a,).

    Returns:
        A mask of shape (a, b), or (a,).
    """
    return (gradient != 0).flatten(2).any(2) if gradient.dim() > 2 else gradient != 0
