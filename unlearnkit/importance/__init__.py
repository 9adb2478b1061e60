"""How much each weight matters to a set of data: importances, their estimators, files and stores."""

from unlearnkit.importance.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.importance.fisher import (
    BatchedDiagonalFisher,
    Call,
    ConvGeometry,
    DiagonalFisher,
    FisherStatistics,
    Kernel,
    KernelOperands,
    KernelPlan,
    KernelUnavailableError,
    Layer,
    Rule,
    SketchedFisher,
    SumBuffers,
    estimate_groups,
    fisher_statistics,
    register_rule,
    visible,
)
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.multi_process import estimate_together, fill
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role
from unlearnkit.importance.ratios import ratio_threshold
from unlearnkit.importance.sampled_reference import sampled_reference
from unlearnkit.importance.sharded_file import load_sharded, save_sharded
from unlearnkit.importance.store.store import ImportanceStore

__all__ = [
    "Accumulator",
    "BatchedDiagonalFisher",
    "Call",
    "ConvGeometry",
    "DataOrder",
    "DiagonalFisher",
    "EstimatorTraits",
    "Fingerprint",
    "FisherStatistics",
    "Importance",
    "ImportanceEstimator",
    "ImportanceStore",
    "Kernel",
    "KernelOperands",
    "KernelPlan",
    "KernelUnavailableError",
    "Layer",
    "Role",
    "Rule",
    "SketchedFisher",
    "SumBuffers",
    "estimate_groups",
    "estimate_together",
    "fill",
    "fisher_statistics",
    "load_sharded",
    "ratio_threshold",
    "register_rule",
    "sampled_reference",
    "save_sharded",
    "visible",
]
