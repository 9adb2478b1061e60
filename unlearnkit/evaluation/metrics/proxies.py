"""Proxies for when there is no retrained model: ZRF, and the divergence of class means."""

from functools import cache, partial
from typing import ClassVar, final

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, outputs_of
from unlearnkit.evaluation.per_sample import LN2, Floats, jensen_shannon
from unlearnkit.models.parameters import copy_of, device_of
from unlearnkit.utils.options import option
from unlearnkit.utils.rng import private_rng


@final
@attrs.frozen(kw_only=True)
class ZeroRetrainForgetting(Metric):
    """ZRF = 1 − mean JS(M(x), T(x)) on the forget set, T untrained: a proxy where there is no retrained model.

    T is a copy of the model whose modules are all reset from the seed. The goal is the value of the retrained models,
    which generalise instead of predicting at random.
    """

    name: ClassVar[str] = "zrf"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Chundawat et al. 2023, ZRF metric",
        cost="one pass of each model and of one untrained model over the forget set",
        trust="a proxy: rewards predictions at random, which a retrained model does not make",
    )

    seed: int = option(0, at_least=0, doc="of the untrained model")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        @cache
        def untrained() -> Floats:
            fresh = _untrained(inputs.model, self.seed)
            return outputs_of(fresh, outputs.batches("forget-train"), objective=inputs.objective).probabilities

        def zrf(model: nn.Module) -> float:
            p = outputs.of(model, "forget-train").probabilities  # first, so that a missing split is the reason
            return min(max(zero_retrain_forgetting(p, untrained()), 0.0), 1.0)

        return outputs.for_each_model("forget-train", zrf)


def zero_retrain_forgetting(p: ArrayLike | Tensor, incompetent: ArrayLike | Tensor) -> float:
    """Return ZRF = 1 − mean JS(p, incompetent) with JS in bits, as in the paper, so that it lies between 0 and 1."""
    return float(1.0 - jensen_shannon(p, incompetent).mean() / LN2)


def _untrained(model: nn.Module, seed: int) -> nn.Module:
    """Copy a model and reset every module that can be reset, inner ones first."""
    fresh = copy_of(model)
    with private_rng(device_of(model), seed=seed):
        with torch.no_grad():
            for p in filter(torch.is_floating_point, fresh.parameters()):
                p.fill_(torch.nan)
        for module in sorted(fresh.modules(), key=lambda module: len([*module.modules()])):
            # Modules such as MultiheadAttention have the second name.
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
    for name, p in fresh.named_parameters():
        if bool(p.isnan().any()):
            where, _, own = name.rpartition(".")
            who = where or type(model).__name__
            raise InapplicableError(f"{who} has no reset_parameters() that sets {own}: there is no untrained model")
    return fresh


@final
@attrs.frozen(kw_only=True)
class ClassMeanDivergence(Metric):
    """Σ_c n_c/n·JS(mean p over forgotten samples of class c, mean p over unseen ones): a proxy without a reference.

    Unseen samples are ``forget-test``, or ``retain-test`` where the forget set has no test samples of its own kind. The
    goal is the value of the retrained models: a model that forgot nothing and generalises may be near 0 too.
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
        outputs = ModelOutputs(inputs)
        return outputs.for_each_model("forget-train", partial(_divergence, outputs))


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
