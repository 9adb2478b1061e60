"""Relearn time: how many training steps bring back what a model has forgotten."""

import copy
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any, final

import attrs
from torch import Tensor, nn

from unlearnkit.evaluation.accuracy import LossAndAccuracy, loss_and_accuracy
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.training import OptimizerConfig, run_epoch, training_mode
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class Goal:
    """When something counts as relearned: each goal that is set must be reached.

    Attributes:
        accuracy: The accuracy to reach, or None.
        loss: The mean loss to come down to, or None.
    """

    accuracy: float | None = None
    loss: float | None = None

    def reached(self, scores: LossAndAccuracy) -> bool:
        """Say whether a model with these scores on the forget set is there."""
        accurate = self.accuracy is None or (scores.accuracy is not None and scores.accuracy >= self.accuracy)
        return accurate and (self.loss is None or scores.loss <= self.loss)


@final
@attrs.frozen(kw_only=True)
class Relearning:
    """How to relearn: steps of Adam on the forget set, in eval mode (no dropout, BatchNorm as it is).

    Attributes:
        learning_rate: Step size.
        most: The largest number of steps.
    """

    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size of Adam")
    most: int = option(100, at_least=1, doc="the largest number of steps")

    def steps(
        self, model: nn.Module, batches: Iterable[Any], *, goal: Goal, objective: Objective | None = None
    ) -> int | None:
        """Count the steps that a copy of a model needs.

        Args:
            model: Left as it is: a copy is trained.
            batches: The forget set, iterable more than once; one step for each batch, in their order, over and over.
                Their size is part of the result.
            goal: When to stop; looked at on the whole set before the first step and after each.
            objective: The loss; by default `CrossEntropy`.

        Returns:
            0 where the goal is reached without a step; None where it is not reached in ``most`` steps.

        Raises:
            ConfigurationError: There is no batch.

        Example:
            >>> import torch
            >>> model = nn.Linear(2, 2)
            >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
            >>> Relearning(learning_rate=0.1).steps(model, data, goal=Goal(loss=10.0))
            0
        """
        criterion, student, kept = objective or CrossEntropy(), copy.deepcopy(model), list(batches)
        if not kept:
            raise ConfigurationError("expected at least one batch to relearn from, saw none")

        def there() -> bool:
            return goal.reached(loss_and_accuracy(student, kept, objective=criterion))

        def loss(student: nn.Module, batch: Any) -> Tensor:
            return criterion.losses(student, batch).mean()

        if there():
            return 0
        adam = OptimizerConfig(learning_rate=self.learning_rate).optimizer_for(student)
        with training_mode(student, adam, seed=0, training=False):
            for number, batch in enumerate(islice(cycle(kept), self.most), start=1):
                run_epoch(student, [batch], loss, adam, name="relearning")
                if there():
                    return number
        return None
