"""One way to add what a layer's per-sample gradients come to, and the buffers that it adds to."""

from collections.abc import Callable
from typing import final

import attrs
import torch
from torch import Tensor

Finish = Callable[[Tensor], Tensor]


@final
@attrs.frozen(kw_only=True, eq=False)
class Into:
    """The buffers that per-sample gradients are added to: all of one shape, in whatever layout a kernel likes.

    Example:
        >>> import torch
        >>> into = Into(squares=torch.zeros(2), signed=torch.zeros(2))
        >>> into.add(torch.tensor([[1.0, 2.0], [-3.0, 0.0]]))
        >>> into.squares.tolist(), into.signed.tolist()
        ([10.0, 4.0], [-2.0, 2.0])
    """

    squares: Tensor
    absolute: Tensor | None = None
    signed: Tensor | None = None

    def __getitem__(self, part: int | slice) -> "Into":
        """Return a part of each buffer, along dimension 0; views."""
        return self._each(lambda buffer: buffer[part])

    def view(self, shape: tuple[int, ...]) -> "Into":
        """Return the buffers in another shape; views."""
        return self._each(lambda buffer: buffer.view(shape))

    def _each(self, turn: Callable[[Tensor], Tensor]) -> "Into":
        absolute, signed = (None if buffer is None else turn(buffer) for buffer in (self.absolute, self.signed))
        return Into(squares=turn(self.squares), absolute=absolute, signed=signed)

    def add(self, several: Tensor, *, spoil: bool = False) -> None:
        """Add gradients of several samples."""
        if self.signed is not None:
            self.signed.add_(several.sum(0))
        if self.absolute is not None:
            self.absolute.add_(several.abs().sum(0))
        if several.is_cuda:
            self.squares.add_(squares_in_one_pass(several))
        else:
            self.squares.add_((several.square_() if spoil else several.square()).sum(0))

    def add_one(self, one: Tensor) -> None:
        """Add the gradient of one sample, which is cheaper than `add` where it is large."""
        self.squares.addcmul_(one, one)
        if self.absolute is not None:
            self.absolute.add_(one.abs())
        if self.signed is not None:
            self.signed.add_(one)


def squares_in_one_pass(several: Tensor) -> Tensor:
    """Return Σ_n g_n²: a device reads once what it would read twice and write once to square it first."""
    roots: Tensor = torch.linalg.vector_norm(several, dim=0)
    return roots.square_()


@final
@attrs.frozen(kw_only=True, eq=False)
class Kernel:
    """One way to add up a layer's per-sample gradients."""

    name: str
    shape: tuple[int, ...]
    run: Callable[[Into], None]
    finish: Finish = lambda buffer: buffer
    squares_only: bool = False
