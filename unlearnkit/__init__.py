"""unlearnkit: make a trained network forget, and say honestly what the edit did.

This list of names is the public API; plugins import from here and from `unlearnkit.testing`, and from nowhere else.
"""

from unlearnkit.distillation import class_labels, class_logits, copy_state, divergence, fresh_model, teacher_of
from unlearnkit.elementwise import ElementwiseUnlearner
from unlearnkit.errors import (
    BudgetError,
    ConfigurationError,
    DuplicateMethodError,
    MismatchError,
    NonFiniteError,
    PluginLoadError,
    PluginWarning,
    StoreError,
    UnknownMethodError,
    UnlearnKitError,
    UnlearnKitWarning,
    UnsupportedModelError,
)
from unlearnkit.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.evidence import Evidence, Need
from unlearnkit.finetuning import Descent, Loss, Pass, fine_tune
from unlearnkit.fisher import (
    BatchedDiagonalFisher,
    DiagonalFisher,
    PassStatistics,
    SketchedFisher,
    estimate_groups,
    fisher_statistics,
)
from unlearnkit.hookspecs import Run, hookimpl
from unlearnkit.importance import Importance
from unlearnkit.metric import Exam, Measurement, Metric, MetricTraits, NotApplicable
from unlearnkit.mixing import Interleaved, Paired, reshuffled
from unlearnkit.objective import CrossEntropy, Objective
from unlearnkit.options import Option, option, options_of
from unlearnkit.parameters import device_of, trainable
from unlearnkit.pipeline import Pipeline
from unlearnkit.plugins import PluginManager
from unlearnkit.progress import Progress
from unlearnkit.provenance import BatchTrail, Fingerprint, Role
from unlearnkit.report import Report, TensorChange
from unlearnkit.unlearner import Unlearner, UnlearnerTraits

__version__ = "0.1.0"

__all__ = [
    "Accumulator",
    "BatchTrail",
    "BatchedDiagonalFisher",
    "BudgetError",
    "ConfigurationError",
    "CrossEntropy",
    "Descent",
    "DiagonalFisher",
    "DuplicateMethodError",
    "ElementwiseUnlearner",
    "EstimatorTraits",
    "Evidence",
    "Exam",
    "Fingerprint",
    "Importance",
    "ImportanceEstimator",
    "Interleaved",
    "Loss",
    "Measurement",
    "Metric",
    "MetricTraits",
    "MismatchError",
    "Need",
    "NonFiniteError",
    "NotApplicable",
    "Objective",
    "Option",
    "Paired",
    "Pass",
    "PassStatistics",
    "Pipeline",
    "PluginLoadError",
    "PluginManager",
    "PluginWarning",
    "Progress",
    "Report",
    "Role",
    "Run",
    "SketchedFisher",
    "StoreError",
    "TensorChange",
    "UnknownMethodError",
    "UnlearnKitError",
    "UnlearnKitWarning",
    "Unlearner",
    "UnlearnerTraits",
    "UnsupportedModelError",
    "class_labels",
    "class_logits",
    "copy_state",
    "device_of",
    "divergence",
    "estimate_groups",
    "fine_tune",
    "fisher_statistics",
    "fresh_model",
    "hookimpl",
    "option",
    "options_of",
    "reshuffled",
    "teacher_of",
    "trainable",
]
