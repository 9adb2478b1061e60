"""Relearn time: how many training steps bring back what a model has forgotten."""

import copy
from collections.abc import Iterable
from functools import cache, partial
from itertools import cycle, islice
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs, Values, answer, loss_and_accuracy, mean
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.training import OptimizerConfig, run_epoch, training_mode
from unlearnkit.utils.errors import ConfigurationError, UnsupportedModelError
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class RelearnTime(Metric):
    """Steps on the forget set until the original's forget accuracy is near; (t_u − t_o)/(mean t_r − t_o) is relative.

    ``"relative"`` is 0 where the model knows as much as the original, 1 where it takes as long as a retrained one. A
    copy is trained.
    """

    name: ClassVar[str] = "relearn-time"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        unit="steps; fraction",
        source="Chundawat et al. 2023 (Zero-Shot Machine Unlearning), Anamnesis Index; Golatkar et al. 2020",
        cost="up to 100 steps of training for each model, and a pass over the forget set after each",
        trust="depends on step size and batch size; a destroyed model learns slowly too: check retain accuracy",
    )

    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size of Adam")
    most: int = option(100, at_least=1, doc="the largest number of steps")
    until: str = option("accuracy", choices=("accuracy", "loss"), doc="which value of the original is to be reached")
    margin: float = option(0.05, at_least=0, at_most=1, doc="how far from it: a share of the accuracy, or nats")

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)
        steps = cache(partial(self._steps, outputs, inputs))

        def relative() -> float:
            mine, retrained = steps(inputs.model), mean(map(steps, outputs.retrained()))
            if not retrained:
                raise InapplicableError("the retrained models need no steps either: there is nothing to learn again")
            return mine / retrained

        return {**outputs.for_each_model("steps", steps), "relative": answer(relative)}

    def _steps(self, outputs: ModelOutputs, inputs: EvaluationInputs, model: nn.Module) -> float:
        outputs.of(model, "forget-train")  # first, so that a missing split is the reason
        if inputs.original is None:
            raise InapplicableError("no original model at hand: its forget accuracy is the goal")
        if not any(p.requires_grad for p in model.parameters()):
            raise InapplicableError("the model cannot be trained: all its weights are frozen")
        batches, objective = inputs.splits["forget-train"], inputs.objective
        known = loss_and_accuracy(inputs.original, batches, objective=objective)
        goal: dict[str, Any] = {"loss": known.loss + self.margin}
        if self.until == "accuracy":
            assert known.accuracy is not None, "its outputs were computed: it is a classifier"
            goal = {"accuracy": known.accuracy * (1 - self.margin)}
        train = partial(steps_to_relearn, learning_rate=self.learning_rate, most=self.most, objective=objective)
        try:
            found = train(model, batches, **goal)
        except UnsupportedModelError as error:
            raise InapplicableError(f"the model cannot be trained: {error}") from error
        if found is None:
            raise InapplicableError(f"the original's forget {self.until} was not reached in {self.most} steps")
        return float(found)


def steps_to_relearn(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    accuracy: float | None = None,
    loss: float | None = None,
    learning_rate: float = 1e-3,
    most: int = 100,
    objective: Objective | None = None,
) -> int | None:
    """Steps of Adam, one per batch, until a copy in eval mode has this accuracy and loss; None after ``most`` steps."""
    criterion, student, kept = objective or CrossEntropy(), copy.deepcopy(model), list(batches)
    if not kept:
        raise ConfigurationError("expected at least one batch to relearn from, saw none")

    def reached() -> bool:
        found = loss_and_accuracy(student, kept, objective=criterion)
        accurate = accuracy is None or (found.accuracy is not None and found.accuracy >= accuracy)
        return accurate and (loss is None or found.loss <= loss)

    def mean_loss(student: nn.Module, batch: Any) -> Tensor:
        return criterion.losses(student, batch).mean()

    if reached():
        return 0
    adam = OptimizerConfig(learning_rate=learning_rate).optimizer_for(student)
    with training_mode(student, adam, seed=0, training=False):
        for number, batch in enumerate(islice(cycle(kept), most), start=1):
            run_epoch(student, [batch], mean_loss, adam, name="relearning")
            if reached():
                return number
    return None
