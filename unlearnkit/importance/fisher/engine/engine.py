"""Σ_i (∂ℓ_i/∂θ)² in one ordinary forward and backward pass: the engine behind `DiagonalFisher`."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, copy_to, take, tensors
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError, ZeroGradientsError
from unlearnkit.importance.fisher.engine.interceptor import EAGER
from unlearnkit.importance.fisher.engine.kernel import KernelFailedError, out_of_memory
from unlearnkit.importance.fisher.engine.nan_check import NanCheck, Underflow
from unlearnkit.importance.fisher.engine.passes import Kind, Passes, signature
from unlearnkit.importance.fisher.engine.per_sample_fallback import Receive, SquaredGradients, refuse_batch_statistics
from unlearnkit.importance.fisher.engine.totals import ALL, BatchGradients, GroupTotals, Part
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import UnlearnKitError, UnlearnKitWarning

_FEW = 2  # samples that are cheaper one at a time than proven
_SETTLED = {"cuda": 4}  # passes of one kind until all that runs beside them holds as much as it ever will; else 1


@final
class Engine(Accumulator):
    """Adds squared per-sample gradients, batch by batch.

    The first batch of each shape is recorded and checked: see `Passes`. What cannot be proven falls back to
    `SquaredGradients`, with one warning. Where memory runs out, a batch is halved.
    """

    fixes_norm_gradients: ClassVar[bool] = True  # by the rules of the norms, and by `SquaredGradients`

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        totals: GroupTotals,
        fallback: SquaredGradients,
        chunk: int = 0,
        careful: bool = False,
        recheck: int = 0,
        keys: Callable[[], Sequence[Hashable]] | None = None,
    ) -> None:
        refuse_batch_statistics(model)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # compiled code cannot be looked into
        self._objective, self._totals, self._fallback = objective, totals, fallback
        self._device, self._underflow = device_of(self._model), Underflow()
        self._passes = Passes(
            self._model, objective, totals=totals, fallback=fallback, underflow=self._underflow, recheck=recheck
        )
        self._careful = careful
        self._fitted = Fitted(_SETTLED.get(self._device.type, 1))
        self._keys = keys
        self._chunk, self._halved = chunk, False
        self._count = 0
        self._seen = Counter[Kind]()
        self._refused = False
        self._reason = ""
        self._nan_check = NanCheck(totals.running, totals.result)

    def add(self, batch: Any) -> None:
        size = batch_size(batch)
        batch, keys = _sorted(batch, self._keys()) if self._keys is not None else (batch, [ALL] * size)
        start = 0
        while start < size:
            rows = slice(start, min(start + (self._chunk or size), size))
            if self._fits(take(batch, rows) if rows != slice(0, size) else batch, keys[rows]):
                start = rows.stop
            else:
                self._halve(rows.stop - rows.start)
        self._totals.end_batch(size)
        self._count += size
        self._nan_check.end_batch()

    def result(self) -> Importance:
        totals = self._totals.result(last=True)
        self._nan_check.finish(totals)
        too_small = self._underflow.report(totals)
        if too_small:
            warnings.warn(too_small, UnlearnKitWarning, stacklevel=2)
        return Importance(totals=totals, count=self._count)

    def groups(self) -> Iterator[tuple[Hashable, int, dict[str, Tensor]]]:
        """Yield key, number of samples and squares of every group, and free its buffers."""
        for key, count in self._totals.counts.items():
            yield key, count, self._totals.group(key)

    def absolute(self) -> dict[str, Tensor]:
        return self._totals.absolute()

    @property
    def gradients(self) -> BatchGradients:
        assert self._totals.gradients is not None, "asked for at the start"
        return self._totals.gradients

    def _fits(self, batch: Any, keys: Sequence[Hashable]) -> bool:
        """Add a batch atomically; False on out-of-memory."""
        parts, kind, size = self._totals.parts(keys), signature(batch), batch_size(batch)
        if self._careful or self._refused or not self._fitted.sure(kind, size):
            self._totals.begin(parts)
        before, trusted = _asked(parts), None
        try:
            with EAGER:
                self._add(batch, parts, kind)
        except KernelFailedError as error:
            if not self._totals.opened and _asked(parts) != before:
                raise UnlearnKitError(
                    f"{error}, in the middle of a batch whose like it had added before, so that the totals are lost: "
                    "use kernels='fixed', or name its plugin in UNLEARNKIT_DISABLE_PLUGINS"
                ) from error
            self._totals.roll_back()
            self._passes.forget(kind)
            return self._fits(batch, keys)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            trusted = out_of_memory(error) and self._totals.opened and self._trust(kind, size)
            if not out_of_memory(error) or (size == 1 and not trusted):
                raise
            if not self._totals.opened and _asked(parts) != before:
                error.add_note("memory ran out in the middle of a batch whose like had fitted before: set chunk")
                raise
            self._totals.roll_back()
        if trusted is not None:  # here nothing holds the tensors of the failed pass any more
            return trusted and self._fits(batch, keys)
        self._totals.commit(keys)
        self._fitted.well(kind, size)
        if self._reason:
            self._say_why()
        return True

    def _halve(self, tried: int) -> None:
        """Halve the chunk after an out-of-memory error, for good; warn the first time."""
        self._chunk = tried // 2
        gc.collect()  # what the failed pass held may be in cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._halved:
            self._halved = True
            warnings.warn(
                f"out of memory with {tried} samples in one pass: going on with {self._chunk} and fewer if need be; "
                f"the totals are the same, and chunk={self._chunk} begins there",
                UnlearnKitWarning,
                stacklevel=2,
            )

    def _trust(self, kind: Kind, size: int) -> bool:
        """Say whether a batch may fit without a second set of totals."""
        return not (self._careful or self._refused) and self._fitted.trust(kind, size)

    def _add(self, batch: Any, parts: Sequence[Part], kind: Kind) -> None:
        if self._refused:
            self._fall_back_on(batch, parts)
        elif self._few(batch, kind) or (batch_size(batch) == 1 and not self._one_by_plan(batch, parts, kind)):
            for part in parts:
                one = take(batch, part.rows) if len(parts) > 1 else batch
                self._fallback.each(one, self._receiver(part, look=self._count == 0))
        elif batch_size(batch) > 1:
            try:
                self._by_plan(batch, parts, kind)
            except ZeroGradientsError:
                self._totals.begin(parts)
                self._fall_back_on(batch, parts)  # this batch alone; the next one may show more
            except UnprovenError as unproven:
                self._fall_back(batch, parts, str(unproven))

    def _few(self, batch: Any, kind: Kind) -> bool:
        """Whether so few samples of a kind have come that one at a time is cheaper than a proof.

        It does not matter whether the proof is known already, so that every estimate has the same bits.
        """
        self._seen[kind] += batch_size(batch)
        return self._seen[kind] <= _FEW

    def _by_plan(self, batch: Any, parts: Sequence[Part], kind: Kind) -> None:
        plan = self._passes.known(kind)
        if plan is not None and plan.doubtful:  # a gradient where there was none is noticed too late
            self._totals.begin(parts)
        self._passes.run(batch, kind, parts)

    def _one_by_plan(self, batch: Any, parts: Sequence[Part], kind: Kind) -> bool:
        """Add a single sample as a batch of one where its kind is known, or nothing and return False."""
        plan = self._passes.known(kind)
        if plan is None or plan.doubtful or plan.dynamic:
            return False
        try:
            self._passes.follow(batch, plan, parts)
        except UnprovenError:
            return False  # models may treat one sample differently; a pass that does not match the plan adds nothing
        return True

    def _fall_back_on(self, batch: Any, parts: Sequence[Part]) -> None:
        for part in parts:
            self._fallback.add(take(batch, part.rows) if len(parts) > 1 else batch, self._receiver(part))

    def _receiver(self, part: Part, *, look: bool = False) -> Receive:
        def receive(name: str, g: Tensor) -> None:
            part.sums.receive(name, g)
            if look:
                self._underflow.check(name, g, self._totals.dtype(name))

        return receive

    def _fall_back(self, batch: Any, parts: Sequence[Part], reason: str) -> None:
        self._totals.begin(parts)
        self._fall_back_on(batch, parts)
        self._refused, self._reason = True, f"cannot be proven to keep its samples apart at {reason}"
        if self._is_random(take(batch, slice(0, 1))):
            self._reason = (
                "gives one sample other losses each time, in eval mode (F.dropout without training=self.training?), so "
                "its importances depend on random numbers"
            )

    def _is_random(self, one: Any) -> bool:
        with suppress(Exception):  # a model may refuse a batch of one
            first, second = (self._objective.losses(self._model, one) for _ in range(2))
            return not torch.allclose(first, second, rtol=1e-3, equal_nan=True)
        return False

    def _say_why(self) -> None:
        self._nan_check.check()  # a NaN is reason enough: the model is not to blame
        warnings.warn(
            f"{type(self._model).__name__} {self._reason}: going on with {self._fallback.describe()} for the whole "
            "model, exactly but two to five times slower",
            UnlearnKitWarning,
            stacklevel=2,
        )
        self._reason = ""


def _asked(parts: Sequence[Part]) -> int:
    return sum(totals.asked for part in parts for totals in part.sums.all())


def _sorted(batch: Any, keys: Sequence[Hashable]) -> tuple[Any, Sequence[Hashable]]:
    """Sort samples by group, the groups in the order of their first samples."""
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(keys)), key=lambda i: first[keys[i]])
    if order == list(range(len(keys))):
        return batch, keys
    index = copy_to(torch.tensor(order), next(tensors(batch)).device)
    return take(batch, index), [keys[i] for i in order]


@final
class Fitted:
    """Batch shapes that have succeeded often enough to be added without double-buffering."""

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._known: dict[Hashable, tuple[int, int]] = {}

    def sure(self, kind: Hashable, size: int) -> bool:
        largest, times = self._known.get(kind, (0, 0))
        return size <= largest and times >= self._passes

    def well(self, kind: Hashable, size: int) -> None:
        largest, times = self._known.get(kind, (0, 0))
        if size >= largest:
            self._known[kind] = size, times + 1 if size == largest else 1

    def trust(self, kind: Hashable, size: int) -> bool:
        """Stop double-buffering batch shapes that have succeeded.

        A second pass that sets apart holds two sets of totals where the first held one; later ones hold one again.
        """
        largest, times = self._known.get(kind, (0, 0))
        if size > largest or times >= self._passes:
            return False
        self._known[kind] = largest, self._passes
        return True
