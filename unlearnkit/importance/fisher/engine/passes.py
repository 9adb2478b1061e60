"""Passes over a batch by a call plan: forward under the interceptor, backward to the taps, and spot checks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, take, tensors
from unlearnkit.importance.fisher.engine.accumulate import Accumulation
from unlearnkit.importance.fisher.engine.call_plan import CallPlan, UnprovenError
from unlearnkit.importance.fisher.engine.interceptor import Interceptor
from unlearnkit.importance.fisher.engine.probe import check_alone, probe_again
from unlearnkit.importance.fisher.engine.totals import Part
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.utils.errors import UnsupportedModelError

SIZES = 8  # batch sizes whose first pass is checked for rows of other samples
_SPOT_CHECKED = 3  # samples
_IGNORE: Callable[[Tensor], None] = lambda _: None  # noqa: E731


@final
@attrs.frozen(kw_only=True, eq=False)
class AloneLosses:
    """The losses of some samples of a batch, each run by itself."""

    rows: Sequence[int]
    losses: Tensor
    passes: int = 0

    def check(self, losses: Tensor, precision: torch.dtype) -> None:
        """Compare with their losses within the batch."""
        with _later_pass(self.passes):
            check_alone(losses[list(self.rows)], self.losses, precision)


@final
class SpotChecks:
    """Draws one pass of every so many, and a few samples in it; the same ones in every run."""

    def __init__(self, every: int) -> None:
        self._every, self.passes = every, 0
        self._draw = np.random.default_rng(0)
        self._place = 0

    def rows(self, size: int) -> list[int]:
        """Count one pass, and return the samples of it to check; mostly none."""
        index, self.passes = self.passes, self.passes + 1
        if not self._every or index == 0:  # the first pass is probed
            return []
        window, place = divmod(index, self._every)
        if place == 0 or index == 1:
            self._draw = np.random.default_rng(window)
            self._place = int(self._draw.integers(int(window == 0), self._every))
        if place != self._place:
            return []
        return [int(row) for row in self._draw.permutation(size)[:_SPOT_CHECKED]]


@final
class Passes:
    """Adds squares by a call plan; checks the first pass of each batch size and one pass of every `recheck`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        named: Mapping[str, nn.Parameter],
        device: torch.device,
        recheck: int = 0,
    ) -> None:
        self.model, self.objective, self.named, self.device = model, objective, named, device
        self._alone: AloneLosses | None = None
        self._spot_checks = SpotChecks(recheck)
        self._sizes: set[int] = set()

    def expect(self, alone: AloneLosses | None) -> None:
        """Set the losses that the next pass must reproduce."""
        self._alone = alone

    def register(self, batch: Any, plan: CallPlan) -> None:
        """Register a batch; every `recheck` passes, run a few of its samples alone first."""
        rows = self._spot_checks.rows(batch_size(batch))[: plan.samples]
        if len(rows) == plan.samples and self._alone is None:
            passes = self._spot_checks.passes - 1
            with _later_pass(passes):
                self._alone = AloneLosses(rows=rows, losses=self._losses_alone(batch, plan, rows), passes=passes)

    def _losses_alone(self, batch: Any, plan: CallPlan, rows: Sequence[int]) -> Tensor:
        few = take(batch, torch.tensor(rows, device=next(tensors(batch)).device))
        probe_again(self.model, self.objective, few, self.named, plan)
        ones = [take(few, slice(i, i + 1)) for i in range(len(rows))]
        with torch.no_grad():
            return torch.cat(
                [check_losses(self.objective.losses(self.model, one), one, objective=self.objective) for one in ones]
            )

    def run(self, batch: Any, plan: CallPlan, parts: Sequence[Part]) -> None:
        """Forward and backward over one batch; adds the squares of its per-sample gradients to the parts."""
        check = self._check_rows(batch, plan, parts)
        with self._forward(batch, plan, parts) as (losses, accumulation):
            check(losses)
            accumulation.backward(losses)
            accumulation.finish()

    @contextmanager
    def _forward(self, batch: Any, plan: CallPlan, parts: Sequence[Part]) -> Iterator[tuple[Tensor, Accumulation]]:
        accumulation = Accumulation(plan, batch_size(batch), parts)
        interceptor = Interceptor(self.named, accumulation, self.device)
        accumulation.interceptor = interceptor
        try:
            with interceptor:
                losses = self.objective.losses(self.model, batch)
            losses = check_losses(losses, batch, objective=self.objective)
            plan.finish()
            yield losses, accumulation
        finally:
            accumulation.close()

    def _check_rows(self, batch: Any, plan: CallPlan, parts: Sequence[Part]) -> Callable[[Tensor], None]:
        """Check whose rows are whose when it is due, in a pass of its own; return a check of the next losses."""
        (alone, self._alone), size = (self._alone, None), batch_size(batch)
        check = partial(alone.check, precision=plan.precision) if alone is not None else _IGNORE
        new = size not in self._sizes and len(self._sizes) < SIZES
        if size <= plan.samples or not (new or (alone is not None and alone.passes)):
            return check
        # Going back twice through one graph would hold more than a plain pass does.
        with self._forward(batch, plan, parts) as (losses, accumulation):
            check(losses)
            with _later_pass(alone.passes if alone is not None else 0):
                accumulation.check_owners(losses)
        self._sizes.add(size)
        return _IGNORE


@contextmanager
def _later_pass(passes: int) -> Iterator[None]:
    """After the first pass a failed proof is an error: what has been added cannot be taken out again."""
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
