"""Runs translated rules on a device: what `unlearnkit.unlearning.fused.kernel` is for the processor."""

import functools
import os
from typing import Any, Self, final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.unlearning.fused.device_source import BLOCK, load_source, source
from unlearnkit.unlearning.fused.kernel import Dtypes
from unlearnkit.unlearning.fused.trace import Program
from unlearnkit.utils.errors import ConfigurationError

UNIT = 16
"""Lengths of so many weights can be read 16 bytes at a time: the kernel is told that a length is a multiple."""
# A product and a sum rounded once would be other bits than torch's.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def on_device(device: torch.device) -> bool:
    """Say whether tensors of a device are edited by Triton, and not by C++."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@final
@attrs.frozen(kw_only=True, eq=False)
class Scratch:
    """Memory on a device for what is overwritten: of each block of `BLOCK` weights what changed, and the old values."""

    masks: Tensor
    places: Tensor
    counts: Tensor
    values: Tensor

    @classmethod
    def of(cls, theta: Tensor, *, weights: int, blocks: int) -> Self:
        """Make room."""
        small = functools.partial(torch.empty, dtype=torch.int32, device=theta.device)
        return cls(
            masks=small(blocks * BLOCK // 32),
            places=small(blocks),
            counts=small(blocks).zero_(),
            values=torch.empty(weights, dtype=theta.dtype, device=theta.device),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of their names above."""
        return self.masks, self.places, self.counts, self.values

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return sum(t.nbytes for t in self.tensors)


@final
@attrs.frozen(eq=False)
class DeviceKernel:
    """A rule in Triton. Both functions start work on the current stream of the device, and do not wait for it."""

    edit_by: Any
    undo_by: Any

    def edit(
        self,
        arrays: tuple[Tensor, ...],
        *,
        divisors: Tensor,
        numbers: Tensor,
        outcomes: Tensor,
        row: int,
        first: int,
        scratch: Scratch | None,
        write: bool,
    ) -> None:
        """Edit weights."""
        theta, forget, *second = arrays
        kept = (outcomes, outcomes, outcomes, theta) if scratch is None else scratch.tensors
        size, unit = _in_units(theta)
        self.edit_by[_grid(theta)](
            theta, forget, second[0] if second else forget, divisors, numbers, outcomes, *kept,
            size, row, first, int(scratch is not None), int(write), UNIT=unit, **_OPTIONS,
        )  # fmt: skip

    def undo(self, theta: Tensor, *, first: int, scratch: Scratch) -> None:
        """Put back what `edit` has overwritten; a second time changes nothing."""
        size, unit = _in_units(theta)
        self.undo_by[_grid(theta)](theta, *scratch.tensors, size, first, UNIT=unit, **_OPTIONS)


def _in_units(theta: Tensor) -> tuple[int, int]:
    unit = 1 if theta.numel() % UNIT else UNIT
    return theta.numel() // unit, unit


def _grid(theta: Tensor) -> tuple[int]:
    return (blocks(theta.numel()),)


def blocks(length: int) -> int:
    """Return how many blocks so many weights have."""
    return -(-length // BLOCK)


def device_kernel(program: Program, dtypes: Dtypes, computing: torch.dtype, device: torch.device) -> DeviceKernel:
    """Compile a rule for a device, unless this process has done it before."""
    return _working(
        source(program, dtypes, computing, reciprocals=device.type != "cpu"), dtypes, device, len(program.numbers)
    )


@functools.cache
def _working(text: str, dtypes: Dtypes, device: torch.device, numbers: int) -> DeviceKernel:
    names = load_source(text)
    kernel = DeviceKernel(names["one_pass"], names["put_back"])
    try:
        _try_it(kernel, dtypes, device, numbers)
    except Exception as error:  # Triton's compiler, a C compiler that it asks for, the driver: anything
        raise ConfigurationError(f"Triton failed ({type(error).__name__}): {str(error)[-2000:]}") from error
    return kernel


def _try_it(kernel: DeviceKernel, dtypes: Dtypes, device: torch.device, numbers: int) -> None:
    """Edit a few weights, so that whatever fails does so before a model is touched."""
    for length in (UNIT, 1):
        theta = bits(torch.zeros(length, dtype=dtypes.weight, device=device))
        totals = [torch.zeros(length, dtype=d, device=device) for d in (dtypes.forget, dtypes.reference) if d]
        ones = torch.ones(max(2, numbers), dtype=torch.float64, device=device)
        scratch, outcomes = (
            Scratch.of(theta, weights=length, blocks=1),
            torch.zeros(3, dtype=torch.int32, device=device),
        )
        kernel.edit(
            (theta, *totals),
            divisors=ones,
            numbers=ones,
            outcomes=outcomes,
            row=0,
            first=0,
            scratch=scratch,
            write=True,
        )
        kernel.undo(theta, first=0, scratch=scratch)
        outcomes.tolist()
