"""Zero-retrain forgetting: how random the predictions on the forget set are."""

import copy
from functools import cache
from typing import ClassVar, final

import attrs
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, for_each_model, outputs_of
from unlearnkit.evaluation.per_sample import LN2, jensen_shannon
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.options import option
from unlearnkit.utils.rng import private_rng


@final
@attrs.frozen(kw_only=True)
class ZeroRetrainForgetting(Metric):
    """ZRF = 1 − mean JS(M(x), T(x)) on the forget set, T untrained: a proxy where there is no retrained model.

    T is a copy of the model whose layers are all initialised again from the seed; there is no ZRF where a layer with
    weights has no `reset_parameters`. The goal is the value of the retrained models, not 1. See
    `zero_retrain_forgetting`.
    """

    name: ClassVar[str] = "zrf"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Chundawat et al. 2023, ZRF metric",
        cost="one pass of each model and of one untrained model over the forget set",
        trust="a proxy: rewards predictions at random, which a retrained model does not make",
    )

    seed: int = option(0, at_least=0, doc="of the untrained model")

    def measure(self, inputs: EvaluationInputs) -> Values:
        """Measure it on the forget set; see `unlearnkit.Metric.measure`."""
        outputs = ModelOutputs(inputs)

        @cache
        def untrained() -> Floats:
            fresh = _untrained(inputs.model, self.seed)
            return outputs_of(fresh, outputs.batches("forget-train"), objective=inputs.objective).probabilities

        def zrf(model: nn.Module) -> float:
            p = outputs.of(model, "forget-train").probabilities  # first, so that a missing split is the reason
            return min(max(zero_retrain_forgetting(p, untrained()), 0.0), 1.0)

        return for_each_model(outputs, "forget-train", zrf)


def zero_retrain_forgetting(p: ArrayLike | Tensor, incompetent: ArrayLike | Tensor) -> float:
    """Return ZRF = 1 − mean JS(M(x), T(x)), M the unlearned model, T an untrained one, x in the forget set.

    A proxy for when there is no retrained model: a retrained model generalises instead of predicting at random, so a
    ZRF above its own is no better. JS is in bits here, so that ZRF lies between 0 and 1 as in the paper; in nats it
    could not fall below 1 − ln 2.

    Source: Chundawat, Tarun, Mandal and Kankanhalli 2023 (Can Bad Teaching Induce Forgetting?), "ZRF metric".

    Args:
        p: The unlearned model's class probabilities, shape (n, classes).
        incompetent: Those of an untrained model, for the same samples.

    Example:
        >>> zero_retrain_forgetting([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
        0.5
    """
    return float(1.0 - jensen_shannon(p, incompetent).mean() / LN2)


def _untrained(model: nn.Module, seed: int) -> nn.Module:
    fresh = copy.deepcopy(model)
    with private_rng(device_of(model), seed=seed):
        for name, module in fresh.named_modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise InapplicableError(
                    f"{name or type(module).__name__} has no reset_parameters(): there is no untrained model"
                )
            reset()
    return fresh
