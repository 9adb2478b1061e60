"""The divergence between a class's mean prediction on forgotten and on unseen samples."""

from functools import partial
from typing import ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, for_each_model
from unlearnkit.evaluation.per_sample import LN2, jensen_shannon


@final
@attrs.frozen(kw_only=True)
class ClassMeanDivergence(Metric):
    """Σ_c n_c/n·JS(mean p over forgotten samples of class c, mean p over unseen ones): a proxy without a reference.

    Unseen samples are ``forget-test``, or ``retain-test`` where the forget set has no test samples of its own kind. A
    model that treats forgotten samples as if it had never seen them is near 0, but so may be a model that forgot
    nothing and generalises. The goal is the value of the retrained models, not 0.
    """

    name: ClassVar[str] = "class-mean-js"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=LN2,
        unit="nats",
        source="ours, of Lin 1991, equation 4.1",
        cost="one pass of each model over two splits",
        trust="a proxy: means hide single samples, and a model that forgot nothing can be near 0",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        """Compare the means; see `unlearnkit.Metric.measure`."""
        outputs = ModelOutputs(inputs)
        return for_each_model(outputs, "forget-train", partial(_divergence, outputs))


def _divergence(outputs: ModelOutputs, model: nn.Module) -> float:
    forgotten = outputs.of(model, "forget-train")
    unseen = outputs.of(model, "forget-test" if "forget-test" in outputs.splits else "retain-test")
    classes, counts = np.unique(forgotten.labels, return_counts=True)
    missing = sorted(set(classes.tolist()) - set(unseen.labels.tolist()))
    if missing:
        raise InapplicableError(f"there are no unseen samples of the classes {missing}")

    def means(p: Floats, labels: np.ndarray) -> Floats:
        return np.stack([p[labels == c].mean(axis=0) for c in classes])

    p, q = (means(each.probabilities, each.labels) for each in (forgotten, unseen))
    return min(float(jensen_shannon(p, q) @ counts / counts.sum()), LN2)
