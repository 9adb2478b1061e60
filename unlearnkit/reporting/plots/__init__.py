"""The pictures of a run as functions: matplotlib axes in, the same axes out; for pages and for notebooks.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and everything that has a colour has a marker or a
hatch of its own too.
"""

from unlearnkit.reporting.plots.attacks import confidence_histogram, roc_curves
from unlearnkit.reporting.plots.destinations import destinations
from unlearnkit.reporting.plots.frontier import tuning_frontier
from unlearnkit.reporting.plots.layers import edited_layers
from unlearnkit.reporting.plots.scores import accuracy_bars
from unlearnkit.reporting.plots.timings import timings

__all__ = [
    "accuracy_bars",
    "confidence_histogram",
    "destinations",
    "edited_layers",
    "roc_curves",
    "timings",
    "tuning_frontier",
]
