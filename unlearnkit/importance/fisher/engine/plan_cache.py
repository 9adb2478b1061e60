"""The call plans of a model, one for each kind of batch: recorded with a few samples, and proven on them."""

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from unlearnkit.data.batches import batch_size, take, tensors
from unlearnkit.importance.fisher.engine.call_plan import CallPlan, UnprovenError
from unlearnkit.importance.fisher.engine.kernel import KernelFailedError, out_of_memory
from unlearnkit.importance.fisher.engine.nan_check import Underflow
from unlearnkit.importance.fisher.engine.passes import AloneLosses, Passes
from unlearnkit.importance.fisher.engine.per_sample_fallback import SquaredGradients
from unlearnkit.importance.fisher.engine.probe import Comparison, probe, probe_again
from unlearnkit.importance.fisher.engine.totals import GroupTotals
from unlearnkit.utils.errors import UnlearnKitError, UnlearnKitWarning

PROBED = (3, 2)  # samples: a second size, because another dimension may be equal to the first by chance
Kind = tuple[object, ...]
"""What `signature` returns."""


@final
class PlanCache:
    """Probes the first batch of each kind: which function uses which parameter, and which rows belong to which sample.

    The totals of a few samples must equal those of one sample at a time.
    """

    def __init__(
        self, passes: Passes, *, totals: GroupTotals, fallback: SquaredGradients, underflow: Underflow
    ) -> None:
        self._passes, self._totals, self._fallback, self._underflow = passes, totals, fallback, underflow
        self._plans: dict[Kind, CallPlan] = {}
        self._slow: set[str] = set()

    def known(self, kind: Kind) -> CallPlan | None:
        """Return the plan of a kind of batch, if there is one already."""
        return self._plans.get(kind)

    def forget(self, kind: Kind) -> None:
        """Probe the next batch of a kind again."""
        self._plans.pop(kind, None)

    def of(self, batch: Any, kind: Kind, *, grouped: bool) -> CallPlan:
        """Return the plan of a batch; the first of its kind is probed."""
        if kind in self._plans:
            return self._plans[kind]
        reason: Exception | None = None
        for samples in (n for n in PROBED if n <= batch_size(batch)):
            try:
                self._plans[kind] = self._probed(take(batch, slice(0, samples)), grouped=grouped)
            except (UnlearnKitError, KernelFailedError):
                raise
            except Exception as error:  # whatever fails under the mode, the fallback may work
                if out_of_memory(error):
                    raise
                reason = reason or error
            else:
                self._say_slow(self._plans[kind].slow)
                return self._plans[kind]
        assert reason is not None, "a batch of one sample is not probed"
        if isinstance(reason, UnprovenError):
            raise reason
        raise UnprovenError(f"{type(reason).__name__}: {_first_line(reason)}") from reason

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

    def _probed(self, few: Any, *, grouped: bool) -> CallPlan:
        passes = self._passes
        plan = probe(passes.model, passes.objective, few, passes.named)
        if not self._plans and (grouped or plan.shared):  # where it matters whose a row is
            back = take(few, torch.arange(batch_size(few)).flip(0).to(passes.device))
            probe_again(passes.model, passes.objective, back, passes.named, plan)
        comparison = Comparison()
        passes.expect(None)
        trial = self._totals.trial(batch_size(few), comparison.expect)
        passes.run(few, plan, [trial])
        for name in passes.named:
            if not comparison.expects(name):  # nothing used it
                trial.complete(name)

        def receive(name: str, g: Tensor) -> None:
            comparison.receive(name, g)
            self._underflow.look(name, g, self._totals.dtype(name))

        passes.expect(AloneLosses(rows=range(batch_size(few)), losses=self._fallback.each(few, receive)))
        comparison.verdict(plan.precision)
        return plan


def signature(batch: Any) -> Kind:
    """Name what the steps of a forward pass may depend on: shapes beside the batch's, dtypes, autocast."""
    shapes = tuple((tuple(t.shape[1:]), t.dtype) for t in tensors(batch))
    return (*shapes, *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
