"""Methods × options × seeds × forget targets beside each other: `unlearnkit compare`."""

from unlearnkit.experiments.comparison.compare import Comparison, compare
from unlearnkit.experiments.comparison.results import TrialResult
from unlearnkit.experiments.comparison.tables import Statistic, VariantSummary, summarise
from unlearnkit.experiments.comparison.trial import Trial, trials_of
from unlearnkit.experiments.comparison.worker import Event

__all__ = [
    "Comparison",
    "Event",
    "Statistic",
    "Trial",
    "TrialResult",
    "VariantSummary",
    "compare",
    "summarise",
    "trials_of",
]
