"""What unlearnkit itself offers, registered by the same hooks as anybody else's."""

from collections.abc import Iterable

from unlearnkit.estimator import ImportanceEstimator
from unlearnkit.fisher import BatchedDiagonalFisher, DiagonalFisher, SketchedFisher
from unlearnkit.hookspecs import hookimpl


@hookimpl
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:
    """Offer the estimators of this package."""
    return [DiagonalFisher, BatchedDiagonalFisher, SketchedFisher]
