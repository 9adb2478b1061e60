"""Methods × options × seeds × forget targets beside each other: `unlearnkit compare`."""

from unlearnkit.comparison.compare import Comparison, compare
from unlearnkit.comparison.result import TrialResult
from unlearnkit.comparison.summary import Statistic, VariantSummary, summarise
from unlearnkit.comparison.trial import Trial, trials_of
from unlearnkit.comparison.units import Event

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
