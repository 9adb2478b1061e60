"""Looks again later: a model that kept its samples apart in the batch that was probed may mix them in another one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.batches import take, tensors
from unlearnkit.errors import UnsupportedModelError
from unlearnkit.fisher.probe import Found, check_alone, probe_again
from unlearnkit.fisher.script import UnprovenError
from unlearnkit.objective import Objective, check_losses

_SAMPLES = 3


@final
@attrs.frozen(kw_only=True, eq=False)
class Alone:
    """What some samples of a batch lose by themselves.

    Attributes:
        rows: Where they stand in the batch.
        losses: Of each alone.
        passes: How many passes there were before; 0 for the one that is probed.
    """

    rows: Sequence[int]
    losses: Tensor
    passes: int = 0

    def check(self, losses: Tensor, precision: torch.dtype) -> None:
        """Compare with their losses within the batch.

        Args:
            losses: Of the whole batch.
            precision: The coarsest dtype among the layers' outputs.

        Raises:
            UnprovenError: A sample's loss depends on its neighbours, in the first pass.
            UnsupportedModelError: The same in a later one.
        """
        with too_late(self.passes):
            check_alone(losses[list(self.rows)], self.losses, precision)


@final
class Recheck:
    """Draws one pass of every so many, and a few samples in it; the same ones in every run.

    Args:
        every: How many; 0 for never.
    """

    def __init__(self, every: int) -> None:
        self._every, self.passes = every, 0
        self._draw = np.random.default_rng(0)
        self._place = 0

    def rows(self, size: int) -> list[int]:
        """Count one pass, and say which samples of it to look at; none, mostly.

        Args:
            size: How many samples it has.

        Returns:
            Their places.
        """
        index, self.passes = self.passes, self.passes + 1
        if not self._every or index == 0:  # the first pass is probed
            return []
        window, place = divmod(index, self._every)
        if place == 0 or index == 1:
            self._draw = np.random.default_rng(window)
            self._place = int(self._draw.integers(int(window == 0), self._every))
        if place != self._place:
            return []
        return [int(row) for row in self._draw.permutation(size)[:_SAMPLES]]


def look_again(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    named: Mapping[str, Tensor],
    *,
    found: Found,
    rows: Sequence[int],
) -> Tensor:
    """Look at some samples of a batch again.

    Args:
        model: In eval mode.
        objective: One loss per sample.
        batch: On the model's device.
        named: The trainable parameters.
        found: By the probe.
        rows: Where they stand in the batch.

    Returns:
        Their losses alone, to be compared with those in the batch.

    Raises:
        UnprovenError: The samples of some layer stand in other places than they did.
    """
    few = take(batch, torch.tensor(rows, device=next(tensors(batch)).device))
    probe_again(model, objective, few, named, found)
    ones = [take(few, slice(i, i + 1)) for i in range(len(rows))]
    with torch.no_grad():
        return torch.cat([check_losses(objective.losses(model, one), one, objective=objective) for one in ones])


@contextmanager
def too_late(passes: int) -> Iterator[None]:
    """Make an error of what was found out after the first pass: what has been added cannot be taken out again.

    Args:
        passes: How many passes there were before.

    Yields:
        Once.

    Raises:
        UnprovenError: As it was raised, in the first pass.
        UnsupportedModelError: In its place, in a later one.
    """
    try:
        yield
    except UnprovenError as unproven:
        if not passes:
            raise
        raise UnsupportedModelError(
            f"expected samples that do not mix, as in the first batch, saw in pass {passes} (counted from 0): "
            f"{unproven}; what was added before may be wrong too; chunk=1 takes one sample in a pass, slowly and "
            "always right"
        ) from unproven
