"""`ImportanceEstimator`, the base class of everything that measures importances."""

import abc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, ClassVar, Literal, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, check_batches, feed, lost_samples, map_tensors, tensors
from unlearnkit.distributed.collectives import all_gather, name_dead_ranks
from unlearnkit.distributed.sharded_tensors import reshard
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role, check_same_on_every_rank
from unlearnkit.models.norm_gradients import norm_gradient_fix
from unlearnkit.models.objective import Objective, check_objective, float32_products
from unlearnkit.models.parameters import check_differentiable, device_of, trainable
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.utils.errors import (
    ConfigurationError,
    MismatchError,
    UnlearnKitWarning,
    UnsupportedModelError,
    raise_all,
)
from unlearnkit.utils.global_state import restored_globals
from unlearnkit.utils.options import class_fault, object_fault, option, option_values, refuse
from unlearnkit.utils.progress import Progress, length, progress_of


@final
@attrs.frozen(kw_only=True)
class EstimatorTraits:
    """What an estimator promises; the laws that apply to it follow from these.

    Attributes:
        unit: ``"sample"``: one term per sample. ``"batch"``: one term per batch.
        labels: Where the labels come from.
        batch_free: Totals do not depend on batch size and order, and I(A) + I(B) = I(A ∪ B).
        quadratic: A loss times c gives totals times c².
        deterministic: The same input gives the same bits on one CPU.
        sharded: Takes a model whose parameters are sharded over processes, as its ``accumulator`` makes possible.
        leaves_weights: Its code never writes to the model's weights, so no copy of them is kept for rollback. A write
            is an error all the same.
    """

    unit: Literal["sample", "batch"] = option("sample", choices=("sample", "batch"), doc="what a term is of")
    labels: Literal["data", "model", "none"] = option("data", choices=("data", "model", "none"), doc="whose labels")
    batch_free: bool = False
    quadratic: bool = False
    deterministic: bool = True
    sharded: bool = False
    leaves_weights: bool = False


class ImportanceEstimator(abc.ABC):
    """Turns a model and data into an `Importance`. Subclass it and write `estimate_batch`.

    `estimate` checks arguments and results, runs the model in eval mode, corrects wrong gradients of some torch norms,
    and leaves the model unchanged, also after an exception.

    Examples:
        >>> class Ones(ImportanceEstimator):
        ...     name = "ones"
        ...     traits = EstimatorTraits(batch_free=True)
        ...     def estimate_batch(self, model, batch, *, objective):
        ...         totals = {n: torch.ones_like(p) * len(batch[0]) for n, p in model.named_parameters()}
        ...         return Importance(totals=totals, count=len(batch[0]))
        >>> from unlearnkit.models.objective import CrossEntropy
        >>> data = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))]
        >>> Ones().estimate(nn.Linear(2, 2), data, objective=CrossEntropy())
        Importance(2 tensors, 6 weights, count=3, samples=3, role=unknown)
    """

    name: ClassVar[str]
    traits: ClassVar[EstimatorTraits] = EstimatorTraits()

    @abc.abstractmethod
    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Measure one batch.

        Args:
            model: In eval mode, on its device, every ``.grad`` None. Leave it as it is.
            batch: On the model's device.
            objective: Its `losses` gives one loss per sample.

        Returns:
            One total per trainable parameter (see `unlearnkit.models.trainable`), in at least float32, on the model's
            device, and how many terms it has. The framework adds fingerprint, sample count, trail and relative error.
        """

    def relative_error(self, sizes: Mapping[int, int]) -> float | None:
        """Bound the relative standard deviation of a weight's total; override it when random numbers are drawn.

        Args:
            sizes: Batch size to how many batches of that size.

        Returns:
            0.0 when totals are exact but for rounding; None when no bound is known.
        """
        del sizes
        return 0.0

    def accumulator(self, model: nn.Module, *, objective: Objective) -> "Accumulator":
        """Start one pass over data; override it to keep state between batches. Arguments as for `estimate_batch`."""
        return _Merging(self, model, objective)

    @final
    def estimate(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        objective: Objective,
        role: Role | str = Role.UNKNOWN,
        progress: Progress | bool = True,
        snapshot: ModelSnapshot | None = None,
    ) -> Importance:
        """Measure all batches.

        For a model that is sharded over processes, every process must call this with the same batches in the same
        order; the result is sharded like the model.

        Args:
            model: Runs on its device, in eval mode: dropout off, BatchNorm on its running statistics. Left unchanged.
            batches: A data loader or any iterable of batches.
            objective: How a batch becomes losses.
            role: Which set this is; recorded.
            progress: Whether to show a bar on a terminal and in a notebook, or a function that shows one.
            snapshot: One of the model as it is now, by `snapshot_of`, whose digest and check for finite weights are
                used again.

        Raises:
            ConfigurationError: No data, a model without trainable parameters, or an estimator class without a valid
                name or with options that would not be recorded.
            NonFiniteError: A NaN or an infinity in the model or in a batch's importance, naming parameter and batch.
            MismatchError: The estimator returned something that does not fit the model, or changed the model; or the
                model is sharded and the processes saw different data.
            UnsupportedModelError: Weights are complex, or have no values yet; or the model is sharded and the
                estimator cannot take it.
        """
        refuse(class_fault(type(self)) or object_fault(self))
        check_objective(objective)
        check_data(batches, Role(role))
        with restored_globals(), _own_context(model):
            return self._estimate(
                model, batches, objective=objective, role=Role(role), progress=progress_of(progress), snapshot=snapshot
            )

    def _estimate(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        objective: Objective,
        role: Role,
        progress: Progress,
        snapshot: ModelSnapshot | None,
    ) -> Importance:
        total, trail, samples, moved = None, DataOrder(), 0, None
        snapshot = snapshot or self.snapshot_of(model)
        try:
            snapshot.hide_gradients()
            sharded, device, named = self._sharded(model), device_of(model), trainable(model)
            snapshot.check_finite(when="before an importance is estimated")
            fingerprint = fingerprint_of(self, snapshot.digest, objective=objective)
            if sharded:
                batches = check_same_on_every_rank(batches, snapshot.digest)
            model.eval()
            pass_ = self.accumulator(model, objective=objective)
            collective = name_dead_ranks if sharded else nullcontext
            norms = nullcontext if pass_.fixes_norm_gradients else norm_gradient_fix(model)
            shown = progress(batches, f"importance: {role.value}", length(batches))
            for index, (batch, moved) in enumerate(feed(shown, device)):
                try:
                    trail, samples = trail.add(batch), samples + batch_size(batch)
                    with torch.enable_grad(), collective(), norms():
                        self._add(pass_, _outside_inference_mode(moved))
                except Exception as error:
                    _name_cached_tensor(model, error)
                    error.add_note(f"in batch {index} (counted from 0) of estimator {self.name!r}")
                    raise
            if sharded:
                _check_same_data(trail)
            if samples:
                total = pass_.result()
                self._check(total, named)
            self._check_untouched(snapshot, lambda: objective.losses(model, moved))
            snapshot.restore_surroundings()
        except BaseException:
            snapshot.restore()
            raise
        if total is None:
            raise ConfigurationError(
                f"expected data for the {role.value} importance, saw an empty iterable: "
                "a generator can be read only once, and an empty set has no importance"
            )
        return attrs.evolve(
            total,
            samples=samples,
            trail=trail,
            role=role,
            relative_error=self.relative_error(trail.sizes),
            fingerprint=with_precision(fingerprint, total, pass_.differentiated() or named),
        )

    @final
    def snapshot_of(self, model: nn.Module) -> ModelSnapshot:
        """Check that a model can be differentiated, and take a snapshot of it for `estimate`."""
        check_differentiable(model)
        reshard(model)
        return ModelSnapshot(model, copies=not self.traits.leaves_weights or any(map(_overrides_mode, model.modules())))

    def _sharded(self, model: nn.Module) -> bool:
        sharded = reshard(model)
        if sharded and not self.traits.sharded:
            raise UnsupportedModelError(
                f"estimator {self.name!r}: expected a model that is not sharded, saw one whose parameters "
                "are sharded (FSDP, DTensor): of the estimators that come with unlearnkit diagonal-fisher, "
                "sketched-fisher and batched-diagonal-fisher take one"
            )
        return sharded

    def _add(self, pass_: "Accumulator", batch: Any) -> None:
        try:
            pass_.add(batch)
        except RuntimeError as error:
            if "not have gradient" not in str(error) and "does not require grad" not in str(error):
                raise
            raise UnsupportedModelError(
                "expected a loss that depends on a trainable parameter through differentiable operations, saw one that "
                "does not: is the model called under torch.no_grad()?"
            ) from error

    def _check(self, total: Any, named: Mapping[str, nn.Parameter]) -> None:
        who = f"estimator {self.name!r} ({type(self).__module__}.{type(self).__qualname__})"
        if not isinstance(total, Importance):
            raise MismatchError(f"{who}: expected an Importance, saw {type(total).__name__}")
        problems = total.name_problems(named, shapes_only=True)
        problems += [
            f"{name}: expected a total on {named[name].device}, saw {t.device}"
            for name, t in total.totals.items()
            if name in named and t.device != named[name].device
        ]
        if total.count == 0:
            problems.append("expected a count of at least one term, saw 0")
        raise_all(problems, where=who)
        total.check_values(who=who)

    def _check_untouched(self, snapshot: ModelSnapshot, forward: Callable[[], object]) -> None:
        problems = snapshot.structure_changes()
        weights = snapshot.changed_parameters()
        problems += [f"{name}: an estimator must not edit parameters" for name in weights]
        written = snapshot.changed_buffers()
        if written:
            snapshot.restore_surroundings()
            with torch.no_grad(), suppress(Exception):
                forward()
            if snapshot.changed_buffers() == written:
                raise UnsupportedModelError(
                    f"expected a model that leaves its buffers alone in eval mode, saw {', '.join(written)} written by "
                    "its forward pass (an observer of quantisation, a counter): switch that off; the model was put back"
                )
        problems += [f"{name}: an estimator must not edit buffers" for name in written]
        back = "it was put back"
        if weights and self.traits.leaves_weights:
            back = "all but its weights was put back, of which it keeps no copy: load them again"
        raise_all(problems, where=f"estimator {self.name!r} changed the model, or its forward pass did ({back})")


def check_data(batches: Any, role: Role) -> None:
    """Refuse a data set in place of batches, and for a forget set a loader that does not read each sample once."""
    check_batches(batches, what=f"data of the {role.value} importance")
    lost = lost_samples(batches)
    if lost and role is Role.FORGET:
        raise ConfigurationError(f"forget set: expected a loader that reads each sample once: {lost}")
    if lost:
        warnings.warn(f"data of the {role.value} importance: {lost}", UnlearnKitWarning, stacklevel=3)


@contextmanager
def _own_context(model: nn.Module) -> Iterator[None]:
    """Keep autocast, inference mode and default dtype of the caller out of an estimate."""
    default, kinds = torch.get_default_dtype(), {p.dtype for p in model.parameters() if p.is_floating_point()}
    torch.set_default_dtype(torch.float64 if kinds == {torch.float64} else torch.float32)
    try:
        with torch.inference_mode(mode=False), ExitStack() as off:
            for device in {p.device.type for p in model.parameters()}:
                if torch.amp.is_autocast_available(device):
                    off.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.set_default_dtype(default)


def _outside_inference_mode(batch: Any) -> Any:
    """Copy tensors that were made under inference mode, which autograd cannot save."""
    return map_tensors(batch, lambda t: t.clone() if t.is_inference() else t)


def _name_cached_tensor(model: nn.Module, error: Exception) -> None:
    """Say which module keeps a tensor of an earlier pass, where that is why autograd fails."""
    if "backward through the graph a second time" not in str(error):
        return
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and any(t.grad_fn is not None for t in tensors(value)):
                raise UnsupportedModelError(
                    f"expected a forward pass that computes everything anew, saw {name or type(module).__name__} keep "
                    f"a tensor of an earlier pass in its attribute {key!r}: clear it, or do not cache it in eval mode"
                ) from error


class Accumulator(abc.ABC):
    """One pass over data: batches go in, one importance comes out.

    Attributes:
        fixes_norm_gradients: Whether the pass itself corrects torch's wrong gradients of some norms
            (`norm_gradient_fix`); if not, the framework does.
    """

    fixes_norm_gradients: ClassVar[bool] = False

    @abc.abstractmethod
    def add(self, batch: Any) -> None:
        """Add one batch, which is on the model's device."""

    @abc.abstractmethod
    def result(self) -> Importance:
        """End the pass; return totals and count, to which the framework adds the rest."""

    def differentiated(self) -> Mapping[str, Tensor] | None:
        """Return by name the tensors whose gradients were taken, when they are not the model's parameters."""
        return None


@final
class _Merging(Accumulator):
    """Adds up the importances of batches."""

    def __init__(self, estimator: ImportanceEstimator, model: nn.Module, objective: Objective) -> None:
        self._estimator, self._model, self._objective = estimator, model, objective
        self._named = trainable(model)
        self._total: Importance | None = None

    def add(self, batch: Any) -> None:
        self._model.zero_grad()  # or the author's backward would add to that of the batch before
        one = self._estimator.estimate_batch(self._model, batch, objective=self._objective)
        self._estimator._check(one, self._named)  # noqa: SLF001 - same module
        if self._total is None:
            # A copy, in the model's order: the author may return the same tensors for every batch.
            totals = {name: one.totals[name].clone() for name in self._named}
            self._total = Importance(totals=totals, count=one.count)
            return
        for name, total in self._total.totals.items():
            total.add_(one.totals[name])
        self._total = attrs.evolve(self._total, count=self._total.count + one.count)

    def result(self) -> Importance:
        if self._total is None:
            raise ConfigurationError("expected at least one batch before the end of the pass, saw none")
        return self._total


def _check_same_data(trail: DataOrder) -> None:
    seen = all_gather((dict(trail.sizes), trail.order))
    raise_all(
        (f"rank {rank} saw others than rank 0" for rank, theirs in enumerate(seen) if theirs != seen[0]),
        where="expected the same batches in the same order in every process (give a shuffling loader one seed)",
    )


def fingerprint_of(estimator: ImportanceEstimator, model_digest: str, *, objective: Objective) -> Fingerprint:
    """Return the fingerprint of an importance before it is measured."""
    return Fingerprint(
        estimator=estimator.name,
        unit=estimator.traits.unit,
        labels=estimator.traits.labels,
        objective=objective.describe(),
        options=options_text(estimator),
        model=model_digest,
    )


def options_text(estimator: ImportanceEstimator) -> str:
    """Write the options of an estimator that change its result, for a fingerprint."""
    return ", ".join(f"{key}={value!r}" for key, value in option_values(estimator, meaning_only=True).items())


def with_precision(fingerprint: Fingerprint, total: Importance, named: Mapping[str, Tensor]) -> Fingerprint:
    """Write the dtypes of gradients and totals into a fingerprint, and how float32 was multiplied."""
    gradients = sorted({str(p.dtype).removeprefix("torch.") for p in named.values()})
    totals = sorted({str(t.dtype).removeprefix("torch.") for t in total.totals.values()})
    devices = {p.device.type: p.device for p in named.values() if p.dtype == torch.float32}
    products = [text for text in map(float32_products, devices.values()) if text]
    return attrs.evolve(
        fingerprint, precision=", ".join([f"gradients {'/'.join(gradients)}", f"totals {'/'.join(totals)}", *products])
    )


def _overrides_mode(module: nn.Module) -> bool:
    """Whether a module has a ``train()`` or ``eval()`` of its own, where adapters may be merged into weights."""
    own = type(module)
    return own.train is not nn.Module.train or own.eval is not nn.Module.eval
