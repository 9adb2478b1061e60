"""Runs models over data in eval mode: loss and accuracy, and outputs of classifiers, each computed once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import combinations
from math import sqrt
from typing import Any, TypeVar, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import check_batches, feed
from unlearnkit.distributed.collectives import map_shared
from unlearnkit.evaluation.metric import EvaluationInputs, Measurement, NotApplicable
from unlearnkit.evaluation.per_sample import Floats, Ints, class_labels, floats, label_losses, softmax_of
from unlearnkit.models.objective import (
    IGNORED,
    BatchScores,
    Classification,
    CrossEntropy,
    Objective,
    check_objective,
    score_batch,
    total,
    without_autocast,
)
from unlearnkit.models.parameters import buffers, device_of
from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError
from unlearnkit.utils.progress import Progress, length, silent
from unlearnkit.utils.rng import private_rng

T = TypeVar("T")
Values = dict[str, "float | Measurement | NotApplicable | None"]
NORMAL_QUANTILE = 1.96  # half the width of a 95 % interval, in standard errors
SPLITS = ("retain-train", "forget-train", "retain-test", "forget-test")


@final
@attrs.frozen(kw_only=True)
class LossAndAccuracy:
    """Mean loss in nats per sample, and accuracy 0 … 1 on some data; None unless the objective is `CrossEntropy`."""

    loss: float
    accuracy: float | None
    samples: int


def loss_and_accuracy(
    model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None, progress: Progress = silent
) -> LossAndAccuracy:
    """Measure a model in eval mode, without changing it; the batches are moved to its device.

    The loss is `CrossEntropy` by default; a `NonFiniteError` names the batch where it is NaN or infinite. Several
    processes split the work on `unlearnkit.distributed.Shared` batches, and each gets the same result.

    Examples:
        >>> batch = (torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> loss_and_accuracy(nn.Identity(), [batch])
        LossAndAccuracy(loss=0.6931471824645996, accuracy=0.5, samples=2)
    """
    chosen = check_objective(CrossEntropy() if objective is None else objective)

    def scored(batch: Any, number: int) -> BatchScores:
        losses, scores = score_batch(model, batch, objective=chosen)
        if not bool(torch.isfinite(losses).all()):
            raise NonFiniteError(
                f"expected finite losses, saw NaN or infinity in batch {number + 1}: "
                "the model is damaged, or the data hold NaN"
            )
        return scores

    scores = map_batches(model, batches, scored, progress=progress)
    if not scores:
        raise ConfigurationError("expected at least one batch to evaluate on, saw none: no data, or a used-up iterator")
    summed = total(scores)
    return LossAndAccuracy(loss=summed.loss, accuracy=summed.accuracy, samples=summed.samples)


def map_batches(
    model: nn.Module, batches: Iterable[Any], measure: Callable[[Any, int], T], *, progress: Progress = silent
) -> list[T]:
    """Measure each batch, moved to the model's device, in eval mode; processes split `Shared` batches."""
    check_batches(batches, what="evaluation")

    def work(own: Iterable[Any], numbers: Iterator[int]) -> Iterator[T]:
        shown = progress(own, "evaluating", length(own))
        for (_, moved), number in zip(feed(shown, device_of(model)), numbers, strict=False):
            yield measure(moved, number)

    with undisturbed(model):
        return map_shared(batches, work, model=model)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; restores modes, buffers and random state afterwards, but not weights."""
    modes = {module: module.training for module in model.modules()}
    kept = {name: (buffer, buffer.detach().clone()) for name, buffer in buffers(model).items()}
    try:
        model.eval()
        with private_rng(device_of(model)), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in kept.values():
                buffer.copy_(value)


class InapplicableError(Exception):
    """A metric has no value here; the message is the reason. Metrics turn it into `NotApplicable`."""


def _logits(values: Any) -> Floats:
    return floats(values, what="logits", dimensions=2)


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Outputs:
    """Logits, shape (n, classes), and labels of n samples."""

    logits: Floats = attrs.field(converter=_logits)
    labels: Ints

    def __attrs_post_init__(self) -> None:
        class_labels(self.labels, samples=len(self.logits), classes=self.logits.shape[1])

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def probabilities(self) -> Floats:
        """Softmax of the logits."""
        return softmax_of(self.logits)

    @property
    def losses(self) -> Floats:
        """Cross-entropy of each sample, nats."""
        return label_losses(self.logits, self.labels)

    @property
    def confidences(self) -> Floats:
        """Probability of each sample's label."""
        return np.exp(-self.losses)

    @property
    def accuracy(self) -> float:
        """Share of samples whose label has the largest logit."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    def subset(self, rows: Ints) -> "Outputs":
        """Outputs of some samples."""
        return Outputs(logits=self.logits[rows], labels=self.labels[rows])


def some_rows(count: int, most: int, *, seed: int) -> Ints:
    """Indices of all of `count` rows in order, or of `most` of them drawn without replacement."""
    return np.arange(count) if count <= most else np.random.default_rng(seed).permutation(count)[:most]


def outputs_of(model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None) -> Outputs:
    """Run a classifier over data in eval mode, without changing it; the outputs are in the order of the data."""
    classification = classification_of(objective)

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = classification.logits(model, batch), classification.labels(batch)
        if logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
            raise InapplicableError("the model does not predict one label per sample")
        return logits, labels

    logits, labels = map_rows(model, batches, predict)
    if (labels == IGNORED).any():
        raise InapplicableError(f"samples without a label ({IGNORED}) have no class")
    return Outputs(logits=logits, labels=labels)


def _losses_of(model: nn.Module, batches: Iterable[Any], *, objective: Objective) -> Floats:
    def score(batch: Any, _: int) -> Tensor:
        return score_batch(model, batch, objective=objective)[0].to("cpu", torch.float64)

    found = map_batches(model, batches, score)
    if not found:
        raise InapplicableError("the split is empty")
    return floats(torch.cat(found), what="losses", dimensions=1)


def map_rows(
    model: nn.Module, batches: Iterable[Any], rows: Callable[[Any], tuple[Tensor, Tensor]]
) -> tuple[Floats, Ints]:
    """Rows and labels of all batches."""

    def on_cpu(batch: Any, _: int) -> tuple[Tensor, Tensor]:
        values, labels = rows(batch)
        return values.to("cpu", torch.float64), labels.to("cpu")

    found = map_batches(model, batches, on_cpu)
    if not found:
        raise InapplicableError("the split is empty")
    if len(shapes := {part.shape[1:] for part, _ in found}) > 1:
        raise InapplicableError(f"the rows of the batches differ in shape: {', '.join(map(str, map(tuple, shapes)))}")
    values, labels = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return values, labels.astype(np.int64)


def classification_of(objective: Objective | None) -> Classification:
    """The objective, or the one under autocast; `InapplicableError` where it has no classes."""
    chosen = without_autocast(objective or CrossEntropy())
    if not isinstance(chosen, Classification):
        raise InapplicableError(f"{chosen.describe()} is no classification: there are no class probabilities")
    return chosen


@final
class ModelOutputs:
    """The outputs of an evaluation's models on its splits, computed on first use and cached."""

    def __init__(self, inputs: EvaluationInputs, cached: dict[tuple[int, str], Outputs] | None = None) -> None:
        self._inputs = inputs
        self._cached = {} if cached is None else cached
        self._losses = dict[tuple[int, str], Floats]()
        self._labels = dict[str, Ints]()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that exist, in the usual order."""
        return tuple(name for name in SPLITS if name in self._inputs.splits)

    @property
    def objective(self) -> Objective:
        """How a batch becomes losses."""
        return self._inputs.objective

    @property
    def named(self) -> Mapping[str, nn.Module]:
        """Prefix of a value's name to the edited and the original model."""
        models = {"": self._inputs.model}
        if self._inputs.original is not None:
            models["original "] = self._inputs.original
        return models

    def of(self, model: nn.Module, split: str) -> Outputs:
        """Outputs of a model on a split, computed once."""
        key = (id(model), split)
        if key not in self._cached:
            self._cached[key] = outputs_of(model, self.batches(split), objective=self._inputs.objective)
        self.check_order(split, self._cached[key].labels)
        return self._cached[key]

    def check_order(self, split: str, labels: Ints) -> None:
        """Refuse a split that gives its samples in another order than before: models are compared by sample."""
        if not np.array_equal(self._labels.setdefault(split, labels), labels):
            raise MismatchError(
                f"the split {split!r} gave its samples in another order than before: pass a loader that does not "
                "shuffle, or a list of batches"
            )

    def losses(self, model: nn.Module, split: str) -> Floats:
        """The loss of each sample, nats, computed once; the model need not be a classifier of samples."""
        key = (id(model), split)
        if key not in self._losses:
            self._losses[key] = self._measured_losses(model, split)
        return self._losses[key]

    def _measured_losses(self, model: nn.Module, split: str) -> Floats:
        if isinstance(self.objective, CrossEntropy):
            with suppress(InapplicableError):
                return self.of(model, split).losses
        return _losses_of(model, self.batches(split), objective=self.objective)

    def batches(self, split: str) -> Iterable[Any]:
        """Batches of a split, or `InapplicableError`."""
        if split not in self._inputs.splits:
            raise InapplicableError(f"there is no split {split!r}: no such samples at hand")
        return self._inputs.splits[split]

    def retrained(self, at_least: int = 1) -> tuple[nn.Module, ...]:
        """The retrained models, or `InapplicableError` where there are too few."""
        models = self._inputs.retrained
        if len(models) < at_least:
            few = f"at least {at_least} retrained models are needed, saw {len(models)}"
            raise InapplicableError(few if models else "no retrained model at hand")
        return models

    def for_each_split(self, measure: Callable[[str], Values]) -> Values:
        """Join the values of all splits; where there are none, the reasons for each."""
        return {name: value for split in self.splits or SPLITS for name, value in measure(split).items()}

    def for_each_model(
        self, name: str, measure: Callable[[nn.Module], float], retrained: Callable[[], float] | None = None
    ) -> Values:
        """Measure the model, the original, and the retrained models: by default their mean."""
        found: Values = {f"{prefix}{name}": answer(partial(measure, model)) for prefix, model in self.named.items()}
        return {**found, f"retrained {name}": answer(retrained or (lambda: mean(map(measure, self.retrained()))))}

    def for_every_model(
        self, name: str, measure: Callable[[nn.Module], float], error: Callable[[float], float]
    ) -> Values:
        """Measure like `for_each_model`, each retrained model by itself, and the error of the model's own value."""
        each = cache(measure)
        found = self.for_each_model(name, each)
        for number, model in enumerate(self._inputs.retrained, start=1):
            found[f"retrained {number} {name}"] = answer(partial(each, model))
        own = found[name]
        return found | {f"error {name}": error(own) if isinstance(own, float) else own}

    def against_retrained(self, name: str, split: str, between: Callable[[Outputs, Outputs], float]) -> Values:
        """Compare the model and the original with each retrained model, and the retrained models with each other."""

        def to_retrained(model: nn.Module) -> float:
            mine, retrained = self.of(model, split), self.retrained()
            return mean(between(mine, self.of(known, split)) for known in retrained)

        def among_retrained() -> float:
            retrained = [self.of(model, split) for model in self.retrained(at_least=2)]
            return mean(between(one, other) for one, other in combinations(retrained, 2))

        return self.for_each_model(name, to_retrained, among_retrained)


def answer(measure: Callable[[], float]) -> float | NotApplicable:
    """Measure, or return why not; only `InapplicableError` becomes a reason."""
    try:
        return measure()
    except InapplicableError as reason:
        return NotApplicable(str(reason))


def answers(names: Iterable[str], measure: Callable[[], Iterable[float | NotApplicable | None]]) -> Values:
    """Measure several values at once, or return why not for each."""
    try:
        return dict(zip(names, measure(), strict=True))
    except InapplicableError as reason:
        return dict.fromkeys(names, NotApplicable(str(reason)))


def mean(values: Iterable[float]) -> float:
    """The mean of some numbers."""
    return float(np.mean(list(values)))


def sampling_error(p: float, samples: int) -> float:
    """Half the width of the 95 % interval of a share of some samples (the Agresti-Coull form, never 0)."""
    n = samples + NORMAL_QUANTILE**2
    near = (p * samples + NORMAL_QUANTILE**2 / 2) / n
    return NORMAL_QUANTILE * sqrt(near * (1 - near) / n)
