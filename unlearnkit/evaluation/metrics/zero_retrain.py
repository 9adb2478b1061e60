"""ZRF against a copy of the model whose every layer starts anew."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, beside
from unlearnkit.evaluation.outputs import InapplicableError
from unlearnkit.evaluation.zrf import zero_retrain_forgetting
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.options import option
from unlearnkit.utils.rng import private_rng


@final
@attrs.frozen(kw_only=True)
class ZeroRetrainForgetting(Metric):
    """ZRF = 1 − mean JS(M(x), T(x)) on the forget set, T untrained: a proxy where there is no retrained model.

    T is a copy of the model in which every layer is initialised anew, from the seed; a model in which one layer holds
    weights and cannot do that has no ZRF here. Beside it stand the values of the original and of the retrained models:
    theirs is the goal, not 1. See `unlearnkit.evaluation.zrf.zero_retrain_forgetting`.
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

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure it on the forget set; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        return beside(sheet, "forget-train", partial(self._zrf, sheet, inputs))

    def _zrf(self, sheet: ModelOutputs, inputs: EvaluationInputs, model: nn.Module) -> float:
        p = sheet.of(model, "forget-train").probabilities
        incompetent = ModelOutputs(attrs.evolve(inputs, model=_untrained(inputs.model, self.seed)))
        q = incompetent.of(incompetent.named[""], "forget-train").probabilities
        return min(max(zero_retrain_forgetting(p, q), 0.0), 1.0)


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
