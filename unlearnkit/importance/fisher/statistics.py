"""More than the Fisher out of one pass: totals per group, Σ|g|, the mean gradient, squares of batch gradients."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, pick
from unlearnkit.distributed.sharded_tensors import refuse_sharded
from unlearnkit.importance.estimator import (
    Accumulator,
    EstimatorTraits,
    ImportanceEstimator,
    check_data,
    options_text,
    with_precision,
)
from unlearnkit.importance.fisher.batched import BatchedDiagonalFisher
from unlearnkit.importance.fisher.diagonal import DiagonalFisher, start
from unlearnkit.importance.fisher.engine.engine import Engine
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import trainable
from unlearnkit.utils.errors import MismatchError
from unlearnkit.utils.progress import Progress, length

Key = int | str | Callable[[Any], Iterable[Hashable]]
"""Where the group of each sample stands in a batch (see `unlearnkit.data.batches.pick`), or what tells them."""


def _frozen(groups: Mapping[Hashable, Importance]) -> Mapping[Hashable, Importance]:
    return MappingProxyType(dict(groups))


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class FisherStatistics:
    """What one pass over data found out.

    Attributes:
        importance: Σ_i g_i², as `DiagonalFisher` estimates it.
        groups: Group to the importance of its samples alone; empty when no key was given. They add up to
            ``importance``. A group's trail is empty: its samples are strewn over the batches.
        absolute: Σ_i |g_i|, or None when it was not asked for.
        gradient: Parameter name to the mean gradient 1/N Σ_i g_i, or None. It has signs, so it is no importance.
        batched: Σ_b n_b (1/n_b Σ_{i∈b} g_i)², as `BatchedDiagonalFisher` estimates it by default, or None.
    """

    importance: Importance
    groups: Mapping[Hashable, Importance] = attrs.field(factory=dict[Hashable, Importance], converter=_frozen)
    absolute: Importance | None = None
    gradient: Mapping[str, Tensor] | None = None
    batched: Importance | None = None

    def __repr__(self) -> str:
        more = [name for name in ("absolute", "gradient", "batched") if getattr(self, name) is not None]
        return f"FisherStatistics({self.importance!r}, groups={len(self.groups)}, and {', '.join(more) or 'no more'})"


def fisher_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    key: Key | None = None,
    absolute: bool = False,
    gradient: bool = False,
    fisher: DiagonalFisher | None = None,
    role: Role | str = Role.UNKNOWN,
    progress: Progress | bool = True,
) -> FisherStatistics:
    """Estimate the diagonal Fisher, and more in the same pass.

    Each group takes one set of totals in memory, and time only for batches that hold several groups: order the data by
    group. ``gradient`` takes three sets of totals, ``absolute`` one, and each about a tenth of a pass.

    Args:
        model: As for `ImportanceEstimator.estimate`.
        batches: As there; groups may be mixed within a batch.
        objective: As there.
        key: Which group each sample belongs to: a field of the batch by position or name (``-1`` for the labels of
            ``(x, y)``), or a function of the batch on the host that returns one hashable key for each sample.
        absolute: Whether to add Σ|g| up.
        gradient: Whether to take the mean gradient and the squares of batch gradients.
        fisher: Options of the estimate.
        role: As there.
        progress: As there.

    Raises:
        MismatchError: Not one key for each sample, or what `ImportanceEstimator.estimate` raises.

    Examples:
        >>> import torch
        >>> from unlearnkit import CrossEntropy
        >>> data = [(torch.eye(4)[:, :2], torch.tensor([0, 1, 0, 1]))]
        >>> found = fisher_statistics(nn.Linear(2, 2), data, objective=CrossEntropy(), key=-1, gradient=True)
        >>> found
        FisherStatistics(Importance(2 tensors, 6 weights, count=4, samples=4, role=unknown), groups=2, and gradient, \
batched)
        >>> found.groups[1].count
        2
    """
    refuse_sharded(model.parameters(), who="several importances from one pass", instead="estimate each group by itself")
    fisher = fisher if fisher is not None else DiagonalFisher()
    if key is not None:  # what is passed on is no loader
        check_data(batches, Role(role))
    keyed = _Keyed(batches, key) if key is not None else None
    survey = _Survey(fisher=fisher, absolute=absolute, gradient=gradient, keyed=keyed)
    whole = survey.estimate(model, keyed or batches, objective=objective, role=role, progress=progress)
    named = trainable(model)
    print_ = attrs.evolve(whole.fingerprint, options=options_text(fisher))
    whole = attrs.evolve(whole, fingerprint=print_)
    (engine,) = survey.engines
    return FisherStatistics(
        importance=whole,
        groups=_groups(engine, whole) if key is not None else {},
        absolute=_absolute(engine, whole) if absolute else None,
        gradient={name: g.div_(whole.count) for name, g in engine.gradients.signed().items()} if gradient else None,
        batched=_batched(engine, whole, named) if gradient else None,
    )


def estimate_groups(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    key: Key,
    fisher: DiagonalFisher | None = None,
    progress: Progress | bool = True,
) -> dict[Hashable, Importance]:
    """Estimate the diagonal Fisher of each class, user or other group of samples, in one pass; see `fisher_statistics`.

    Any set of groups can then be forgotten without touching data again: their importances add up, and that of the rest
    is the difference.

    Returns:
        Group to the importance of its samples, in the order in which the groups were first seen.

    Examples:
        >>> import torch
        >>> from unlearnkit import CrossEntropy
        >>> data = [(torch.eye(4)[:, :2], torch.tensor([0, 1, 0, 1]))]
        >>> groups = estimate_groups(nn.Linear(2, 2), data, objective=CrossEntropy(), key=-1)
        >>> sorted(groups), (groups[0] + groups[1]).samples
        ([0, 1], 4)
    """
    found = fisher_statistics(model, batches, objective=objective, key=key, fisher=fisher, progress=progress)
    return dict(found.groups)


@final
class _Keyed:
    """Yields batches and keeps the keys of those that have not been added yet: some may be fetched ahead."""

    def __init__(self, batches: Iterable[Any], key: Key) -> None:
        self._batches, self._key = batches, key
        self.waiting: deque[list[Hashable]] = deque()

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.waiting.append(self._keys(batch))
            yield batch

    def __len__(self) -> int:
        known = length(self._batches)
        if known is None:
            raise TypeError("these batches have no length")
        return known

    def _keys(self, batch: Any) -> list[Hashable]:
        found = self._key(batch) if callable(self._key) else pick(batch, self._key, what="group keys")
        keys = found.tolist() if isinstance(found, Tensor) else list(found)
        if len(keys) != batch_size(batch) or any(isinstance(k, list) for k in keys):
            raise MismatchError(
                f"expected one hashable key for each of the {batch_size(batch)} samples of a batch, saw {len(keys)} "
                f"of type {type(keys[0]).__name__ if keys else 'none'}: check key"
            )
        return keys


@final
@attrs.frozen(kw_only=True, eq=False)
class _Survey(ImportanceEstimator):
    """A `DiagonalFisher` whose pass is kept, so that what else it holds can be read."""

    name: ClassVar[str] = DiagonalFisher.name
    traits: ClassVar[EstimatorTraits] = DiagonalFisher.traits

    _fisher: DiagonalFisher
    _absolute: bool
    _gradient: bool
    _keyed: _Keyed | None
    engines: list[Engine] = attrs.field(factory=list, init=False)

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        keys = self._keyed.waiting.popleft if self._keyed is not None else None
        engine = start(
            self._fisher, model, objective=objective, absolute=self._absolute, gradient=self._gradient, keys=keys
        )
        self.engines.append(engine)
        return engine

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        return self._fisher.estimate_batch(model, batch, objective=objective)


def _groups(engine: Engine, whole: Importance) -> dict[Hashable, Importance]:
    return {
        key: attrs.evolve(whole, totals=totals, count=count, samples=count, trail=DataOrder())
        for key, count, totals in engine.groups()
    }


def _absolute(engine: Engine, whole: Importance) -> Importance:
    print_ = attrs.evolve(whole.fingerprint, estimator="absolute-gradient", options="")
    return attrs.evolve(whole, totals=engine.absolute(), fingerprint=print_)


def _batched(engine: Engine, whole: Importance, named: Mapping[str, nn.Parameter]) -> Importance:
    estimator = BatchedDiagonalFisher()
    print_: Fingerprint = attrs.evolve(
        whole.fingerprint, estimator=estimator.name, unit=estimator.traits.unit, options=options_text(estimator)
    )
    found = attrs.evolve(whole, totals=engine.gradients.squares(), fingerprint=print_)
    return attrs.evolve(found, fingerprint=with_precision(print_, found, named))
