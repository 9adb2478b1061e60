"""Passes over a batch by a call plan: forward under the interceptor, backward to the taps; and the cache of plans."""

import warnings
from collections.abc import Iterator, Sequence
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
from unlearnkit.importance.fisher.engine.kernel import KernelFailedError, out_of_memory
from unlearnkit.importance.fisher.engine.nan_check import Underflow
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients
from unlearnkit.importance.fisher.engine.probe import Comparison, check_alone, first_proof, probe, probe_again
from unlearnkit.importance.fisher.engine.totals import GroupTotals, Part
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import trainable
from unlearnkit.utils.errors import UnlearnKitError, UnlearnKitWarning, UnsupportedModelError

SIZES = 8  # batch sizes whose first pass is checked for rows of other samples
_SPOT_CHECKED = 3  # samples
Kind = tuple[object, ...]
"""What `signature` returns."""


@final
@attrs.frozen(kw_only=True, eq=False)
class AloneLosses:
    """The losses of some samples of a batch, each run by itself."""

    rows: Sequence[int]
    losses: Tensor
    passes: int = 0


@final
class SpotChecks:
    """Draws one pass of every so many, and a few samples in it; the same ones in every run."""

    def __init__(self, every: int) -> None:
        self._every, self.passes = every, 0

    def rows(self, size: int) -> list[int]:
        """Count one pass, and return the samples of it to check; mostly none."""
        index, self.passes = self.passes, self.passes + 1
        if not self._every or index == 0:  # the first pass is probed
            return []
        window, place = divmod(index, self._every)
        draw = np.random.default_rng(window)
        if place != int(draw.integers(int(window == 0), self._every)):
            return []
        return [int(row) for row in draw.permutation(size)[:_SPOT_CHECKED]]


@final
class Passes:
    """Adds squares by call plans, and proves that they are right.

    The first batch of each kind is probed: which function uses which parameter, and which rows belong to which sample.
    The totals of a few samples must equal those of one sample at a time. The first pass of each batch size and one pass
    of every `recheck` are checked again.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        totals: GroupTotals,
        fallback: SquaredGradients,
        underflow: Underflow,
        recheck: int,
    ) -> None:
        self._model, self._objective, self._named = model, objective, trainable(model)
        self._totals, self._fallback, self._underflow = totals, fallback, underflow
        self._alone: AloneLosses | None = None  # what the next pass must reproduce
        self._spot_checks = SpotChecks(recheck)
        self._sizes: set[int] = set()
        self._plans: dict[Kind, CallPlan] = {}
        self._slow: set[str] = set()

    def register(self, batch: Any, plan: CallPlan) -> None:
        """Register a batch; every `recheck` passes, run a few of its samples alone first."""
        rows = self._spot_checks.rows(batch_size(batch))[: plan.samples]
        if len(rows) == plan.samples and self._alone is None:
            passes = self._spot_checks.passes - 1
            with _later_pass(passes):
                self._alone = AloneLosses(rows=rows, losses=self._losses_alone(batch, plan, rows), passes=passes)

    def _losses_alone(self, batch: Any, plan: CallPlan, rows: Sequence[int]) -> Tensor:
        few = take(batch, torch.tensor(rows, device=next(tensors(batch)).device))
        probe_again(self._model, self._objective, few, self._named, plan)
        ones = [take(few, slice(i, i + 1)) for i in range(len(rows))]
        with torch.no_grad():
            return torch.cat(
                [check_losses(self._objective.losses(self._model, one), one, objective=self._objective) for one in ones]
            )

    def run(self, batch: Any, plan: CallPlan, parts: Sequence[Part]) -> None:
        """Forward and backward over one batch; adds the squares of its per-sample gradients to the parts."""
        (alone, self._alone), size = (self._alone, None), batch_size(batch)
        new = size not in self._sizes and len(self._sizes) < SIZES
        if size > plan.samples and (new or (alone is not None and alone.passes)):
            # In a pass of its own: going back twice through one graph would hold more than a plain pass does.
            with (
                self._forward(batch, plan, parts, alone) as (losses, accumulation),
                _later_pass(alone.passes if alone is not None else 0),
            ):
                accumulation.check_owners(losses)
            self._sizes.add(size)
            alone = None
        with self._forward(batch, plan, parts, alone) as (losses, accumulation):
            accumulation.interceptor.backward(losses.sum())
            accumulation.finish()

    @contextmanager
    def _forward(
        self, batch: Any, plan: CallPlan, parts: Sequence[Part], alone: AloneLosses | None
    ) -> Iterator[tuple[Tensor, Accumulation]]:
        accumulation = Accumulation(plan, batch_size(batch), parts, named=self._named)
        try:
            losses = accumulation.interceptor.forward(self._model, self._objective, batch)
            plan.finish()
            if alone is not None:
                with _later_pass(alone.passes):
                    check_alone(losses[list(alone.rows)], alone.losses, plan.precision)
            yield losses, accumulation
        finally:
            accumulation.close()

    def known(self, kind: Kind) -> CallPlan | None:
        """Return the plan of a kind of batch, if there is one already."""
        return self._plans.get(kind)

    def forget(self, kind: Kind) -> None:
        """Probe the next batch of a kind again."""
        self._plans.pop(kind, None)

    def of(self, batch: Any, kind: Kind, *, grouped: bool) -> CallPlan:
        """Return the plan of a batch; the first of its kind is probed."""
        if kind not in self._plans:
            self._plans[kind] = first_proof(batch, partial(self._probed, grouped=grouped))
            self._say_slow(self._plans[kind].slow)
        return self._plans[kind]

    def _probed(self, few: Any, *, grouped: bool) -> CallPlan:
        try:
            return self._checked(few, grouped=grouped)
        except (UnlearnKitError, KernelFailedError, UnprovenError):
            raise
        except Exception as error:  # whatever fails under the mode, the fallback may work
            if out_of_memory(error):
                raise
            said = (str(error).strip().splitlines() or [""])[0][:160]
            raise UnprovenError(f"{type(error).__name__}: {said}") from error

    def _say_slow(self, slow: Sequence[str]) -> None:
        new = [step for step in slow if step not in self._slow]
        self._slow.update(new)
        if new:
            warnings.warn(
                f"no rule for {'; '.join(new)}: differentiated one sample at a time, that function alone, exactly but "
                "for one small forward and backward pass of it for each sample and weight: see register_rule",
                UnlearnKitWarning,
                stacklevel=2,
            )

    def _checked(self, few: Any, *, grouped: bool) -> CallPlan:
        plan = probe(self._model, self._objective, few, self._named)
        if not self._plans and (grouped or plan.shared):  # where it matters whose a row is
            back = take(few, torch.arange(batch_size(few)).flip(0).to(next(tensors(few)).device))
            probe_again(self._model, self._objective, back, self._named, plan)
        comparison = Comparison()
        self._alone = None
        trial = self._totals.trial(batch_size(few), comparison.expect)
        self.run(few, plan, [trial])
        for name in self._named:
            if not comparison.expects(name):  # nothing used it
                trial.complete(name)

        def receive(name: str, g: Tensor) -> None:
            comparison.receive(name, g)
            self._underflow.check(name, g, self._totals.dtype(name))

        self._alone = AloneLosses(rows=range(batch_size(few)), losses=self._fallback.each(few, receive))
        comparison.verdict(plan.precision)
        return plan


def signature(batch: Any) -> Kind:
    """Name what the steps of a forward pass may depend on: shapes beside the batch's, dtypes, autocast."""
    shapes = tuple((tuple(t.shape[1:]), t.dtype) for t in tensors(batch))
    return (*shapes, *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


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
