"""Methods that train: the optimiser, the epochs, the mode and the masks are shared, authors write their losses."""

import abc
from collections.abc import Iterable, Mapping
from typing import ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit.models.training import OptimizerConfig
from unlearnkit.unlearning.distillation import copy_state
from unlearnkit.unlearning.fine_tune import EpochConfig, fine_tune
from unlearnkit.unlearning.unlearner import Unlearner, UnlearnerTraits, UnlearningInputs
from unlearnkit.utils.options import option


@attrs.frozen(kw_only=True)
class TrainingUnlearner(Unlearner):
    """Trains the model on losses of the forget and the retain set. Subclass it and write `passes`.

    The options below come with it. Redeclare one to give it another default; redeclare it as
    ``attrs.field(default=…, init=False)`` to fix its value.

    In train mode dropout is on and BatchNorm uses and updates the statistics of the batches; eval mode has no dropout
    and leaves the buffers as they are.

    Example:
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

    epochs: int = option(5, at_least=1, doc="passes over the data")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    @abc.abstractmethod
    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        """Return the passes to train on, in order: batches, and the loss that each step minimises.

        A pass reads one set (``inputs.retain_data``), a batch of each set per step (`unlearnkit.data.Paired`) or the
        batches of both, mixed (`unlearnkit.data.Interleaved`). One optimiser serves all passes.

        Args:
            model: As it was before the edit; copy what you need of it, with `unlearnkit.unlearning.teacher_of`, say.
            inputs: Holds at least what ``needs`` declares.

        Returns:
            For example ``EpochConfig.epochs(inputs.retain_data, loss, count=self.epochs)``.
        """

    def masks(self, inputs: UnlearningInputs) -> Mapping[str, Tensor]:
        """Return which weights may change, by parameter name: boolean tensors; override it to train only some.

        Args:
            inputs: As for `passes`.

        Returns:
            A parameter without a mask may change everywhere; by default there is none.
        """
        del inputs
        return {}

    def student(self, model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
        """Return the model to train; override it to train another one, which is then copied into ``model``.

        Args:
            model: The model to edit.
            inputs: As for `passes`.

        Returns:
            ``model`` itself by default.
        """
        del inputs
        return model

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode; see `Unlearner.promises`."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    @final
    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Train; see `Unlearner.apply`."""
        student = self.student(model, inputs)
        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        fine_tune(
            student,
            self.passes(model, inputs),
            optimizer=optimizer,
            inputs=inputs,
            masks=self.masks(inputs),
            training=self.mode == "train",
        )
        if student is not model:
            copy_state(student, model)
