"""Methods × options × seeds × forget targets beside each other: `unlearnkit compare`."""

from unlearnkit.experiments.comparison.compare import Comparison, compare
from unlearnkit.experiments.comparison.tables import summarise

__all__ = ["Comparison", "compare", "summarise"]
