"""Train a classifier: the notebook's loop, repeatable bit by bit on one CPU."""

import time
from collections.abc import Callable, Iterable
from typing import Any, final

import attrs
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from unlearnkit.data.batches import feed
from unlearnkit.models.norm_gradients import norm_gradient_fix
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of, trainable
from unlearnkit.models.scores import score_batch, total
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError
from unlearnkit.utils.options import option
from unlearnkit.utils.progress import Progress, length, silent
from unlearnkit.utils.rng import private_rng


@final
@attrs.frozen(kw_only=True)
class Training:
    """How to train; the defaults are the notebook's.

    Example:
        >>> Training(epochs=2)
        Training(epochs=2, learning_rate=0.001, batch_size=64, seed=0, weight_decay=0.0)
    """

    epochs: int = option(5, doc="passes over the data", at_least=1)
    learning_rate: float = option(1e-3, doc="step size of Adam", symbol="η", above=0.0)
    batch_size: int = option(64, doc="samples per step, when given a data set", at_least=1)
    seed: int = option(0, doc="of the order of the data and of dropout", at_least=0)
    weight_decay: float = option(0.0, doc="L2 penalty of Adam", at_least=0.0)


@final
@attrs.frozen(kw_only=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
        loss: Mean over the samples of their losses as they were seen in training mode, nats.
        accuracy: Share of right predictions among the same, 0 … 1; None unless the objective is `CrossEntropy`.
        seconds: Wall-clock time; left out of comparisons, so that equal runs have equal histories.
    """

    loss: float
    accuracy: float | None
    seconds: float = attrs.field(eq=False)


History = tuple[EpochRecord, ...]
"""One record per epoch, the first first."""


def train(
    model: nn.Module,
    data: Dataset[Any] | Iterable[Any],
    *,
    objective: Objective | None = None,
    training: Training | None = None,
    progress: Progress = silent,
    on_epoch: Callable[[int, EpochRecord], None] | None = None,
) -> History:
    """Train a model in place with Adam on the mean loss of each batch.

    The same seed, data and initial weights give the same bits on one CPU. The global random state and the model's
    train/eval modes are left as they were; gradients are cleared at the end.

    Args:
        model: On any one device; the batches are moved there. Only parameters with ``requires_grad`` are trained.
        data: A data set, shuffled anew in each epoch and cut into batches of ``training.batch_size``; or batches
            that can be iterated once per epoch, in their own order and size.
        objective: The loss; by default `CrossEntropy`.
        training: The options; by default those of the notebook.
        progress: Shows the batches of each epoch.
        on_epoch: Called after each epoch with its number, from 1, and its record.

    Returns:
        Loss and accuracy of each epoch.

    Raises:
        NonFiniteError: The loss is NaN or infinite, naming epoch and batch; the weights stay as they are then.
        ConfigurationError: An epoch has no batches.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> history = train(nn.Linear(4, 2), data, training=Training(epochs=30, learning_rate=0.1))
        >>> len(history), history[-1].accuracy
        (30, 1.0)
    """
    training = training or Training()
    objective = objective or CrossEntropy()
    adam = torch.optim.Adam(trainable(model).values(), lr=training.learning_rate, weight_decay=training.weight_decay)
    modes = {module: module.training for module in model.modules()}
    history: list[EpochRecord] = []
    try:
        model.train()
        with private_rng(device_of(model), seed=training.seed):
            batches = _shuffled(data, training) if isinstance(data, Dataset) else data
            for epoch in range(1, training.epochs + 1):
                shown = progress(batches, f"epoch {epoch} of {training.epochs}", length(batches))
                history.append(_epoch(model, shown, objective, adam, epoch))
                if on_epoch is not None:
                    on_epoch(epoch, history[-1])
    finally:
        adam.zero_grad()
        for module, mode in modes.items():
            module.training = mode
    return tuple(history)


def _shuffled(dataset: Dataset[Any], training: Training) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(training.seed)
    return DataLoader(dataset, batch_size=training.batch_size, shuffle=True, generator=generator)


def _epoch(
    model: nn.Module, batches: Iterable[Any], objective: Objective, adam: torch.optim.Optimizer, epoch: int
) -> EpochRecord:
    start, device, order, scores = time.perf_counter(), device_of(model), norm_gradient_fix(model), []
    for number, (_, batch) in enumerate(feed(batches, device), start=1):
        with order():
            losses, score = score_batch(model, batch, objective=objective)
        if not bool(torch.isfinite(losses).all()):
            raise NonFiniteError(
                f"expected a finite loss, saw NaN or infinity in epoch {epoch}, batch {number}: "
                "lower the learning rate, or look for NaN in the data"
            )
        adam.zero_grad()
        torch.autograd.backward(losses.mean())
        adam.step()
        scores.append(score)
    if not scores:
        raise ConfigurationError(
            f"expected at least one batch in each epoch, saw none in epoch {epoch}: "
            "hand over a data set or a data loader, not an iterator that is used up"
        )
    summed = total(scores)
    return EpochRecord(loss=summed.loss, accuracy=summed.accuracy, seconds=time.perf_counter() - start)
