"""Diagonal Fisher information: per sample, which is the default, and of batch means, which is another quantity."""

from unlearnkit.fisher.batched import BatchedDiagonalFisher
from unlearnkit.fisher.diagonal import DiagonalFisher
from unlearnkit.fisher.families import BUILTIN
from unlearnkit.fisher.rule import Call, Rule, register_rule, visible
from unlearnkit.fisher.sketched import SketchedFisher
from unlearnkit.fisher.statistics import PassStatistics, estimate_groups, fisher_statistics
from unlearnkit.fisher.totals import Slot

for _rule in BUILTIN:
    register_rule(_rule)

__all__ = [
    "BatchedDiagonalFisher",
    "Call",
    "DiagonalFisher",
    "PassStatistics",
    "Rule",
    "SketchedFisher",
    "Slot",
    "estimate_groups",
    "fisher_statistics",
    "register_rule",
    "visible",
]
