"""Diagonal Fisher information: per sample, which is the default, and of batch means, which is another quantity."""

from unlearnkit.importance.fisher.batched import BatchedDiagonalFisher
from unlearnkit.importance.fisher.diagonal import DiagonalFisher
from unlearnkit.importance.fisher.engine.kernel import (
    ConvGeometry,
    Kernel,
    KernelOperands,
    KernelPlan,
    KernelUnavailableError,
    Layer,
    SumBuffers,
)
from unlearnkit.importance.fisher.engine.rule import Call, Rule, register_rule, visible
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules import BUILTIN
from unlearnkit.importance.fisher.sketched import SketchedFisher
from unlearnkit.importance.fisher.statistics import FisherStatistics, estimate_groups, fisher_statistics

for _rule in BUILTIN:
    register_rule(_rule)

__all__ = [
    "BatchedDiagonalFisher",
    "Call",
    "ConvGeometry",
    "DiagonalFisher",
    "FisherStatistics",
    "Kernel",
    "KernelOperands",
    "KernelPlan",
    "KernelUnavailableError",
    "Layer",
    "Rule",
    "SketchedFisher",
    "Slot",
    "SumBuffers",
    "estimate_groups",
    "fisher_statistics",
    "register_rule",
    "visible",
]
