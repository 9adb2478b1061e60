"""Checked by mypy, never run: what a plugin author may write, and what mypy refuses.

``warn_unused_ignores`` is on: an ignore below that were not needed would be an error.
"""

# ruff: noqa: ARG002 - signatures are all that matters here

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, assert_type, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ElementwiseUnlearner,
    EvaluationInputs,
    Importance,
    ImportanceEstimator,
    Metric,
    Need,
    Objective,
    Report,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    hookimpl,
    option,
)
from unlearnkit.testing import Law, check_unlearner, from_unlearner, laws_for, parametrize_with_checks


@final
@attrs.frozen(kw_only=True)
class Right(ElementwiseUnlearner):
    name: ClassVar[str] = "right"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(local=True, monotone={"alpha"})
    alpha: float = option(10.0, doc="selection weighting", symbol="α", above=0)

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        return torch.where(forget > self.alpha * reference, torch.zeros_like(theta), theta)


class TooFewArguments(ElementwiseUnlearner):
    def rule(self, theta: Tensor, forget: Tensor) -> Tensor:  # type: ignore[override]
        return theta * forget


class WrongResult(ElementwiseUnlearner):
    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> float:  # type: ignore[override]
        return float((theta * forget * reference).sum())


class WrongArgument(ElementwiseUnlearner):
    def rule(self, theta: float, forget: Tensor, reference: Tensor) -> Tensor:  # type: ignore[override]
        return theta * forget * reference


class OverridesWhatIsFinal(ElementwiseUnlearner):
    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        return theta

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:  # type: ignore[misc]
        return None


class OverridesUnlearn(Unlearner):
    name: ClassVar[str] = "overrides"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        return None

    def unlearn(self, model: nn.Module, inputs: UnlearningInputs) -> Report:  # type: ignore[override, misc]
        return Report(method=self.name)


class NothingWritten(ElementwiseUnlearner):
    name: ClassVar[str] = "nothing"


class WrongEstimator(ImportanceEstimator):
    def estimate_batch(self, model: nn.Module, batch: Any) -> Importance:  # type: ignore[override]
        raise NotImplementedError


class RightEstimator(ImportanceEstimator):
    name: ClassVar[str] = "right"

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        return Importance(totals={"w": objective.losses(model, batch)}, count=1)


class WrongMetric(Metric):
    def measure(self, inputs: EvaluationInputs) -> float:  # type: ignore[override]
        return 0.0


class RightMetric(Metric):
    name: ClassVar[str] = "right"

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | None]:
        return {"value": None}


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Right]


@parametrize_with_checks([Right(), Right(alpha=1.0)])
def test_contract(subject: Right, law: Law) -> None:
    law.check(subject)


def uses(model: nn.Module, inputs: UnlearningInputs) -> None:
    NothingWritten()  # type: ignore[abstract]
    assert_type(Right(alpha=2.0).unlearn(model, inputs), Report)
    assert_type(laws_for(Right()), tuple[Law, ...])
    check_unlearner(Right())
    check_unlearner(Right)  # type: ignore[arg-type]
    from_unlearner(Right)
    from_unlearner(RightMetric)  # type: ignore[type-var]
