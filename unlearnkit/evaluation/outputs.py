"""What a classifier says about some samples: the logits of each, and its label."""

from collections.abc import Iterable, Iterator
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import feed
from unlearnkit.distributed.collectives import map_shared
from unlearnkit.evaluation.accuracy import undisturbed
from unlearnkit.evaluation.arrays import Floats, Ints, class_labels, floats
from unlearnkit.evaluation.features import label_losses, softmax_of
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of


class InapplicableError(Exception):
    """A measure that does not exist here; the message is the reason. Metrics turn it into `NotApplicable`."""


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Outputs:
    """What a classifier says about n samples.

    Attributes:
        logits: Shape (n, classes), float64.
        labels: Shape (n,), int64.
    """

    logits: Floats
    labels: Ints

    @property
    def probabilities(self) -> Floats:
        """Return softmax(logits): shape (n, classes)."""
        return softmax_of(self.logits)

    @property
    def accuracy(self) -> float:
        """Return the share of samples whose label has the largest logit, 0 … 1."""
        return float((self.logits.argmax(axis=1) == self.labels).mean())

    @property
    def certainty(self) -> float:
        """Return the mean probability of the label, 0 … 1: what accuracy would be if classes were drawn."""
        return float(np.exp(-label_losses(self.logits, self.labels)).mean())

    def subset(self, rows: Ints) -> "Outputs":
        """Take some samples.

        Args:
            rows: Which.

        Returns:
            Their outputs.
        """
        return Outputs(logits=self.logits[rows], labels=self.labels[rows])


def outputs_of(model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None) -> Outputs:
    """Run a model over data in eval mode, and leave it as it was found.

    Args:
        model: A classifier with one label per sample.
        batches: What a data loader yields; or `unlearnkit.distributed.collectives.Shared`.
        objective: Says where logits and labels are; `CrossEntropy`.

    Returns:
        Logits and labels in the order of the data.

    Raises:
        InapplicableError: There are no data, the objective has no classes, or a sample has several labels.

    Example:
        >>> outputs_of(nn.Identity(), [(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))]).accuracy
        1.0
    """
    chosen = objective or CrossEntropy()
    if not isinstance(chosen, CrossEntropy):
        raise InapplicableError(f"{chosen.describe()} is no classification: there are no class probabilities")

    def said(own: Iterable[Any], _: Iterator[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for _, moved in feed(own, device_of(model)):
            yield chosen.logits(model, moved).to("cpu", torch.float64), chosen.labels(moved).to("cpu")

    with undisturbed(model):
        found = map_shared(batches, said, model=model)
    if not found:
        raise InapplicableError("the split is empty")
    logits, labels = [z for z, _ in found], [y for _, y in found]
    if any(z.dim() != 2 for z in logits) or any(y.dim() != 1 or y.is_floating_point() for y in labels):
        raise InapplicableError("the model does not predict one label per sample")
    z = floats(torch.cat(logits), what="logits", dimensions=2)
    y = class_labels(torch.cat(labels), samples=len(z), classes=z.shape[1])
    return Outputs(logits=z, labels=y)


def mean(values: Iterable[float]) -> float:
    """Return the plain mean of some numbers."""
    return float(np.mean(list(values)))
