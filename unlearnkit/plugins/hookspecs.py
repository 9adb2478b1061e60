"""The hooks: what a plugin may offer and what it may watch. Mark your functions with ``@hookimpl``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import attrs
import pluggy

from unlearnkit.evaluation.metric import Metric
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.fisher import Kernel
from unlearnkit.importance.importance import Importance
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import Unlearner

PROJECT = "unlearnkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of that name."""


@final
@attrs.frozen(kw_only=True)
class Run:
    """A run, as observers see it: the names of the method, the estimator and the model's class."""

    method: str
    options: dict[str, Any]
    estimator: str
    model: str


@hookspec
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:  # type: ignore[empty-body]
    """Offer unlearning methods: return classes, not objects."""


@hookspec
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:  # type: ignore[empty-body]
    """Offer importance estimators: return classes, not objects."""


@hookspec
def unlearnkit_register_metrics() -> Iterable[type[Metric]]:  # type: ignore[empty-body]
    """Offer metrics: return classes, not objects."""


@hookspec
def unlearnkit_register_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Offer faster ways to add the squares of the exact Fisher: return objects."""


@hookspec
def unlearnkit_before_run(run: Run) -> None:
    """Watch the start of a run."""


@hookspec
def unlearnkit_after_estimate(run: Run, role: str, importance: Importance) -> None:
    """Watch each importance as soon as it is there; ``role`` is ``"forget"``, ``"full"`` or ``"retain"``."""


@hookspec
def unlearnkit_after_run(run: Run, report: Report) -> None:
    """Watch the end of a run that succeeded."""


@hookspec
def unlearnkit_after_write(folder: Path) -> None:
    """Watch a folder of results as soon as it is complete."""
