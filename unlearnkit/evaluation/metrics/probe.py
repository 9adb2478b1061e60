"""What a linear classifier can still read from a model's features."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import feed
from unlearnkit.distributed.collectives import map_shared
from unlearnkit.evaluation.accuracy import undisturbed
from unlearnkit.evaluation.arrays import Floats, Ints, floats
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import (
    InapplicableError,
    ModelOutputs,
    Values,
    classification_of,
    for_each_model,
)
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import ConfigurationError, nearest
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class LinearProbe(Metric):
    """Accuracy of a logistic regression on penultimate features: is the forgotten class still there, behind the head?

    The probe learns the classes of the training data, forgotten and retained, from their features, and is judged on
    unseen samples: ``"forget-test"`` and ``"retain-test"``, for the model, the original and the mean of the retrained
    models. An edit of the last layer alone does not change it. See `features_of` and `linear_probe`.
    """

    name: ClassVar[str] = "linear-probe"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Alain and Bengio 2016",
        cost="one pass of each model over four splits, and one fit for each model",
        trust="features of other classes help with an unknown one: only the difference to a retrained model counts",
    )

    layer: str = option("", doc="layer whose input is probed; by default the Linear that is called last")
    seed: int = option(0, at_least=0, doc="of the solver and of the samples to learn from")
    most: int = option(5000, at_least=10, doc="samples to learn from at most")

    def measure(self, inputs: EvaluationInputs) -> Values:
        """Fit and judge; see `unlearnkit.Metric.measure`."""
        outputs = ModelOutputs(inputs)
        trained = cache(partial(self._probe, outputs, inputs))  # one fit for both splits
        values: Values = {}
        for split in ("forget-test", "retain-test"):

            def accuracy(model: nn.Module, split: str = split) -> float:
                judge = self._features(outputs, inputs, split, model)
                return trained(model).accuracy(judge)

            values |= for_each_model(outputs, split, accuracy)
        return values

    def _probe(self, outputs: ModelOutputs, inputs: EvaluationInputs, model: nn.Module) -> "Probe":
        forgotten, retained = (self._features(outputs, inputs, s, model) for s in ("forget-train", "retain-train"))
        learn = forgotten.and_also(retained).some(self.most, seed=self.seed)
        if len(np.unique(learn.labels)) < 2:
            raise InapplicableError("the training data have one class only: there is nothing to tell apart")
        return linear_probe(learn, seed=self.seed)

    def _features(self, outputs: ModelOutputs, inputs: EvaluationInputs, split: str, model: nn.Module) -> "Features":
        return features_of(model, outputs.batches(split), layer=self.layer, objective=inputs.objective)


@final
@attrs.frozen(kw_only=True, eq=False)
class Features:
    """The inputs of one layer for n samples.

    Attributes:
        values: Shape (n, features), float64.
        labels: Shape (n,), int64.
    """

    values: Floats
    labels: Ints

    def and_also(self, other: "Features") -> "Features":
        """Append more samples of the same layer."""
        return Features(
            values=np.concatenate([self.values, other.values]), labels=np.concatenate([self.labels, other.labels])
        )

    def some(self, most: int, *, seed: int) -> "Features":
        """Return at most so many samples, drawn without replacement."""
        if len(self.labels) <= most:
            return self
        rows = np.random.default_rng(seed).permutation(len(self.labels))[:most]
        return Features(values=self.values[rows], labels=self.labels[rows])


def features_of(
    model: nn.Module, batches: Iterable[Any], *, layer: str = "", objective: Objective | None = None
) -> Features:
    """Run a model over data in eval mode, and record the inputs of one of its layers.

    Args:
        model: A classifier with one label per sample; left as it is.
        batches: What a data loader yields; or `unlearnkit.distributed.collectives.Shared`.
        layer: Qualified name of the layer; by default the `torch.nn.Linear` that is called last: the classifier on top
            of the penultimate features.
        objective: Selects logits and labels; `CrossEntropy`.

    Returns:
        The inputs, flattened to one row per sample.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        >>> features_of(model, [(torch.tensor([[-1.0, 2.0]]), torch.tensor([1]))]).values
        array([[0., 2.]])
    """
    classification, layers = classification_of(objective), _layers(model, layer)

    def record(own: Iterable[Any], _: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        with _recording(layers) as seen:
            for _, moved in feed(own, device_of(model)):
                y, size = classification.labels(moved), len(classification.logits(model, moved))
                if not seen or len(seen[-1]) != size or y.dim() != 1 or y.is_floating_point():
                    where = f"layer {layer or 'Linear'!r}"
                    raise InapplicableError(f"{where} has no row of features for each labelled sample")
                yield seen[-1].flatten(1).to("cpu", torch.float64), y.to("cpu")
                seen.clear()

    with undisturbed(model):
        parts = map_shared(batches, record, model=model)
    if not parts:
        raise InapplicableError("the split is empty")
    found = floats(torch.cat([x for x, _ in parts]), what="features", dimensions=2)
    return Features(values=found, labels=torch.cat([y for _, y in parts]).numpy().astype(np.int64))


@final
@attrs.frozen(kw_only=True, eq=False)
class Probe:
    """A linear classifier of features.

    Attributes:
        classifier: The fitted scikit-learn pipeline.
    """

    classifier: Any

    def accuracy(self, judge: Features) -> float:
        """Return the share of right predictions on features of the same layer, 0 … 1."""
        return float((self.classifier.predict(judge.values) == judge.labels).mean())


def linear_probe(learn: Features, *, seed: int = 0) -> Probe:
    """Train a logistic regression to tell classes from features.

    Source: Alain and Bengio 2016 (Understanding Intermediate Layers Using Linear Classifier Probes). Features are
    standardised; scikit-learn's regression with its L2 penalty.

    Args:
        learn: Training data of at least two classes.
        seed: Of the solver.

    Returns:
        The probe.

    Example:
        >>> data = Features(values=np.array([[0.0], [0.1], [5.0], [5.1]]), labels=np.array([0, 0, 1, 1]))
        >>> linear_probe(data).accuracy(data)
        1.0
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - it takes seconds to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    if len(np.unique(learn.labels)) < 2:
        raise ConfigurationError("linear_probe: expected at least two classes to learn, saw one")
    regression = LogisticRegression(max_iter=5000, random_state=seed)
    return Probe(classifier=make_pipeline(StandardScaler(), regression).fit(learn.values, learn.labels))


def _layers(model: nn.Module, layer: str) -> list[nn.Module]:
    known = {name: module for name, module in model.named_modules() if name or isinstance(module, nn.Linear)}
    if layer and layer not in known:
        raise InapplicableError(f"the model has no layer {layer!r}{nearest(layer, known)}")
    found = [known[layer]] if layer else [m for m in known.values() if isinstance(m, nn.Linear)]
    if not found:
        raise InapplicableError("the model has no Linear layer: name the layer whose input is to be probed")
    return found


@contextmanager
def _recording(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            seen[:] = [inputs[0].detach()]

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
