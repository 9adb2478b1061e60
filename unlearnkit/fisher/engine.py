"""Σ_i (∂ℓ_i/∂θ)² in one ordinary forward and backward pass: the engine behind `DiagonalFisher`."""

import warnings
from typing import Any, final

import torch
from torch import nn

from unlearnkit.batches import batch_size, take, tensors
from unlearnkit.errors import UnlearnKitError, UnlearnKitWarning
from unlearnkit.estimator import Accumulator
from unlearnkit.fisher.collect import Following
from unlearnkit.fisher.finite import Watch
from unlearnkit.fisher.general import SquaredGradients, refuse_batch_statistics
from unlearnkit.fisher.intercept import Interceptor
from unlearnkit.fisher.probe import probe
from unlearnkit.fisher.script import Script, UnprovenError
from unlearnkit.fisher.totals import Totals
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective, check_losses
from unlearnkit.parameters import device_of, trainable

_PROBED = (3, 2)  # samples: a second size, because another dimension may be equal to the first by chance


@final
class Engine(Accumulator):
    """Adds squared per-sample gradients, batch by batch.

    The first batch of each shape is probed with a few samples: which function uses which parameter, which rows belong
    to which sample, and whether the totals equal those of one sample at a time. What cannot be proven goes by
    `SquaredGradients`, with one warning.

    Args:
        model: In eval mode.
        objective: One loss per sample.
        totals: Where the squares are added.
        general: The fallback.
        chunk: Samples in one pass, or 0 for whole batches.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, *, totals: Totals, general: SquaredGradients, chunk: int = 0
    ) -> None:
        refuse_batch_statistics(model)
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # compiled code cannot be looked into
        self._objective = objective
        self._totals, self._general, self._chunk = totals, general, chunk
        self._named = trainable(self._model)
        self._scripts: dict[tuple[object, ...], Script] = {}
        self._count = 0
        self._refused = False
        self._watch = Watch(totals)

    def add(self, batch: Any) -> None:
        """Add one batch; see `Accumulator.add`.

        Raises:
            NonFiniteError: A NaN or an infinity, naming the parameters and the batch.
        """
        size = batch_size(batch)
        step = self._chunk or size
        for start in range(0, size, step):
            self._add(batch if step >= size else take(batch, slice(start, start + step)))
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
        totals = self._totals.result()
        self._watch.end(totals)
        return Importance(totals=totals, count=self._count)

    def _add(self, batch: Any) -> None:
        size = batch_size(batch)
        if self._refused or size == 1:
            self._totals.add(self._general(batch) if self._refused else self._general.one_at_a_time(batch))
            return
        try:
            self._by_script(batch)
        except UnprovenError as unproven:
            self._fall_back(batch, str(unproven))

    def _by_script(self, batch: Any) -> None:
        key = _signature(batch)
        script = self._script(batch, key)
        if not script.doubtful:
            self._pass(batch, script, self._totals)
            return
        trial = self._totals.empty()
        try:
            self._pass(batch, script, trial)
        except UnprovenError:
            del self._scripts[key]
            trial = self._totals.empty()
            self._pass(batch, self._script(batch, key), trial)
        self._totals.add(trial.result())

    def _script(self, batch: Any, key: tuple[object, ...]) -> Script:
        if key in self._scripts:
            return self._scripts[key]
        reason: Exception | None = None
        for samples in (n for n in _PROBED if n <= batch_size(batch)):
            try:
                self._scripts[key] = self._probed(take(batch, slice(0, samples)))
            except UnlearnKitError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever fails under the mode, the fallback may work
                reason = reason or error
            else:
                return self._scripts[key]
        assert reason is not None, "a batch of one sample is not probed"
        if isinstance(reason, UnprovenError):
            raise reason
        raise UnprovenError(f"{type(reason).__name__}: {_first_line(reason)}") from reason

    def _probed(self, few: Any) -> Script:
        found = probe(self._model, self._objective, few, self._named)
        trial = self._totals.empty()
        self._pass(few, found.script, trial)
        found.check(trial.result(), self._general.one_at_a_time(few))
        return found.script

    def _pass(self, batch: Any, script: Script, totals: Totals) -> None:
        guide = Following(script, batch_size(batch), totals)
        interceptor = Interceptor(self._named, guide, device_of(self._model))
        guide.interceptor = interceptor
        try:
            with interceptor:
                losses = self._objective.losses(self._model, batch)
            losses = check_losses(losses, batch, objective=self._objective)
            script.finish()
            interceptor.backward(losses, torch.ones_like(losses))
            guide.finish()
        finally:
            guide.interceptor = None

    def _fall_back(self, batch: Any, reason: str) -> None:
        self._totals.add(self._general(batch))
        self._refused = True
        self._watch.look(whole=True)  # a NaN is reason enough: the model is not to blame
        warnings.warn(
            f"{type(self._model).__name__} cannot be proven to keep its samples apart at {reason}: going on with "
            f"{self._general.describe()} for the whole model, exactly but two to five times slower",
            UnlearnKitWarning,
            stacklevel=2,
        )


def _signature(batch: Any) -> tuple[object, ...]:
    """Name what the steps of a forward pass may depend on: shapes beside the batch's, dtypes, autocast."""
    shapes = tuple((tuple(t.shape[1:]), t.dtype) for t in tensors(batch))
    return (*shapes, *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
