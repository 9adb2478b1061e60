"""The estimators and metrics of unlearnkit itself, registered by the same hooks as those of any plugin."""

from collections.abc import Iterable

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metric import Metric
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.fisher import BatchedDiagonalFisher, DiagonalFisher, SketchedFisher
from unlearnkit.plugins.hookspecs import hookimpl


@hookimpl
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:
    return [DiagonalFisher, BatchedDiagonalFisher, SketchedFisher]


@hookimpl
def unlearnkit_register_metrics() -> Iterable[type[Metric]]:
    return [getattr(metrics, name) for name in metrics.__all__]
