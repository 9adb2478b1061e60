"""Σ_i (∂ℓ_i/∂θ)² in one ordinary forward and backward pass: the engine behind `DiagonalFisher`."""

import warnings
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, copy_to, take, tensors
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.importance.fisher.engine.batch_gradients import BatchGradients
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError
from unlearnkit.importance.fisher.engine.eager import EAGER
from unlearnkit.importance.fisher.engine.graphs import Graphs, Recorder, refuse_with_graphs, unrecordable
from unlearnkit.importance.fisher.engine.group_totals import ALL, Ledger, Part
from unlearnkit.importance.fisher.engine.nan_check import Watch
from unlearnkit.importance.fisher.engine.out_of_memory import Fitted, Limit, out_of_memory
from unlearnkit.importance.fisher.engine.passes import Passes
from unlearnkit.importance.fisher.engine.per_sample_fallback import Receive, SquaredGradients, refuse_batch_statistics
from unlearnkit.importance.fisher.engine.plan_cache import Kind, Scripts, signature
from unlearnkit.importance.fisher.engine.probe import Found
from unlearnkit.importance.fisher.engine.underflow import Underflow
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of, trainable
from unlearnkit.utils.errors import UnlearnKitWarning

SETTLED = {"cuda": 4}  # passes of one kind until all that runs beside them holds as much as it ever will; else 1


@final
class Engine(Accumulator):
    """Adds squared per-sample gradients, batch by batch.

    The first batch of each shape is probed with a few samples: see `Scripts`. What cannot be proven goes by
    `SquaredGradients`, with one warning. Where memory runs out, a batch is halved.
    """

    steady: ClassVar[bool] = True  # by the rules of the norms, and by `SquaredGradients`

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        ledger: Ledger,
        general: SquaredGradients,
        chunk: int = 0,
        careful: bool = False,
        settled: int = 1,
        recheck: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        refuse_batch_statistics(model)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # compiled code cannot be looked into
        self._ledger, self._general = ledger, general
        self._device, self._underflow = device_of(self._model), Underflow()
        named = trainable(self._model)
        self._passes = Passes(self._model, objective, named=named, device=self._device, recheck=recheck)
        self._scripts = Scripts(self._passes, ledger=ledger, general=general, underflow=self._underflow)
        self._careful = careful
        self._fitted = Fitted(settled)
        self._limit = Limit(chunk)
        self._graphs = None if recorder is None else Graphs(recorder, ledger.places)
        self._count = 0
        self._grouped = False
        self._refused = False
        self._reason = ""
        self._watch = Watch(ledger)

    def add(self, batch: Any, keys: Sequence[Hashable] = ()) -> None:
        """Add one batch; see `Accumulator.add`."""
        if self._graphs is not None:
            refuse_with_graphs({"groups": bool(keys)})
        size, self._grouped = batch_size(batch), self._grouped or bool(keys)
        batch, keys = _sorted(batch, keys) if keys else (batch, [ALL] * size)
        start = 0
        while start < size:
            rows = slice(start, start + self._limit.step(size - start))
            if self._fits(take(batch, rows) if rows != slice(0, size) else batch, keys[rows]):
                start = rows.stop
            else:
                self._limit.halve(rows.stop - rows.start, self._device)
        self._ledger.end_batch(size)
        self._count += size
        self._watch.look()
        self._watch.next()

    def result(self) -> Importance:
        """End the pass; see `Accumulator.result`."""
        self._graphs = None  # gives its memory back
        totals = self._ledger.result(last=True)
        self._watch.end(totals)
        too_small = self._underflow.report(totals)
        if too_small:
            warnings.warn(too_small, UnlearnKitWarning, stacklevel=2)
        return Importance(totals=totals, count=self._count)

    def groups(self) -> Iterator[tuple[Hashable, int, dict[str, Tensor]]]:
        """Yield key, number of samples and squares of every group, whose buffers are given back."""
        for key, count in self._ledger.counts.items():
            yield key, count, self._ledger.group(key)

    def absolute(self) -> dict[str, Tensor]:
        """Return Σ_i |g_i| over all samples, when it was asked for."""
        return self._ledger.absolute()

    @property
    def gradients(self) -> BatchGradients:
        """The gradients of the batches, when they were asked for."""
        assert self._ledger.gradients is not None, "asked for at the start"
        return self._ledger.gradients

    def _fits(self, batch: Any, keys: Sequence[Hashable]) -> bool:
        """Add a batch, or nothing of it and return False when memory runs out."""
        parts, kind, size = self._ledger.parts(keys), signature(batch), batch_size(batch)
        if self._careful or self._refused or not self._fitted.sure(kind, size):
            self._ledger.begin(parts)
        before, trusted = _asked(parts), None
        try:
            with EAGER:
                self._add(batch, parts, kind)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            trusted = out_of_memory(error) and self._ledger.opened and self._trust(kind, size)
            if not out_of_memory(error) or (size == 1 and not trusted):
                raise
            if not self._ledger.opened and _asked(parts) != before:
                error.add_note("memory ran out in the middle of a batch whose like had fitted before: set chunk")
                raise
            self._ledger.roll_back()
        if trusted is not None:  # here nothing holds the tensors of the failed pass any more
            return trusted and self._fits(batch, keys)
        self._ledger.commit(keys)
        self._fitted.well(kind, size)
        if self._reason:
            self._say_why()
        return True

    def _trust(self, kind: Kind, size: int) -> bool:
        """Say whether a batch may fit when nothing is set apart, and have it added so."""
        return not (self._careful or self._refused) and self._fitted.trust(kind, size)

    def _add(self, batch: Any, parts: Sequence[Part], kind: Kind) -> None:
        if self._refused:
            self._generally(batch, parts)
        elif batch_size(batch) == 1 and not self._one_by_script(batch, parts, kind):
            self._general.each(batch, self._receiver(parts[0], look=self._count == 0))
        elif batch_size(batch) > 1:
            try:
                self._by_script(batch, parts, kind)
            except UnprovenError as unproven:
                self._fall_back(batch, parts, str(unproven))

    def _by_script(self, batch: Any, parts: Sequence[Part], kind: Kind) -> None:
        found = self._scripts.of(batch, kind, grouped=self._grouped)
        self._passes.count(batch, found)
        if self._graphs is not None and not self._ledger.opened:
            self._by_graph(self._graphs, batch, found, parts, kind)
            return
        if not found.script.doubtful:
            self._passes.run(batch, found, parts)
            return
        if self._graphs is not None:
            raise unrecordable("some layer of which got no gradient in the probe, so that every batch is looked at")
        trial = [Part(rows=part.rows, sums=part.sums.empty()) for part in parts]
        try:
            self._passes.run(batch, found, trial)
        except UnprovenError:
            self._scripts.forget(kind)
            trial = [Part(rows=part.rows, sums=part.sums.empty()) for part in parts]
            self._passes.run(batch, self._scripts.of(batch, kind, grouped=self._grouped), trial)
        for part, tried in zip(parts, trial, strict=True):
            part.sums.add(tried.sums)

    def _by_graph(self, graphs: Graphs, batch: Any, found: Found, parts: Sequence[Part], kind: Kind) -> None:
        alone = self._passes.expected()
        losses = graphs.run((kind, batch_size(batch)), batch, partial(self._recordable, found, parts))
        if alone is not None:
            alone.check(losses, found.precision)

    def _recordable(self, found: Found, parts: Sequence[Part], batch: Any) -> Tensor:
        """Make a pass that looks at nothing, and return the losses."""
        seen: list[Tensor] = []
        self._passes.run(batch, found, parts, look=seen.append)
        return seen[0].detach()

    def _one_by_script(self, batch: Any, parts: Sequence[Part], kind: Kind) -> bool:
        """Add a single sample as a batch of one where its like is known, or nothing and return False."""
        found = self._scripts.known(kind)
        if found is None or found.script.doubtful:
            return False
        try:
            self._passes.run(batch, found, parts)
        except UnprovenError:
            return False  # models may treat one sample differently; a pass that does not follow the script adds nothing
        return True

    def _generally(self, batch: Any, parts: Sequence[Part]) -> None:
        for part in parts:
            self._general.add(take(batch, part.rows) if len(parts) > 1 else batch, self._receiver(part))

    def _receiver(self, part: Part, *, look: bool = False) -> Receive:
        def receive(name: str, g: Tensor) -> None:
            part.sums.receive(name, g)
            if look:
                self._underflow.look(name, g, self._ledger.dtype(name))

        return receive

    def _fall_back(self, batch: Any, parts: Sequence[Part], reason: str) -> None:
        if self._graphs is not None:
            raise unrecordable(f"whose samples cannot be proven to be kept apart at {reason}")
        if not self._ledger.opened:  # nothing has been added yet: what cannot be proven is noticed going forward
            self._ledger.begin(parts)
        self._generally(batch, parts)
        self._refused, self._reason = True, reason

    def _say_why(self) -> None:
        self._watch.look(whole=True)  # a NaN is reason enough: the model is not to blame
        warnings.warn(
            f"{type(self._model).__name__} cannot be proven to keep its samples apart at {self._reason}: going on with "
            f"{self._general.describe()} for the whole model, exactly but two to five times slower",
            UnlearnKitWarning,
            stacklevel=2,
        )
        self._reason = ""


def _asked(parts: Sequence[Part]) -> int:
    """Count how often somebody asked for a place to add to."""
    return sum(totals.asked for part in parts for totals in part.sums.all())


def _sorted(batch: Any, keys: Sequence[Hashable]) -> tuple[Any, Sequence[Hashable]]:
    """Bring the samples of each group side by side, the groups in the order of their first samples."""
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(keys)), key=lambda i: first[keys[i]])
    if order == list(range(len(keys))):
        return batch, keys
    index = copy_to(torch.tensor(order), next(tensors(batch)).device)
    return take(batch, index), [keys[i] for i in order]
