"""How differently forgotten and unseen samples of a class are treated on average: a proxy without a reference."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, final

import attrs
import numpy as np
from torch import nn

from unlearnkit.evaluation.divergence import LN2, jensen_shannon
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, beside
from unlearnkit.evaluation.outputs import InapplicableError, Outputs


@final
@attrs.frozen(kw_only=True)
class ClassMeanDivergence(Metric):
    """Σ_c n_c/n·JS(mean p over forgotten samples of class c, mean p over unseen ones): a proxy without a reference.

    Unseen samples are ``forget-test``, or ``retain-test`` where the forget set has no test samples of its own kind. A
    model that treats forgotten samples as if it had never seen them is near 0, and so may be one that forgot nothing
    and generalises. Beside it stand the original and the mean of the retrained models: theirs is the goal, not 0. See
    `unlearnkit.evaluation.divergence.jensen_shannon`.
    """

    name: ClassVar[str] = "class-mean-js"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=LN2,
        unit="nats",
        source="ours, of Lin 1991, equation 4.1",
        cost="one pass of each model over two splits",
        trust="a proxy: means hide what single samples tell, and a model that forgot nothing can be near 0",
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Compare the means; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        return beside(sheet, "forget-train", partial(_divergence, sheet))


def _divergence(sheet: ModelOutputs, model: nn.Module) -> float:
    forgotten = sheet.of(model, "forget-train")
    unseen = sheet.of(model, "forget-test" if "forget-test" in sheet.splits else "retain-test")
    classes, counts = np.unique(forgotten.labels, return_counts=True)
    missing = sorted(set(classes.tolist()) - set(unseen.labels.tolist()))
    if missing:
        raise InapplicableError(f"there are no unseen samples of the classes {missing}")
    means = (np.stack([_mean(outputs, c) for c in classes]) for outputs in (forgotten, unseen))
    return min(float(jensen_shannon(*means) @ counts / counts.sum()), LN2)


def _mean(outputs: Outputs, label: int) -> np.ndarray:
    found: np.ndarray = outputs.probabilities[outputs.labels == label].mean(axis=0)
    return found
