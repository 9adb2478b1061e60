"""The engine of `DiagonalFisher` on a model that is sharded over processes: one ordinary pass for a whole batch.

Each process differentiates its own samples. Under FSDP a layer is gathered for its forward and its backward pass; the
squares of its per-sample gradients are made there, from the gathered weights, and go to the pieces at once, before the
next layer's are made.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, map_tensors, take
from unlearnkit.distributed.collectives import Ranks, all_gather
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.importance.fisher.engine.accumulate import Accumulation
from unlearnkit.importance.fisher.engine.call_plan import Action, CallPlan, Step, UnprovenError, ZeroGradientsError
from unlearnkit.importance.fisher.engine.interceptor import EAGER, Gradients, Guide, Seen, Sink
from unlearnkit.importance.fisher.engine.passes import signature
from unlearnkit.importance.fisher.engine.per_sample_fallback import Comparison, check_alone, refuse_batch_statistics
from unlearnkit.importance.fisher.engine.probe import discover, first_proof
from unlearnkit.importance.fisher.engine.rule import Call
from unlearnkit.importance.fisher.engine.totals import Part, Sums, Totals
from unlearnkit.importance.fisher.sharded.squared_sums import Leaves, PieceTotals, SampleSquares
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of, trainable
from unlearnkit.utils.errors import UnlearnKitWarning, UnsupportedModelError


@final
class Sending(Guide):
    """Follows a call plan and sends each parameter's squares to its pieces as soon as they are complete.

    Every process must send the same parameters in the same order, because sending is waiting for the others. The order
    is that of the plan, backwards. A parameter whose layer got no gradient is sent as zeros; one whose gradient comes
    out of its turn, or that is used more than once, is sent at the end of the pass.
    """

    def __init__(self, plan: CallPlan, samples: int, totals: Totals, leaves: Leaves, *, real: bool = True) -> None:
        self._totals, self._leaves, self._real = totals, leaves, real
        self.samples = samples
        part = Part(rows=slice(0, samples), sums=Sums(squares=totals))
        self.inner = Accumulation(plan, samples, [part], totals, named=leaves.tensors, guide=self)
        self._at_end = _late(plan)
        self._claims: list[tuple[str, ...]] = []
        self._waiting = 0
        self._late: set[str] = set()
        self.pieces: dict[str, Tensor] = {}

    def step(self, seen: Seen) -> Step | None:
        return self.inner.step(seen)

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        inner, index = self.inner.sink(step, call, y), len(self._claims)
        at_once = (name for name in step.names if name in self._leaves.tensors and name not in self._at_end)
        self._claims.append(tuple(dict.fromkeys(at_once)))
        self._waiting = len(self._claims)

        def receive(gradients: Gradients, saved: tuple[Tensor, ...]) -> None:
            inner(gradients, saved)
            self._send_down_to(index)

        return receive

    def finish(self, problem: str) -> list[str]:
        """Send the rest; return why a process could not follow the plan, if one could not."""
        self._send_down_to(0)
        try:
            self.inner.finish()
        except UnprovenError as unproven:
            problem = problem or str(unproven)
        names = list(self._leaves.tensors)
        mine = [bool(problem), *(name in self._late or name in self._at_end for name in names)]
        flags = torch.tensor(mine, dtype=torch.int32, device=next(iter(self._leaves.tensors.values())).device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        failed, *rest = (bool(flag) for flag in flags.cpu())
        if failed:
            return sorted({said for said in all_gather(problem) if said})
        for name, more in zip(names, rest, strict=True):
            if more:
                self._send(name)
        return []

    def close(self) -> None:
        self.inner.close()

    def _send_down_to(self, index: int) -> None:
        if index >= self._waiting:
            self._late.update(self._claims[index])
        while self._waiting > index:
            self._waiting -= 1
            for name in self._claims[self._waiting]:
                self._send(name)

    def _send(self, name: str) -> None:
        squares = self._totals.take(name)
        piece = self._leaves.piece(name, squares if self._real else torch.zeros_like(squares))
        self.pieces[name] = self.pieces[name] + piece if name in self.pieces else piece


@final
class ShardedEngine(Accumulator):
    """Adds squared per-sample gradients of a model under FSDP, batch by batch; see `Engine`."""

    def __init__(
        self, model: nn.Module, objective: Objective, *, memory: int, double: bool, compensated: bool, chunk: int
    ) -> None:
        refuse_batch_statistics(model)
        self._model, self._objective = model, objective
        named = trainable(model)
        self._leaves = Leaves(model, named)
        self._totals = PieceTotals(self._leaves, named, double=double, compensated=compensated)
        self._alone = SampleSquares(model, objective, self._leaves)
        self._memory, self._double, self._chunk = memory, double, chunk
        self._plans: dict[tuple[object, ...], CallPlan] = {}
        self._failures = 0
        self._refused = not self._leaves.gathers
        self._count = 0

    def add(self, batch: Any) -> None:
        """Add one batch, the same in every process."""
        size, step = batch_size(batch), self._chunk * self._leaves.size or batch_size(batch)
        for start in range(0, size, step):
            part = take(batch, slice(start, start + step)) if step < size else batch
            with EAGER:
                reason = self._by_plan(part)
            if reason is not None:
                self._alone.hand_out(part, self._totals.dtype, self._totals.add)
        self._count += size

    def result(self) -> Importance:
        return Importance(totals=self._totals.result(), count=self._count)

    def differentiated(self) -> Mapping[str, Tensor] | None:
        return self._leaves.tensors

    def _by_plan(self, batch: Any) -> str | None:
        """Add a batch in one pass, or nothing of it and return why."""
        kind = signature(batch)
        if self._refused or (kind not in self._plans and batch_size(batch) == 1):
            return "one sample"
        alone = None
        if kind not in self._plans:
            try:
                self._plans[kind], alone = first_proof(batch, self._probed)
            except ZeroGradientsError as nothing:
                return str(nothing)
            except UnprovenError as unproven:
                return self._give_up(str(unproven))
        own, rows = self._leaves.own(batch)
        counted = batch_size(own) if rows is not None else 0
        if batch_size(own) == 1:  # models may treat one sample differently, and no process may go another way
            own = map_tensors(own, lambda t: torch.cat([t, t]))
        sending, problems = self._pass(own, self._plans[kind], alone, counted=counted)
        if problems:
            del self._plans[kind]
            self._failures += 1
            return self._give_up(problems[0]) if self._failures > 1 else problems[0]
        for name, piece in sending.pieces.items():
            self._totals.add(name, piece)
        return None

    def _probed(self, few: Any) -> tuple[CallPlan, Tensor]:
        """Find the steps of a forward pass with a few samples, the same in every process, and check the totals."""
        plan = discover(self._model, self._objective, few, self._leaves.tensors)
        if plan.dynamic:
            raise UnprovenError("rows that belong to other samples in every batch")
        _refuse_several(plan, self._leaves)
        return plan, self._checked(few, plan)

    def _checked(self, few: Any, plan: CallPlan) -> Tensor:
        sending, problems = self._pass(few, plan, None, counted=batch_size(few))
        if problems:
            raise UnprovenError(problems[0])
        size = self._leaves.size  # every process had the same samples
        comparison = Comparison({name: piece.div_(size) for name, piece in sending.pieces.items()})
        losses = self._alone.hand_out(few, lambda name: sending.pieces[name].dtype, comparison.receive_squares)
        comparison.verdict(plan.precision, together=self._together)
        return losses

    def _pass(self, own: Any, plan: CallPlan, alone: Tensor | None, *, counted: int) -> tuple[Sending, list[str]]:
        """Make one pass, of which the first samples count."""
        leaves = self._leaves
        totals = Totals(leaves.tensors, double=self._double, memory=self._memory)
        sending = Sending(plan, batch_size(own), totals, leaves, real=counted > 0)
        interceptor, problem = sending.inner.interceptor, ""
        try:
            losses = interceptor.forward(self._model, self._objective, own)
            try:
                sending.inner.end_forward()
                if alone is not None:
                    check_alone(losses[:counted], alone, plan.precision)
            except UnprovenError as unproven:
                problem = str(unproven)
            interceptor.backward(losses[:counted].sum())
            with _gathered_again(leaves, plan):
                return sending, sending.finish(problem)
        except UnprovenError as unproven:
            raise UnsupportedModelError(
                f"this process went another way through the model than the probe, at {unproven}: layers that are "
                "gathered for all processes at once need the same calls in each"
            ) from unproven
        finally:
            sending.close()

    def _together(self, numbers: Tensor) -> Tensor:
        summed = numbers.to(device_of(self._model))
        dist.all_reduce(summed)
        return summed.cpu()

    def _give_up(self, reason: str) -> str:
        self._refused = True
        if Ranks.current().rank == 0:
            warnings.warn(
                f"{type(self._model).__name__} cannot be proven to keep its samples apart at {reason}: going on one "
                "sample at a time in each process, exactly but many times slower",
                UnlearnKitWarning,
                stacklevel=2,
            )
        return reason


def _late(plan: CallPlan) -> set[str]:
    """Name the parameters whose squares are made after the backward pass, perhaps with the weights at hand."""
    bases = {name for step in plan.steps if step.action is Action.DERIVE for name in step.names}
    return bases | set(plan.shared)


def _refuse_several(plan: CallPlan, leaves: Leaves) -> None:
    """Refuse to gather several layers at once after the backward pass: all of them might be the whole model."""
    owners = leaves.owners(_late(plan))
    if len(owners) > 1:
        names = ", ".join(sorted(_late(plan))[:3])
        raise UnprovenError(
            f"{names} and others of {len(owners)} layers that are gathered one at a time, weights that are used more "
            "than once or through tensors made of them"
        )


@contextmanager
def _gathered_again(leaves: Leaves, plan: CallPlan) -> Iterator[None]:
    """Gather the one layer whose weights are needed after the backward pass."""
    owners = leaves.owners(_late(plan))
    for module in owners:
        module.unshard()
    yield
    for module in owners:
        module.reshard()
