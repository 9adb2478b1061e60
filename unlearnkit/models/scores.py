"""Loss and accuracy of a batch from one forward pass, and their sums over batches."""

from collections.abc import Iterable
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearnkit.data.batches import pick
from unlearnkit.models.objective import IGNORED, CrossEntropy, Objective, check_losses


@final
@attrs.frozen(kw_only=True)
class BatchScores:
    """Sums over some samples, so that scores of several batches add up to those of all their samples.

    Example:
        >>> total([BatchScores(loss_sum=2.0, samples=1, correct=1, predictions=1),
        ...        BatchScores(loss_sum=1.0, samples=2, correct=1, predictions=2)]).loss
        1.0
    """

    loss_sum: float
    samples: int
    correct: int | None
    predictions: int

    @property
    def loss(self) -> float:
        """Return the mean loss per sample, nats."""
        return self.loss_sum / self.samples

    @property
    def accuracy(self) -> float | None:
        """Return the share of right predictions, 0 … 1, or None when there are none to compare."""
        return None if self.correct is None or not self.predictions else self.correct / self.predictions


def total(scores: Iterable[BatchScores]) -> BatchScores:
    """Add up scores."""
    found = list(scores)
    known = [score.correct for score in found if score.correct is not None]
    return BatchScores(
        loss_sum=sum(score.loss_sum for score in found),
        samples=sum(score.samples for score in found),
        correct=sum(known) if len(known) == len(found) else None,
        predictions=sum(score.predictions for score in found),
    )


def score_batch(model: nn.Module, batch: Any, *, objective: Objective) -> tuple[Tensor, BatchScores]:
    """Run the model once on a batch, for its losses and for how many predictions are right.

    Example:
        >>> batch = (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
        >>> _, scores = score_batch(nn.Identity(), batch, objective=CrossEntropy())
        >>> scores.correct, scores.predictions
        (1, 2)
    """
    correct, predictions = None, 0
    if isinstance(objective, CrossEntropy):
        output = model(pick(batch, objective.inputs, what="inputs"))
        replay = _Replay(output)
        correct, predictions = _count(objective.logits(replay, batch), objective.labels(batch))
        losses = objective.losses(replay, batch)
    else:
        losses = objective.losses(model, batch)
    checked = check_losses(losses, batch, objective=objective)
    loss_sum = float(checked.detach().to("cpu", torch.float64).sum())
    return checked, BatchScores(loss_sum=loss_sum, samples=len(checked), correct=correct, predictions=predictions)


@final
class _Replay(nn.Module):
    # Returns a computed output, so that losses and predictions share one forward pass.
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    @override
    def forward(self, _: Any) -> Any:
        return self.output


def _count(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    classes = labels.argmax(1) if labels.is_floating_point() else labels
    kept = classes != IGNORED
    right = (logits.detach().argmax(1) == classes) & kept
    return int(right.sum()), int(kept.sum())
