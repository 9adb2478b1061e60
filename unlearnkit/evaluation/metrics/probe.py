"""What a linear probe still reads from the features."""

from collections.abc import Mapping
from functools import cache, partial
from typing import ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, Values, beside
from unlearnkit.evaluation.outputs import InapplicableError
from unlearnkit.evaluation.probe import Features, Probe, features_of, linear_probe
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class LinearProbe(Metric):
    """Accuracy of a logistic regression on penultimate features: is what was forgotten still there, behind the head?

    The probe learns the classes of the training data, forgotten and retained, from the features that the model gives
    them, and is judged on unseen samples: ``"forget-test"`` and ``"retain-test"``, for the model, the original and the
    mean of the retrained models. An edit of the last layer alone leaves it where the original's is. See
    `unlearnkit.evaluation.probe`.
    """

    name: ClassVar[str] = "linear-probe"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each model",
        trust="features of other classes serve an unknown one too: only the difference to a retrained model counts",
    )

    layer: str = option("", doc="layer whose input is probed; left out, the Linear that is called last")
    seed: int = option(0, at_least=0, doc="of the solver and of which samples are learnt from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Fit and judge; see `unlearnkit.Metric.measure`."""
        sheet, trained = ModelOutputs(inputs), cache(partial(self._probe, inputs))  # one fit for both splits

        def accuracy(split: str, model: nn.Module) -> float:
            judge = self._features(inputs, split, model)
            return trained(model).accuracy(judge)

        values: Values = {}
        for split in ("forget-test", "retain-test"):
            values |= beside(sheet, split, partial(accuracy, split))
        return values

    def _probe(self, inputs: EvaluationInputs, model: nn.Module) -> Probe:
        forgotten, retained = (self._features(inputs, name, model) for name in ("forget-train", "retain-train"))
        learn = forgotten.and_also(retained).some(self.most, seed=self.seed)
        if len(np.unique(learn.labels)) < 2:
            raise InapplicableError("the training data have one class only: there is nothing to tell apart")
        return linear_probe(learn, seed=self.seed)

    def _features(self, inputs: EvaluationInputs, split: str, model: nn.Module) -> Features:
        if split not in inputs.splits:
            raise InapplicableError(f"there is no split {split!r}: no such samples at hand")
        return features_of(model, inputs.splits[split], layer=self.layer, objective=inputs.objective)
