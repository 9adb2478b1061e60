"""What the metrics share: an evaluation whose models are run once over each split, and reasons instead of numbers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import final

from torch import nn

from unlearnkit.evaluation.metric import EvaluationInputs, NotApplicable
from unlearnkit.evaluation.outputs import InapplicableError, Outputs, mean, outputs_of

Values = dict[str, "float | NotApplicable | None"]
SPLITS = ("retain-train", "forget-train", "retain-test", "forget-test")


@final
class ModelOutputs:
    """The outputs of an evaluation's models on its splits, computed when they are asked for, and kept."""

    def __init__(self, inputs: EvaluationInputs, known: dict[tuple[int, str], Outputs] | None = None) -> None:
        self._exam = inputs
        self._known = {} if known is None else known

    @property
    def splits(self) -> tuple[str, ...]:
        """Return which of the four splits there are, in the usual order."""
        return tuple(name for name in SPLITS if name in self._exam.splits)

    @property
    def named(self) -> Mapping[str, nn.Module]:
        """Return the models to show beside each other: prefix of a value's name to model."""
        models = {"": self._exam.model}
        if self._exam.original is not None:
            models["original "] = self._exam.original
        return models

    def is_retrained(self, model: nn.Module) -> bool:
        """Say whether a model is one of the retrained ones."""
        return any(model is known for known in self._exam.retrained)

    def of(self, model: nn.Module, split: str) -> Outputs:
        """Run a model over a split."""
        if split not in self._exam.splits:
            raise InapplicableError(f"there is no split {split!r}: no such samples at hand")
        key = (id(model), split)
        if key not in self._known:
            self._known[key] = outputs_of(model, self._exam.splits[split], objective=self._exam.objective)
        return self._known[key]

    def retrained(self, at_least: int = 1) -> tuple[nn.Module, ...]:
        """Return the retrained models."""
        models = self._exam.retrained
        if len(models) < at_least:
            few = f"at least {at_least} retrained models are needed, saw {len(models)}"
            raise InapplicableError(few if models else "no retrained model at hand")
        return models


def beside(sheet: ModelOutputs, name: str, measure: Callable[[nn.Module], float]) -> Values:
    """Measure the model, and beside it the original and the retrained models."""
    found: Values = {f"{prefix}{name}": answer(partial(measure, model)) for prefix, model in sheet.named.items()}
    found[f"retrained {name}"] = answer(lambda: mean(measure(model) for model in sheet.retrained()))
    return found


def answer(measure: Callable[[], float]) -> float | NotApplicable:
    """Measure, or say why not. Only what does not exist becomes a reason: any other error stays an error.

    Example:
        >>> answer(lambda: 0.5)
        0.5
    """
    try:
        return measure()
    except InapplicableError as reason:
        return NotApplicable(str(reason))
