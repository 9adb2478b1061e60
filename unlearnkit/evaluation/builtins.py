"""The metrics that unlearnkit itself offers, registered by the same hook as anybody else's.

A second entry point: metrics measure trained models on data, and stand to the right of the plugin manager.
"""

from collections.abc import Iterable

from unlearnkit.evaluation import metrics
from unlearnkit.hookspecs import hookimpl
from unlearnkit.metric import Metric


@hookimpl
def unlearnkit_register_metrics() -> Iterable[type[Metric]]:
    """Offer the metrics of this package."""
    return [getattr(metrics, name) for name in metrics.__all__]
