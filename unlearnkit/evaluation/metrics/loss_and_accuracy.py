"""Loss and accuracy on every split, with intervals over samples."""

from functools import partial
from typing import ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, answers, mean
from unlearnkit.evaluation.per_sample import floats
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import option

RESAMPLES = 2000
_NUMBERS = 10_000_000  # drawn at once, to bound memory


@final
@attrs.frozen(kw_only=True)
class Scores(Metric):
    """Σ_i ℓ_i/n and Σ_i [ŷ_i = y_i]/n on each split: loss and accuracy, every sample weighing the same.

    ``"SPLIT loss"`` and ``"SPLIT accuracy"`` of the model, the original and the mean of the retrained models; of the
    model also ``"… low"`` and ``"… high"``, the ends of 95 % intervals over samples: Wilson's for accuracy, the
    bootstrap for loss.
    """

    name: ClassVar[str] = "loss-and-accuracy"
    traits: ClassVar[MetricTraits] = MetricTraits(
        unit="nats; fraction",
        source="definition; Wilson 1927; Efron 1979",
        cost="one pass of each model over each split",
        trust="the intervals cover samples only: another training seed may lie outside; low forget accuracy is no goal",
    )

    seed: int = option(0, at_least=0, doc="of the bootstrap")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        return outputs.for_each_split(partial(self._measure, outputs, inputs.model))

    def _measure(self, outputs: ModelOutputs, model: nn.Module, split: str) -> Values:
        def accuracy_interval() -> tuple[float, float]:
            found = outputs.of(model, split)
            interval = proportion_interval(found.logits.argmax(axis=1) == found.labels)
            return interval.low, interval.high

        def loss_interval() -> tuple[float, float]:
            losses = outputs.losses(model, split)
            if len(losses) < 2:
                raise InapplicableError("an interval of the loss needs at least 2 samples, saw 1")
            interval = mean_interval(losses, seed=self.seed)
            return interval.low, interval.high

        return {
            **outputs.for_each_model(f"{split} accuracy", lambda each: outputs.of(each, split).accuracy),
            **outputs.for_each_model(f"{split} loss", lambda each: mean(outputs.losses(each, split))),
            **answers((f"{split} accuracy low", f"{split} accuracy high"), accuracy_interval),
            **answers((f"{split} loss low", f"{split} loss high"), loss_interval),
        }


@final
@attrs.frozen(kw_only=True)
class Interval:
    """A confidence interval of a mean; ``covers`` says what varies at random, such as samples or training seeds."""

    low: float
    high: float
    level: float
    covers: str


def proportion_interval(right: ArrayLike | Tensor, *, level: float = 0.95, covers: str = "samples") -> Interval:
    """Return Wilson's interval of a share, as of an accuracy.

    ``right`` has 0 or 1 of each sample; ``covers``, what varies at random, is for the record. Unlike the bootstrap, it
    does not shrink to nothing where all predictions are right, or none.

    Source: Wilson 1927 (Probable Inference, the Law of Succession, and Statistical Inference).

    Examples:
        >>> found = proportion_interval([1, 1, 1, 1])
        >>> round(found.low, 3), found.high
        (0.51, 1.0)
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - it takes seconds to import

    hits = floats(right, what="right", dimensions=1)
    _check(level)
    if not np.isin(hits, (0.0, 1.0)).all():
        raise ConfigurationError("proportion_interval: expected 0 or 1 for each sample, saw another number")
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(level, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), level=level, covers=covers)


def mean_interval(
    values: ArrayLike | Tensor, *, level: float = 0.95, covers: str = "samples", seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean, from 2,000 resamples.

    The values, shape (n,), n ≥ 2, are of samples or of training seeds: ``covers`` records what varies at random, as an
    interval over ``"samples"`` says nothing about another training run. With a handful of values it is too narrow.

    Source: Efron 1979 (Bootstrap Methods: Another Look at the Jackknife).

    Examples:
        >>> mean_interval([1.0, 1.0, 1.0])
        Interval(low=1.0, high=1.0, level=0.95, covers='samples')
    """
    from scipy.stats import bootstrap  # noqa: PLC0415 - it takes seconds to import

    numbers = floats(values, what="values", dimensions=1)
    _check(level)
    if len(numbers) < 2:
        raise ConfigurationError(f"mean_interval: expected at least 2 values, saw {len(numbers)}")
    found = bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _NUMBERS // len(numbers)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high), level=level, covers=covers)


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigurationError(f"level: expected a share between 0 and 1, saw {level!r}")
