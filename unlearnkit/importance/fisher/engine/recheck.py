"""Looks again later: a model that kept its samples apart in the batch that was probed may mix them in another one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import take, tensors
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError
from unlearnkit.importance.fisher.engine.probe import Found, check_alone, probe_again
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.utils.errors import UnsupportedModelError

_SAMPLES = 3


@final
@attrs.frozen(kw_only=True, eq=False)
class Alone:
    """What some samples of a batch lose by themselves."""

    rows: Sequence[int]
    losses: Tensor
    passes: int = 0

    def check(self, losses: Tensor, precision: torch.dtype) -> None:
        """Compare with their losses within the batch."""
        with too_late(self.passes):
            check_alone(losses[list(self.rows)], self.losses, precision)


@final
class Recheck:
    """Draws one pass of every so many, and a few samples in it; the same ones in every run."""

    def __init__(self, every: int) -> None:
        self._every, self.passes = every, 0
        self._draw = np.random.default_rng(0)
        self._place = 0

    def rows(self, size: int) -> list[int]:
        """Count one pass, and say which samples of it to look at; none, mostly."""
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
    """Look at some samples of a batch again."""
    few = take(batch, torch.tensor(rows, device=next(tensors(batch)).device))
    probe_again(model, objective, few, named, found)
    ones = [take(few, slice(i, i + 1)) for i in range(len(rows))]
    with torch.no_grad():
        return torch.cat([check_losses(objective.losses(model, one), one, objective=objective) for one in ones])


@contextmanager
def too_late(passes: int) -> Iterator[None]:
    """Make an error of what was found out after the first pass: what has been added cannot be taken out again."""
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
