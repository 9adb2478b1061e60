"""Σ_i (∂ℓ_i/∂θ)² in one ordinary forward and backward pass: the engine behind `DiagonalFisher`."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from unlearnkit.batches import batch_size, take, tensors
from unlearnkit.errors import UnlearnKitError, UnlearnKitWarning
from unlearnkit.estimator import Accumulator
from unlearnkit.feeding import sent
from unlearnkit.fisher.collect import Following
from unlearnkit.fisher.eager import EAGER
from unlearnkit.fisher.finite import Watch
from unlearnkit.fisher.general import Receive, SquaredGradients, refuse_batch_statistics
from unlearnkit.fisher.gradients import BatchGradients
from unlearnkit.fisher.graphs import Graphs, Recorder, refuse_with_graphs, unrecordable
from unlearnkit.fisher.intercept import Interceptor
from unlearnkit.fisher.ledger import ALL, Ledger, Part
from unlearnkit.fisher.memory import Fitted, Limit, out_of_memory
from unlearnkit.fisher.probe import Comparison, Found, probe, probe_again
from unlearnkit.fisher.recheck import Alone, Recheck, look_again, too_late
from unlearnkit.fisher.script import UnprovenError
from unlearnkit.fisher.underflow import Underflow
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective, check_losses
from unlearnkit.parameters import device_of, trainable

SIZES = 8  # batch sizes of which the first pass is looked at as a whole
PROBED = (3, 2)  # samples: a second size, because another dimension may be equal to the first by chance
_IGNORE: Callable[[Tensor], None] = lambda _: None  # noqa: E731
SETTLED = {"cuda": 4}  # passes of one kind until all that runs beside them holds as much as it ever will; else 1


@final
class Engine(Accumulator):
    """Adds squared per-sample gradients, batch by batch.

    The first batch of each shape is probed with a few samples: which function uses which parameter, which rows belong
    to which sample, and whether the totals equal those of one sample at a time. What cannot be proven goes by
    `SquaredGradients`, with one warning. Where memory runs out, a batch is halved.

    Args:
        model: In eval mode.
        objective: One loss per sample.
        ledger: Where the squares are added.
        general: The fallback.
        chunk: Samples in one pass, or 0 for whole batches.
        careful: Add every pass apart from the rest, not only those that may run out of memory.
        settled: How many passes of a kind must have gone well before one is sure that it fits; see `SETTLED`.
        recheck: Look at one pass of so many again; 0 for none.
        recorder: Record passes by it and replay them; None to make each.
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
        self._objective = objective
        self._ledger, self._general = ledger, general
        self._named = trainable(self._model)
        self._device = device_of(self._model)
        self._careful = careful
        self._fitted = Fitted(settled)
        self._limit = Limit(chunk)
        self._scripts: dict[tuple[object, ...], Found] = {}
        self._alone: Alone | None = None
        self._recheck = Recheck(recheck)
        self._graphs = None if recorder is None else Graphs(recorder, ledger.places)
        self._count = 0
        self._grouped = False
        self._sizes: set[int] = set()
        self._refused = False
        self._reason = ""
        self._slow: set[str] = set()
        self._watch = Watch(ledger)
        self._underflow = Underflow()

    def add(self, batch: Any, keys: Sequence[Hashable] = ()) -> None:
        """Add one batch; see `Accumulator.add`.

        Args:
            batch: On the model's device.
            keys: The group of each sample; none: all are of one.

        Raises:
            ConfigurationError: Groups, where passes are recorded.
            NonFiniteError: A NaN or an infinity, naming the parameters and the batch.
            OutOfMemoryError: Not even one sample fits.
        """
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
        """End the pass; see `Accumulator.result`.

        Returns:
            Totals and count.

        Raises:
            NonFiniteError: A NaN or an infinity, naming the parameters and the batches.
        """
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

    def _trust(self, kind: tuple[object, ...], size: int) -> bool:
        """Say whether a batch may fit when nothing is set apart, and have it added so."""
        return not (self._careful or self._refused) and self._fitted.trust(kind, size)

    def _add(self, batch: Any, parts: Sequence[Part], kind: tuple[object, ...]) -> None:
        if self._refused:
            self._generally(batch, parts)
        elif batch_size(batch) == 1 and not (kind in self._scripts and self._one_by_script(batch, parts, kind)):
            self._general.each(batch, self._receiver(parts[0], look=self._count == 0))
        elif batch_size(batch) > 1:
            try:
                self._by_script(batch, parts, kind)
            except UnprovenError as unproven:
                self._fall_back(batch, parts, str(unproven))

    def _by_script(self, batch: Any, parts: Sequence[Part], kind: tuple[object, ...]) -> None:
        found, rows = self._script(batch, kind), self._recheck.rows(batch_size(batch))
        if len(rows) >= found.samples and self._alone is None:
            self._alone = self._again(batch, found, rows[: found.samples])
        if self._graphs is not None and not self._ledger.opened:
            self._by_graph(self._graphs, batch, found, parts, kind)
            return
        if not found.script.doubtful:
            self._pass(batch, found, parts)
            return
        if self._graphs is not None:
            raise unrecordable("some layer of which got no gradient in the probe, so that every batch is looked at")
        trial = [Part(rows=part.rows, sums=part.sums.empty()) for part in parts]
        try:
            self._pass(batch, found, trial)
        except UnprovenError:
            del self._scripts[kind]
            trial = [Part(rows=part.rows, sums=part.sums.empty()) for part in parts]
            self._pass(batch, self._script(batch, kind), trial)
        for part, tried in zip(parts, trial, strict=True):
            part.sums.add(tried.sums)

    def _by_graph(
        self, graphs: Graphs, batch: Any, found: Found, parts: Sequence[Part], kind: tuple[object, ...]
    ) -> None:
        alone, self._alone = self._alone, None
        losses = graphs.run((kind, batch_size(batch)), batch, partial(self._recordable, found, parts))
        if alone is not None:
            alone.check(losses, found.precision)

    def _recordable(self, found: Found, parts: Sequence[Part], batch: Any) -> Tensor:
        """Make a pass that looks at nothing, and return the losses."""
        seen: list[Tensor] = []
        self._pass(batch, found, parts, look=seen.append)
        return seen[0].detach()

    def _one_by_script(self, batch: Any, parts: Sequence[Part], kind: tuple[object, ...]) -> bool:
        """Add a single sample as a batch of one where its like is known, or nothing and return False."""
        if self._scripts[kind].script.doubtful:
            return False
        try:
            self._pass(batch, self._scripts[kind], parts)
        except UnprovenError:
            return False  # models may treat one sample differently; a pass that does not follow the script adds nothing
        return True

    def _script(self, batch: Any, kind: tuple[object, ...]) -> Found:
        if kind in self._scripts:
            return self._scripts[kind]
        reason: Exception | None = None
        for samples in (n for n in PROBED if n <= batch_size(batch)):
            try:
                self._scripts[kind] = self._probed(take(batch, slice(0, samples)))
            except UnlearnKitError:
                raise
            except Exception as error:  # whatever fails under the mode, the fallback may work
                if out_of_memory(error):
                    raise
                reason = reason or error
            else:
                self._say_slow(self._scripts[kind].script.slow)
                return self._scripts[kind]
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

    def _probed(self, few: Any) -> Found:
        found = probe(self._model, self._objective, few, self._named)
        if not self._scripts and (self._grouped or found.script.shared):  # where it matters whose a row is
            back = take(few, torch.arange(batch_size(few)).flip(0).to(self._device))
            probe_again(self._model, self._objective, back, self._named, found)
        comparison, self._alone = Comparison(), None
        trial = self._ledger.trial(batch_size(few), comparison.expect)
        self._pass(few, found, [trial])
        for name in self._named:
            if not comparison.expects(name):  # nothing used it
                trial.complete(name)

        def receive(name: str, g: Tensor) -> None:
            comparison.receive(name, g)
            self._underflow.look(name, g, self._ledger.dtype(name))

        self._alone = Alone(rows=range(batch_size(few)), losses=self._general.each(few, receive))
        comparison.verdict(found.precision)
        return found

    def _again(self, batch: Any, found: Found, rows: Sequence[int]) -> Alone:
        passes = self._recheck.passes - 1
        with too_late(passes):
            losses = look_again(self._model, self._objective, batch, self._named, found=found, rows=rows)
        return Alone(rows=rows, losses=losses, passes=passes)

    def _pass(
        self, batch: Any, found: Found, parts: Sequence[Part], *, look: Callable[[Tensor], None] | None = None
    ) -> None:
        if look is None:
            look = self._look(batch, found, parts)
        with self._forward(batch, found, parts) as (losses, guide):
            look(losses)
            guide.backward(losses)
            guide.finish()

    @contextmanager
    def _forward(self, batch: Any, found: Found, parts: Sequence[Part]) -> Iterator[tuple[Tensor, Following]]:
        """Go forward, and yield the losses and what goes back from them."""
        guide = Following(found.script, batch_size(batch), parts)
        interceptor = Interceptor(self._named, guide, self._device)
        guide.interceptor = interceptor
        try:
            with interceptor:
                losses = self._objective.losses(self._model, batch)
            losses = check_losses(losses, batch, objective=self._objective)
            found.script.finish()
            yield losses, guide
        finally:
            guide.close()

    def _look(self, batch: Any, found: Found, parts: Sequence[Part]) -> Callable[[Tensor], None]:
        """Look at the first pass of a kind, and at one of so many, before it is made; return what looks at losses."""
        alone, self._alone, size = self._alone, None, batch_size(batch)
        check = partial(alone.check, precision=found.precision) if alone is not None else _IGNORE
        new = size not in self._sizes and len(self._sizes) < SIZES
        if size <= found.samples or not (new or (alone is not None and alone.passes)):
            return check
        # A pass of its own: to keep a graph for a second time takes more than a plain pass holds.
        with self._forward(batch, found, parts) as (losses, guide):
            check(losses)
            with too_late(alone.passes if alone is not None else 0):
                guide.check_owners(losses)
        self._sizes.add(size)
        return _IGNORE

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
    index = sent(torch.tensor(order), next(tensors(batch)).device)
    return take(batch, index), [keys[i] for i in order]


def signature(batch: Any) -> tuple[object, ...]:
    """Name what the steps of a forward pass may depend on: shapes beside the batch's, dtypes, autocast.

    Args:
        batch: Any.

    Returns:
        A key.
    """
    shapes = tuple((tuple(t.shape[1:]), t.dtype) for t in tensors(batch))
    return (*shapes, *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
