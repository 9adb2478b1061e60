"""What a linear classifier still finds in a model's features."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import feed
from unlearnkit.distributed.collectives import map_shared
from unlearnkit.evaluation.accuracy import undisturbed
from unlearnkit.evaluation.arrays import Floats, Ints, floats
from unlearnkit.evaluation.outputs import InapplicableError
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.errors import ConfigurationError, nearest


@final
@attrs.frozen(kw_only=True, eq=False)
class Features:
    """What a layer of a model is shown of n samples.

    Attributes:
        values: Shape (n, features), float64.
        labels: Shape (n,), int64.
    """

    values: Floats
    labels: Ints

    def and_also(self, other: "Features") -> "Features":
        """Put more samples behind these.

        Args:
            other: Of the same layer.

        Returns:
            Both.
        """
        return Features(
            values=np.concatenate([self.values, other.values]), labels=np.concatenate([self.labels, other.labels])
        )

    def some(self, most: int, *, seed: int) -> "Features":
        """Draw some samples.

        Args:
            most: How many at most.
            seed: Which ones.

        Returns:
            All of them where there are not more.
        """
        if len(self.labels) <= most:
            return self
        rows = np.random.default_rng(seed).permutation(len(self.labels))[:most]
        return Features(values=self.values[rows], labels=self.labels[rows])


def features_of(
    model: nn.Module, batches: Iterable[Any], *, layer: str = "", objective: Objective | None = None
) -> Features:
    """Run a model over data in eval mode, and keep what goes into one of its layers.

    Args:
        model: A classifier with one label per sample; left as it is.
        batches: What a data loader yields; or `unlearnkit.distributed.collectives.Shared`.
        layer: Qualified name of the layer whose input is wanted; left out, the `torch.nn.Linear` that is called last:
            the classifier on top of the penultimate features.
        objective: Says where logits and labels are; `CrossEntropy`.

    Returns:
        The inputs, flattened to one row per sample.

    Raises:
        InapplicableError: There are no data or no classes, or the model has no such layer.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        >>> features_of(model, [(torch.tensor([[-1.0, 2.0]]), torch.tensor([1]))]).values
        array([[0., 2.]])
    """
    chosen = objective or CrossEntropy()
    if not isinstance(chosen, CrossEntropy):
        raise InapplicableError(f"{chosen.describe()} is no classification: there are no class probabilities")
    watched = _watched(model, layer)

    def shown(own: Iterable[Any], _: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        with _watching(watched) as seen:
            for _, moved in feed(own, device_of(model)):
                y, size = chosen.labels(moved), len(chosen.logits(model, moved))
                if not seen or len(seen[-1]) != size or y.dim() != 1 or y.is_floating_point():
                    where = f"layer {layer or 'Linear'!r}"
                    raise InapplicableError(f"{where} has no row of features for each labelled sample")
                yield seen[-1].flatten(1).to("cpu", torch.float64), y.to("cpu")
                seen.clear()

    with undisturbed(model):
        parts = map_shared(batches, shown, model=model)
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
        """Measure it.

        Args:
            judge: Features of the same layer.

        Returns:
            The share of right predictions, 0 … 1.
        """
        return float((self.classifier.predict(judge.values) == judge.labels).mean())


def linear_probe(learn: Features, *, seed: int = 0) -> Probe:
    """Train a logistic regression to tell classes from features.

    Source: Alain and Bengio 2016 (Understanding Intermediate Layers Using Linear Classifier Probes). Features are
    standardised; scikit-learn's regression with its L2 penalty.

    Args:
        learn: To train it on; of at least two classes.
        seed: Of the solver.

    Returns:
        The probe.

    Raises:
        ConfigurationError: There is one class only.

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


def _watched(model: nn.Module, layer: str) -> list[nn.Module]:
    known = {name: module for name, module in model.named_modules() if name or isinstance(module, nn.Linear)}
    if layer and layer not in known:
        raise InapplicableError(f"the model has no layer {layer!r}{nearest(layer, known)}")
    found = [known[layer]] if layer else [m for m in known.values() if isinstance(m, nn.Linear)]
    if not found:
        raise InapplicableError("the model has no Linear layer: name the layer whose input is to be probed")
    return found


@contextmanager
def _watching(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
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
