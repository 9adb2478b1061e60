"""The plots of a report as functions, for the page and for notebooks: each draws on matplotlib axes and returns them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and everything that has a colour has its own
marker or hatch too.
"""

from unlearnkit.reporting.plots.model_plots import accuracy_bars, edited_layers, timings, tuning_frontier
from unlearnkit.reporting.plots.sample_plots import confidence_histogram, destinations, roc_curves

__all__ = [
    "accuracy_bars",
    "confidence_histogram",
    "destinations",
    "edited_layers",
    "roc_curves",
    "timings",
    "tuning_frontier",
]
