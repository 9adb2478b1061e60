"""One loop for training, fine-tuning and relearning, repeatable bit by bit on one CPU."""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from unlearnkit.data.batches import feed
from unlearnkit.data.loaders import WithoutSingles, reshuffled
from unlearnkit.models.norm_gradients import norm_gradient_fix
from unlearnkit.models.objective import (
    BatchScores,
    CrossEntropy,
    Objective,
    check_objective,
    labels_of,
    score_batch,
    total,
)
from unlearnkit.models.parameters import dense, device_of, is_frozen, trainable
from unlearnkit.utils.errors import (
    ConfigurationError,
    MismatchError,
    NonFiniteError,
    UnlearnKitWarning,
    UnsupportedModelError,
)
from unlearnkit.utils.options import option
from unlearnkit.utils.progress import Progress, length, progress_of
from unlearnkit.utils.rng import private_rng

_LOG = logging.getLogger(__name__)
SCHEDULES = ("constant", "one-cycle")

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: the scalar tensor that a step minimises; the batch is on the model's device."""


@final
@attrs.frozen(kw_only=True)
class OptimizerConfig:
    """An optimiser and its hyperparameters."""

    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd; the others have moments of their own")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    schedule: str = option("constant", choices=SCHEDULES, doc="one-cycle: η rises in 30 % of the steps, then falls")

    def optimizer_for(self, model: nn.Module) -> Optimizer:
        """Make an optimiser of the model's trainable parameters."""
        weights, rate, decay = list(trainable(model).values()), self.learning_rate, self.weight_decay
        if self.optimizer != "sgd" and any(p.dtype == torch.float16 for p in weights):
            raise ConfigurationError(
                f"optimizer {self.optimizer!r}: expected weights of float32 or bfloat16, saw float16, in which squared "
                "gradients are 0 and steps NaN: convert the model, or use optimizer='sgd'"
            )
        if self.optimizer == "sgd":
            return SGD(weights, lr=rate, momentum=self.momentum, weight_decay=decay)
        return (AdamW if self.optimizer == "adamw" else Adam)(weights, lr=rate, weight_decay=decay)

    def scheduler_for(self, optimizer: Optimizer, steps: int | None) -> LambdaLR | None:
        """Make the schedule of a training of so many steps; None where η is constant."""
        if self.schedule == "constant":
            return None
        if steps is None:
            raise ConfigurationError("schedule 'one-cycle': expected batches whose number is known, saw an iterator")
        return LambdaLR(optimizer, partial(one_cycle, steps=steps))


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the largest learning rate at a step: 1/25 … 1 in the first 30 % of them, then … 0."""
    top = max(1.0, 0.3 * steps)
    return 0.04 + 0.96 * step / top if step < top else max(0.0, (steps - step) / max(1.0, steps - top))


@contextmanager
def training_mode(
    model: nn.Module, optimizer: Optimizer, *, seed: int, training: bool = True
) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]]]:
    """Enable gradients, set the mode and seed the generators; modes and generators are put back, gradients cleared.

    Yields the function of `batch_norm_batches`.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        with (
            private_rng(device_of(model), seed=seed),
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            batch_norm_batches(model) as usable,
        ):
            yield usable
    finally:
        optimizer.zero_grad()
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def batch_norm_batches(model: nn.Module) -> Iterator[Callable[[Iterable[Any]], Iterable[Any]]]:
    """Yield a function that leaves out a last batch of one sample where BatchNorm is trained; warn once of them all."""
    left_out: list[Any] = []

    def usable(batches: Iterable[Any]) -> Iterable[Any]:
        return WithoutSingles.of(batches, left_out) if trains_batch_norm(model) else batches

    yield usable
    if left_out:
        warnings.warn(
            f"batches of one sample were left out, {len(left_out)} in all passes: BatchNorm cannot be trained on one "
            "sample; another batch size leaves none over",
            UnlearnKitWarning,
            stacklevel=3,
        )


def freeze_batch_norm(model: nn.Module) -> None:
    """Put batch-norm layers without trainable parameters into eval mode, so that their statistics stay too."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and is_frozen(module):
            module.eval()


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, objective: Objective | None = None) -> None:
    """Set the statistics of each BatchNorm that is not frozen to the average over batches (Izmailov et al. 2018).

    Batches in the order of the data set are shuffled: the variance of batches of one class lacks that between classes.
    """
    layers = [layer for layer in batch_norm_layers(model) if not is_frozen(layer)]
    objective = objective or CrossEntropy()
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    seen = False
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # what torch calls a cumulative average
        with torch.no_grad(), private_rng(device_of(model)), batch_norm_batches(model) as usable:
            shuffled = reshuffled(batches, seed=0, labels=labels_of(objective))
            for _, moved in feed(usable(shuffled), device_of(model)):
                seen = True
                objective.losses(model, moved)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if layers and not seen:
        raise ConfigurationError("expected at least one batch of retain data to re-estimate BatchNorm on, saw none")


def trains_batch_norm(model: nn.Module) -> bool:
    """Say whether a BatchNorm is in train mode, so that the samples of a batch are normalised together."""
    return any(module.training for module in model.modules() if isinstance(module, _BatchNorm))


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that track running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def run_epoch(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    optimizer: Optimizer,
    *,
    name: str,
    after_step: Callable[[], None] | None = None,
) -> float:
    """Take one step for each batch, inside `training_mode`; returns the mean loss over the batches."""
    device, order, losses = device_of(model), norm_gradient_fix(model), []
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for number, (_, batch) in enumerate(feed(batches, device), start=1):
        try:
            with order():
                value = loss(model, batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigurationError(
                f"expected at least 2 samples for BatchNorm in train mode, saw 1 in {name}, batch {number}: choose a "
                "larger batch size, or eval mode"
            ) from error
        _check(value, where=f"{name}, batch {number}")
        optimizer.zero_grad()
        torch.autograd.backward(value)
        for p in weights:
            p.grad = dense(p.grad)
        optimizer.step()
        losses.append(value.detach())
        if after_step is not None:
            after_step()
    if not losses:
        raise ConfigurationError(
            f"expected at least one batch in {name}, saw none: pass a loader or a list, not an iterator that is used up"
        )
    return float(torch.stack(losses).mean())


def _check(loss: Any, *, where: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        seen = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise MismatchError(f"expected the loss of a batch, a scalar tensor, saw {seen} in {where}: return its mean")
    if not bool(torch.isfinite(loss).all()):
        raise NonFiniteError(
            f"expected a finite loss, saw NaN or infinity in {where}: lower the learning rate, or look at the data"
        )
    if not loss.requires_grad:
        raise UnsupportedModelError(
            f"expected a loss that depends on a trainable parameter, saw none in {where}: is torch.no_grad() active?"
        )


@final
@attrs.frozen(kw_only=True)
class Training:
    """The options of `train`; the defaults are the notebook's."""

    epochs: int = option(5, doc="passes over the data", at_least=1)
    learning_rate: float = option(1e-3, doc="step size of Adam", symbol="η", above=0.0)
    batch_size: int = option(64, doc="samples per step, when given a data set", at_least=1)
    seed: int = option(0, doc="of the order of the data and of dropout", at_least=0)
    weight_decay: float = option(0.0, doc="L2 penalty of Adam", at_least=0.0)
    schedule: str = option("constant", choices=SCHEDULES, doc="one-cycle: η rises in 30 % of the steps, then falls")


@final
@attrs.frozen(kw_only=True)
class EpochRecord:
    """The scores of one epoch, in training mode.

    Attributes:
        loss: Mean loss per sample, nats.
        accuracy: Share of right predictions, 0 … 1; None unless the objective is `CrossEntropy`.
        seconds: Wall-clock time; left out of comparisons.
    """

    loss: float
    accuracy: float | None
    seconds: float = attrs.field(eq=False)


def _one_bar(batches: Iterable[Any], epochs: int, progress: Progress, *, steps: int | None) -> Iterator[Iterable[Any]]:
    """Yield the batches once for each epoch, under one bar for all of them."""
    shown = iter(progress(count() if steps is None else range(steps), f"training, {epochs} epochs", steps))

    def counted() -> Iterator[Any]:
        for batch in batches:
            next(shown, None)
            yield batch

    for _ in range(epochs):
        yield counted()
    next(shown, None)  # ends the bar


def train(
    model: nn.Module,
    data: Dataset[Any] | Iterable[Any],
    *,
    objective: Objective | None = None,
    training: Training | None = None,
    progress: Progress | bool = True,
    on_epoch: Callable[[int, EpochRecord], None] | None = None,
) -> tuple[EpochRecord, ...]:
    """Train a model in place with Adam on the mean loss of each batch; return the record of each epoch.

    ``data`` is a data set, shuffled anew in each epoch and cut into batches of ``training.batch_size``, or batches that
    can be iterated once per epoch; they are moved to the model's device. The default objective is `CrossEntropy`.
    With BatchNorm, a last batch of one sample is left out, with a warning.
    ``progress`` is as in `ImportanceEstimator.estimate`.
    ``on_epoch`` is called after each epoch with its number, from 1, and its record.

    The same seed, data and initial weights give the same bits on one CPU. The global random state and the model's
    train/eval modes are left as they were; gradients are cleared at the end. A loss that is NaN or infinite is a
    `NonFiniteError` that names epoch and batch, and the weights stay as they are then; an epoch without batches is a
    `ConfigurationError`.

    Examples:
        >>> data = torch.utils.data.TensorDataset(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        >>> history = train(nn.Linear(4, 2), data, training=Training(epochs=30, learning_rate=0.1))
        >>> len(history), history[-1].accuracy
        (30, 1.0)
    """
    options, criterion = training or Training(), check_objective(CrossEntropy() if objective is None else objective)
    shared = {name: getattr(options, name) for name in ("learning_rate", "weight_decay", "schedule")}
    config = OptimizerConfig(**shared)
    adam, scores, history = config.optimizer_for(model), list[BatchScores](), list[EpochRecord]()
    batches: Any = data
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        generator = torch.Generator().manual_seed(options.seed)
        batches = DataLoader(data, batch_size=options.batch_size, shuffle=True, generator=generator)

    def loss(student: nn.Module, batch: Any) -> Tensor:
        losses, score = score_batch(student, batch, objective=criterion)
        scores.append(score)
        return losses.mean()

    with training_mode(model, adam, seed=options.seed) as usable:
        batches = usable(batches)
        size = length(batches)
        steps = None if size is None else size * options.epochs
        schedule = config.scheduler_for(adam, steps)
        after_step = None if schedule is None else partial(LambdaLR.step, schedule)
        for epoch, passed in enumerate(_one_bar(batches, options.epochs, progress_of(progress), steps=steps), start=1):
            start = time.perf_counter()
            scores.clear()
            run_epoch(model, passed, loss, adam, name=f"epoch {epoch}", after_step=after_step)
            summed, seconds = total(scores), time.perf_counter() - start
            history.append(EpochRecord(loss=summed.loss, accuracy=summed.accuracy, seconds=seconds))
            _LOG.info("epoch %d of %d: %r", epoch, options.epochs, history[-1])
            if on_epoch is not None:
                on_epoch(epoch, history[-1])
    return tuple(history)
