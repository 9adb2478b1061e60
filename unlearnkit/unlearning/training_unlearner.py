"""Methods that train: optimiser, epochs, mode and masks are shared; authors write the losses."""

import abc
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.loaders import Paired, reshuffled
from unlearnkit.models.objective import labels_of
from unlearnkit.models.parameters import trainable
from unlearnkit.models.training import SCHEDULES, Loss, OptimizerConfig, freeze_batch_norm, run_epoch, training_mode
from unlearnkit.unlearning.distillation import copy_state
from unlearnkit.unlearning.unlearner import Unlearner, UnlearnerTraits, UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError, MismatchError, nearest, raise_all
from unlearnkit.utils.options import option
from unlearnkit.utils.progress import length


@final
@attrs.frozen(kw_only=True, eq=False)
class EpochConfig:
    """One pass over some batches: one step for each, on its loss.

    A data loader that reads its data set in order, and a list of batches whose classes come one after the other, is
    shuffled anew, from the seed, in each pass; anything else keeps its own order. None is no batches. The name is for
    the progress bar and for messages.
    """

    batches: Iterable[Any] | None
    loss: Loss
    name: str = "epoch"

    @classmethod
    def epochs(
        cls, batches: Iterable[Any] | None, loss: Loss, *, count: int, name: str = "epoch"
    ) -> "list[EpochConfig]":
        """Make ``count`` passes over the same batches."""
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

    One optimiser serves all passes. ``masks`` has a boolean tensor by parameter name, True where a weight may change;
    masked weights are put back after each step, so that momentum and weight decay cannot move them. With ``training``
    dropout is on and BatchNorm layers that are not frozen use and update the statistics of the batch: a method then
    needs the trait ``edits_buffers``, and a last batch of one sample is left out, with a warning. Of the inputs,
    ``seed``, ``progress`` and ``after_pass`` are used. Global generators, modes and gradients are left as they were.
    Returns the mean loss of each pass over its batches.

    Raises:
        NonFiniteError: A loss is NaN or infinite, naming pass and batch.
        ConfigurationError: A pass without batches, or a mask that fits no trainable parameter.
        UnsupportedModelError: The loss does not depend on any trainable parameter.
    """
    steps, masked, means = optimizer.optimizer_for(model), _masked_weights(model, masks or {}), []
    passes = _checked(passes)
    if optimizer.schedule != "constant":
        passes = list(passes)
    schedule = optimizer.scheduler_for(steps, _steps(passes) if isinstance(passes, list) else None)

    def after_step() -> None:
        if schedule is not None:
            schedule.step()
        with torch.no_grad():
            for p, free, before in masked:
                p.copy_(torch.where(free, p, before))

    with training_mode(model, steps, seed=inputs.seed, training=training) as usable:
        freeze_batch_norm(model)
        for number, one in enumerate(passes):
            given = () if one.batches is None else one.batches
            batches = usable(reshuffled(given, seed=inputs.seed + number, labels=labels_of(inputs.objective)))
            shown = inputs.progress(batches, one.name, length(batches))
            means.append(run_epoch(model, shown, one.loss, steps, name=one.name, after_step=after_step))
            if inputs.after_pass is not None:
                inputs.after_pass(model, number + 1)
    return tuple(means)


def _rounds(inputs: UnlearningInputs) -> Iterator[Any]:
    """Yield the batches of the forget set again and again, shuffled anew in each round."""
    for number in count():
        yield from reshuffled(inputs.forget_data or (), seed=inputs.seed + number, labels=labels_of(inputs.objective))


def _checked(passes: Any) -> Iterator[EpochConfig]:
    if not isinstance(passes, Iterable):
        raise MismatchError(f"expected passes, an iterable of EpochConfig, saw {type(passes).__name__}: return a list")
    for number, one in enumerate(passes, start=1):
        if not isinstance(one, EpochConfig):
            raise MismatchError(f"pass {number}: expected an EpochConfig, saw {type(one).__name__}")
        yield one


def _steps(passes: Iterable[EpochConfig]) -> int | None:
    sizes = [length(() if one.batches is None else one.batches) for one in passes]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _masked_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
    """Check the masks; return each parameter that has one, its mask and a copy of its values."""
    named = trainable(model)
    problems = [f"{name}: no trainable parameter{nearest(name, named)}" for name in masks if name not in named]
    problems += [
        f"{name}: expected a boolean tensor of shape {tuple(named[name].shape)}, saw {mask.dtype} of "
        f"{tuple(mask.shape)}"
        for name, mask in masks.items()
        if name in named and (mask.shape != named[name].shape or mask.dtype != torch.bool)
    ]
    raise_all(problems, where="masks", error=ConfigurationError)
    return [(named[n], m.to(named[n].device), named[n].detach().clone()) for n, m in masks.items()]


@attrs.frozen(kw_only=True)
class TrainingUnlearner(Unlearner):
    """Trains the model on losses of the forget and the retain set. Subclass it and write `passes`.

    Redeclare an option to give it another default; redeclare it as ``attrs.field(default=…, init=False)`` to fix it.
    In train mode dropout is on and BatchNorm uses and updates the statistics of the batches; eval mode has no dropout
    and leaves the buffers as they are.

    Examples:
        >>> import torch
        >>> from unlearnkit.unlearning.unlearner import Need
        >>> @final
        ... @attrs.frozen(kw_only=True)
        ... class Ascent(TrainingUnlearner):
        ...     name = "ascent"
        ...     needs = frozenset({Need.FORGET_DATA})
        ...     learning_rate: float = option(1e-4, above=0.0, doc="step size")
        ...     def passes(self, model, inputs):
        ...         def loss(student, batch):
        ...             return -inputs.mean_loss(student, batch)
        ...         return EpochConfig.epochs(inputs.forget_data, loss, count=self.epochs)
        >>> model, forget = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> Ascent(epochs=1).unlearn(model, UnlearningInputs(forget_data=forget)).changed
        6
    """

    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)
    batches_per_step: ClassVar[int] = 1
    """2 where a step takes a batch of each set (`paired_epochs`): `unlearnkit recommend` halves the epochs then."""

    epochs: int = option(5, at_least=1, doc="passes over the data", search=(1, 5))
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size", search=(1e-4, 3e-2))
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    schedule: str = option("constant", choices=SCHEDULES, doc="one-cycle: η rises in 30 % of the steps, then falls")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    @abc.abstractmethod
    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        """Return the passes to train on, in order: batches, and the loss that each step minimises.

        A pass reads one set (``inputs.retain_data``), a batch of each set per step (`paired_epochs`) or the batches of
        both, mixed (`unlearnkit.data.Interleaved`). One optimiser serves all passes.

        Args:
            model: As it was before the edit; copy what you need of it, with `unlearnkit.unlearning.teacher_of`, say.
            inputs: Holds at least what ``needs`` declares.
        """

    @final
    def paired_epochs(self, inputs: UnlearningInputs, loss: Loss) -> list[EpochConfig]:
        """Make ``epochs`` passes whose steps take a batch of each set (`unlearnkit.data.Paired`).

        Where the forget set has more batches than the retain set, each pass goes on where the one before stopped.
        ``loss(model, (retain, forget))`` gets both batches; take their losses by `UnlearningInputs.mean_losses`, so
        that BatchNorm in train mode sees them together.
        """
        assert inputs.retain_data is not None, "RETAIN_DATA is among the needs"
        assert inputs.forget_data is not None, "FORGET_DATA is among the needs"
        steps, size = length(inputs.retain_data), length(inputs.forget_data)
        forget = _rounds(inputs) if steps and size and steps < size else inputs.forget_data
        return EpochConfig.epochs(Paired(retain=inputs.retain_data, forget=forget), loss, count=self.epochs)

    def masks(self, inputs: UnlearningInputs) -> Mapping[str, Tensor]:
        """Return which weights may change, as `fine_tune` takes them; override it to train only some."""
        del inputs
        return {}

    def student(self, model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
        """Return the model to train; override it to train another one, which is then copied into ``model``."""
        del inputs
        return model

    def promises(self) -> UnlearnerTraits:
        """Take the permission to edit buffers back in eval mode; see `Unlearner.promises`."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    @final
    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Train; see `Unlearner.apply`."""
        student = self.student(model, inputs)
        if not isinstance(student, nn.Module):
            raise MismatchError(f"method {self.name!r}: student() must return a model, saw {type(student).__name__}")
        config = OptimizerConfig(**{field.name: getattr(self, field.name) for field in attrs.fields(OptimizerConfig)})
        passes, masks, training = self.passes(model, inputs), self.masks(inputs), self.mode == "train"
        fine_tune(student, passes, optimizer=config, inputs=inputs, masks=masks, training=training)
        if student is not model:
            copy_state(student, model)
