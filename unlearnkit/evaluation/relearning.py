"""How long a model takes to learn again what it is to have forgotten."""

import copy
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, final

import attrs
from torch import nn

from unlearnkit.evaluation.accuracy import LossAndAccuracy, loss_and_accuracy
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.unlearning.fine_tune import EpochConfig, OptimizerConfig, fine_tune
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class Goal:
    """When something counts as learnt again.

    Attributes:
        accuracy: The accuracy to reach, or None.
        loss: The mean loss to come down to, or None.
    """

    accuracy: float | None = None
    loss: float | None = None

    def reached(self, scores: LossAndAccuracy) -> bool:
        """Say whether a model is there.

        Args:
            scores: Of the model on the forget set.

        Returns:
            Whether each goal that is set is reached.
        """
        accurate = self.accuracy is None or (scores.accuracy is not None and scores.accuracy >= self.accuracy)
        return accurate and (self.loss is None or scores.loss <= self.loss)


@final
@attrs.frozen(kw_only=True)
class Relearning:
    """How to learn again: steps of Adam on the forget set, in eval mode (no dropout, BatchNorm as it is).

    Attributes:
        learning_rate: Step size.
        most: Steps after which it is given up.
    """

    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size of Adam")
    most: int = option(100, at_least=1, doc="steps after which it is given up")

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
        objective, student = objective or CrossEntropy(), copy.deepcopy(model)
        kept = list(batches)
        if not kept:
            raise ConfigurationError("expected at least one batch to learn again from, saw none")
        taken: list[int] = []

        def there() -> bool:
            return goal.reached(loss_and_accuracy(student, kept, objective=objective))

        def one_by_one() -> Iterator[EpochConfig]:
            # fine_tune() takes a step for each pass that it is handed: between two of them the student is examined.
            for number, batch in enumerate(islice(cycle(kept), self.most), start=1):
                yield EpochConfig(
                    batches=[batch], loss=lambda m, b: objective.losses(m, b).mean(), name="learning again"
                )
                if there():
                    taken.append(number)
                    return

        if there():
            return 0
        fine_tune(
            student,
            one_by_one(),
            optimizer=OptimizerConfig(learning_rate=self.learning_rate),
            inputs=UnlearningInputs(),
        )
        return taken[0] if taken else None
