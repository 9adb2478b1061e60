"""The training core of methods that train a little: steps over batches that keep what they must not touch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from unlearnkit.data.mixing import reshuffled
from unlearnkit.data.prefetch import feed
from unlearnkit.models.norm_gradients import steady_for
from unlearnkit.models.parameters import device_of, trainable
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, NonFiniteError, UnsupportedModelError, raise_all
from unlearnkit.utils.options import option
from unlearnkit.utils.progress import length
from unlearnkit.utils.rng import private_rng
from unlearnkit.utils.suggest import nearest

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: one number to make smaller, a scalar tensor; the batch is on the model's device."""


@final
@attrs.frozen(kw_only=True)
class OptimizerConfig:
    """How to take steps downhill: an optimiser and its numbers.

    Example:
        >>> OptimizerConfig(optimizer="sgd", learning_rate=0.1)
        OptimizerConfig(optimizer='sgd', learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    """

    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd; the others have moments of their own")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")

    def optimizer_for(self, model: nn.Module) -> Optimizer:
        """Make the optimiser of a model's own trainable parameters.

        Args:
            model: Frozen parameters are left out.

        Returns:
            A fresh optimiser.
        """
        weights, rate, decay = list(trainable(model).values()), self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return SGD(weights, lr=rate, momentum=self.momentum, weight_decay=decay)
        return (AdamW if self.optimizer == "adamw" else Adam)(weights, lr=rate, weight_decay=decay)


@final
@attrs.frozen(kw_only=True, eq=False)
class EpochConfig:
    """One pass over some batches, one step downhill for each.

    Attributes:
        batches: Read once. A data loader that goes through its data set from first to last is read in a new, seeded
            order in each pass; anything else in its own order.
        loss: What each step makes smaller.
        name: For the progress bar and for messages.
    """

    batches: Iterable[Any]
    loss: Loss
    name: str = "epoch"

    @classmethod
    def epochs(
        cls, batches: Iterable[Any] | None, loss: Loss, *, count: int, name: str = "epoch"
    ) -> "list[EpochConfig]":
        """Make the passes of several epochs.

        Args:
            batches: Batches that can be iterated once per epoch; ``inputs.retain_data``, say.
            loss: What each step makes smaller.
            count: How many epochs.
            name: What an epoch is called.

        Returns:
            ``count`` passes.
        """
        return [cls(batches=batches or (), loss=loss, name=f"{name} {i} of {count}") for i in range(1, count + 1)]


def fine_tune(
    model: nn.Module,
    passes: Iterable[EpochConfig],
    *,
    optimizer: OptimizerConfig,
    inputs: UnlearningInputs,
    masks: Mapping[str, Tensor] | None = None,
    training: bool = False,
) -> tuple[float, ...]:
    """Train a model in place: for every pass in turn, for every batch, one step on its loss.

    One optimiser, made of the model's own trainable parameters, serves all passes. Masked and frozen weights keep
    their bits, whatever momentum and weight decay would do to them: they are put back after each step. Everything is
    drawn from ``inputs.seed``, runs on the model's device, and leaves global generators, modes and gradients as they
    were.

    Args:
        model: Trained in place.
        passes: What to do, in order; see `EpochConfig.epochs`.
        optimizer: How to take a step.
        inputs: Its ``seed`` and ``progress`` are used.
        masks: Parameter name to a boolean tensor of its shape: True where a weight may change. A parameter without a
            mask may change everywhere.
        training: Whether dropout is on and BatchNorm uses, and updates, the statistics of the batch; BatchNorm layers
            that are frozen never do. A method that says True must have the trait ``edits_buffers``.

    Returns:
        The mean loss of each pass over its batches.

    Raises:
        NonFiniteError: A loss is NaN or infinite, naming pass and batch.
        ConfigurationError: A pass without batches, or a mask for a parameter that is not there.
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
    device, modes = device_of(model), {module: module.training for module in model.modules()}
    keep = _Keep(model, masks or {})
    steps, means, order = optimizer.optimizer_for(model), [], steady_for(model)
    try:
        _set_mode(model, training=training)
        with private_rng(device, seed=inputs.seed), torch.inference_mode(mode=False), torch.enable_grad():
            for number, one in enumerate(passes):
                batches = reshuffled(one.batches, seed=inputs.seed + number)
                shown, total = inputs.progress(batches, one.name, length(batches)), []
                for index, (_, batch) in enumerate(feed(shown, device), start=1):
                    with order():
                        loss = one.loss(model, batch)
                    _check(loss, where=f"{one.name}, batch {index}")
                    total.append(_step(loss, steps))
                    keep.restore()
                if not total:
                    raise ConfigurationError(
                        f"expected at least one batch in {one.name}, saw none: hand over a data loader or a list, "
                        "not an iterator that is used up"
                    )
                means.append(float(torch.stack(total).mean()))
    finally:
        steps.zero_grad()
        for module, mode in modes.items():
            module.training = mode
    return tuple(means)


def _set_mode(model: nn.Module, *, training: bool) -> None:
    model.train(training)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()


def _check(loss: Tensor, *, where: str) -> None:
    if not bool(torch.isfinite(loss).all()):
        raise NonFiniteError(
            f"expected a finite loss, saw NaN or infinity in {where}: lower the learning rate, or look for NaN in the "
            "data"
        )
    if not loss.requires_grad:
        raise UnsupportedModelError(
            f"expected a loss that depends on a trainable parameter, saw one that does not in {where}: is the "
            "model called under torch.no_grad()?"
        )


def _step(loss: Tensor, optimizer: Optimizer) -> Tensor:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


@final
class _Keep:
    """The weights that must not change, and where they are."""

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
        self._kept = [(named[n], m.to(named[n].device), named[n].detach().clone()) for n, m in masks.items()]

    def restore(self) -> None:
        with torch.no_grad():
            for p, free, before in self._kept:
                p.copy_(torch.where(free, p, before))
