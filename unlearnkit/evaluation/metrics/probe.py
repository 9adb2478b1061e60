"""What a linear classifier can still read from a model's features."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, ClassVar, final

import attrs
import numpy as np
from torch import Tensor, nn

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import (
    InapplicableError,
    ModelOutputs,
    Values,
    classification_of,
    map_rows,
    some_rows,
)
from unlearnkit.evaluation.per_sample import Floats, Ints, floats
from unlearnkit.models.objective import Objective
from unlearnkit.utils.errors import ConfigurationError, nearest
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class LinearProbe(Metric):
    """Accuracy of a logistic regression on penultimate features: is the forgotten class still there, behind the head?

    The probe learns the classes of the training data, forgotten and retained, from their features, and is judged on
    unseen samples. An edit of the last layer alone does not change it.
    """

    name: ClassVar[str] = "linear-probe"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each model",
        trust="features of other classes help with an unknown one: only the difference to a retrained model counts",
    )

    layer: str = option("", doc="layer whose input is probed; by default the Linear that is called last")
    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def features(split: str, model: nn.Module) -> tuple[Floats, Ints]:
            return features_of(model, outputs.batches(split), layer=self.layer, objective=inputs.objective)

        @cache  # one fit for both splits
        def probe(model: nn.Module) -> Any:
            splits = [features(split, model) for split in ("forget-train", "retain-train")]
            values, labels = (np.concatenate(parts) for parts in zip(*splits, strict=True))
            rows = some_rows(len(labels), self.most, seed=self.seed)
            if len(np.unique(labels[rows])) < 2:
                raise InapplicableError("the training data have one class only: there is nothing to tell apart")
            return linear_probe(values[rows], labels[rows], seed=self.seed)

        def accuracy(split: str, model: nn.Module) -> float:
            judged = features(split, model)  # first, so that a missing split is the reason
            return float(probe(model).score(*judged))

        forget, retain = (outputs.for_each_model(s, partial(accuracy, s)) for s in ("forget-test", "retain-test"))
        return {**forget, **retain}


def features_of(
    model: nn.Module, batches: Iterable[Any], *, layer: str = "", objective: Objective | None = None
) -> tuple[Floats, Ints]:
    """Inputs (n, features) of a layer, by default of the `torch.nn.Linear` that is called last, and labels."""
    classification = classification_of(objective)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen[:] = [inputs[0].detach()]

    def record(batch: Any) -> tuple[Tensor, Tensor]:
        seen.clear()
        y, size = classification.labels(batch), len(classification.logits(model, batch))
        if not seen or len(seen[-1]) != size or y.dim() != 1 or y.is_floating_point():
            raise InapplicableError(f"layer {layer or 'Linear'!r} has no row of features for each labelled sample")
        return seen[-1].flatten(1), y

    with ExitStack() as hooks:
        for module in _layers(model, layer):
            hooks.enter_context(module.register_forward_pre_hook(keep))
        values, labels = map_rows(model, batches, record)
    return floats(values, what="features", dimensions=2), labels


def linear_probe(features: Floats, labels: Ints, *, seed: int = 0) -> Any:
    """Fit scikit-learn's logistic regression to standardised features (Alain and Bengio 2016)."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(labels)) < 2:
        raise ConfigurationError("linear_probe: expected at least two classes to learn, saw one")
    regression = LogisticRegression(max_iter=5000, random_state=seed)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)


def _layers(model: nn.Module, layer: str) -> list[nn.Module]:
    known = {name: module for name, module in model.named_modules() if name or isinstance(module, nn.Linear)}
    if layer and layer not in known:
        raise InapplicableError(f"the model has no layer {layer!r}{nearest(layer, known)}")
    found = [known[layer]] if layer else [m for m in known.values() if isinstance(m, nn.Linear)]
    if not found:
        raise InapplicableError("the model has no Linear layer: name the layer whose input is to be probed")
    return found
