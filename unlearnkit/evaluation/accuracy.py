"""Loss and accuracy of a model on some data, averaged over samples."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import attrs
import torch
from torch import nn

from unlearnkit.data.batches import feed
from unlearnkit.distributed.collectives import map_shared
from unlearnkit.models.objective import BatchScores, CrossEntropy, Objective, score_batch, total
from unlearnkit.models.parameters import buffers, device_of
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError
from unlearnkit.utils.progress import Progress, length, silent
from unlearnkit.utils.rng import private_rng


@final
@attrs.frozen(kw_only=True)
class LossAndAccuracy:
    """Mean loss and accuracy on some data.

    The loss is in nats per sample, and the accuracy 0 … 1, or None unless the objective is `CrossEntropy`.
    """

    loss: float
    accuracy: float | None
    samples: int


def loss_and_accuracy(
    model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None, progress: Progress = silent
) -> LossAndAccuracy:
    """Measure a model in eval mode, without changing it; the batches are moved to its device.

    The loss is `CrossEntropy` by default. Several processes split the work on `unlearnkit.distributed.Shared` batches,
    and each gets the same result.

    Raises:
        ConfigurationError: There is no batch.
        NonFiniteError: A loss is NaN or infinite, naming the batch.

    Example:
        >>> batch = (torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> loss_and_accuracy(nn.Identity(), [batch])
        LossAndAccuracy(loss=0.6931471824645996, accuracy=0.5, samples=2)
    """

    def scored(own: Iterable[Any], numbers: Iterator[int]) -> Iterator[BatchScores]:
        shown = progress(own, "evaluating", length(own))
        for (_, moved), number in zip(feed(shown, device_of(model)), numbers, strict=False):
            losses, score = score_batch(model, moved, objective=objective or CrossEntropy())
            if not bool(torch.isfinite(losses).all()):
                raise NonFiniteError(
                    f"expected finite losses, saw NaN or infinity in batch {number + 1}: "
                    "the model is damaged, or the data hold NaN"
                )
            yield score

    with undisturbed(model):
        scores = map_shared(batches, scored, model=model)
    if not scores:
        raise ConfigurationError("expected at least one batch to evaluate on, saw none: no data, or a used-up iterator")
    summed = total(scores)
    return LossAndAccuracy(loss=summed.loss, accuracy=summed.accuracy, samples=summed.samples)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; restores modes, buffers and random state afterwards, but not weights."""
    modes = {module: module.training for module in model.modules()}
    kept = {name: (buffer, buffer.detach().clone()) for name, buffer in buffers(model).items()}
    try:
        model.eval()
        with private_rng(device_of(model)), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in kept.values():
                buffer.copy_(value)
