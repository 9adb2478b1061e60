"""Fine-tune a model over several passes; masked weights keep their bits."""

from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.loaders import reshuffled
from unlearnkit.models.parameters import trainable
from unlearnkit.models.training import Loss, OptimizerConfig, freeze_batch_norm, run_epoch, training_mode
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, nearest, raise_all
from unlearnkit.utils.progress import length


def _some(batches: Iterable[Any] | None) -> Iterable[Any]:
    return () if batches is None else batches


@final
@attrs.frozen(kw_only=True, eq=False)
class EpochConfig:
    """One pass over some batches: one step for each.

    Attributes:
        batches: Read once. A data loader that reads its data set in order is shuffled anew, from the seed, in each
            pass; anything else keeps its own order.
        loss: What each step minimises.
        name: For the progress bar and for messages.
    """

    batches: Iterable[Any] = attrs.field(converter=_some)
    loss: Loss
    name: str = "epoch"

    @classmethod
    def epochs(
        cls, batches: Iterable[Any] | None, loss: Loss, *, count: int, name: str = "epoch"
    ) -> "list[EpochConfig]":
        """Make ``count`` passes over the same batches; ``inputs.retain_data``, say."""
        return [cls(batches=batches, loss=loss, name=f"{name} {i} of {count}") for i in range(1, count + 1)]


def fine_tune(
    model: nn.Module,
    passes: Iterable[EpochConfig],
    *,
    optimizer: OptimizerConfig,
    inputs: UnlearningInputs,
    masks: Mapping[str, Tensor] | None = None,
    training: bool = False,
) -> tuple[float, ...]:
    """Train a model in place: one step on the loss of each batch, pass after pass.

    One optimiser serves all passes. Masked weights are put back after each step, so that momentum and weight decay
    cannot move them; frozen parameters are never trained. Random numbers are drawn from ``inputs.seed``, and global
    generators, modes and gradients are left as they were.

    Args:
        model: Trained in place.
        passes: In order; see `EpochConfig.epochs`.
        optimizer: How to take a step.
        inputs: Its ``seed`` and ``progress`` are used.
        masks: Parameter name to a boolean tensor of its shape: True where a weight may change. A parameter without a
            mask may change everywhere.
        training: Whether dropout is on and BatchNorm uses and updates the statistics of the batch (frozen BatchNorm
            layers never do). A method that passes True needs the trait ``edits_buffers``.

    Returns:
        The mean loss of each pass over its batches.

    Raises:
        NonFiniteError: A loss is NaN or infinite, naming pass and batch.
        ConfigurationError: A pass without batches, or a mask for an unknown parameter.
        UnsupportedModelError: The loss does not depend on any trainable parameter.

    Example:
        >>> from unlearnkit.models.objective import CrossEntropy
        >>> model = nn.Linear(2, 2, bias=False)
        >>> frozen = model.weight.detach()[1].clone()
        >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> losses = fine_tune(
        ...     model,
        ...     EpochConfig.epochs(batches, lambda m, b: CrossEntropy().losses(m, b).mean(), count=30),
        ...     optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.1),
        ...     inputs=UnlearningInputs(),
        ...     masks={"weight": torch.tensor([[True, True], [False, False]])},
        ... )
        >>> len(losses), losses[-1] < losses[0], torch.equal(model.weight[1], frozen)
        (30, True, True)
    """
    masked, steps, means = _MaskedWeights(model, masks or {}), optimizer.optimizer_for(model), []
    with training_mode(model, steps, seed=inputs.seed, training=training):
        freeze_batch_norm(model)
        for number, one in enumerate(passes):
            batches = reshuffled(one.batches, seed=inputs.seed + number)
            shown = inputs.progress(batches, one.name, length(batches))
            means.append(run_epoch(model, shown, one.loss, steps, name=one.name, after_step=masked.restore))
    return tuple(means)


@final
class _MaskedWeights:
    """Freezes masked weights by restoring them after each step."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        named = trainable(model)
        problems = [f"{name}: no trainable parameter{nearest(name, named)}" for name in masks if name not in named]
        problems += [
            f"{name}: expected a boolean tensor of shape {tuple(named[name].shape)}, saw {mask.dtype} of "
            f"{tuple(mask.shape)}"
            for name, mask in masks.items()
            if name in named and (mask.shape != named[name].shape or mask.dtype != torch.bool)
        ]
        raise_all(problems, where="masks", error=ConfigurationError)
        self._masked = [(named[n], m.to(named[n].device), named[n].detach().clone()) for n, m in masks.items()]

    def restore(self) -> None:
        with torch.no_grad():
            for p, free, before in self._masked:
                p.copy_(torch.where(free, p, before))
