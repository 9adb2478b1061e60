"""unlearnkit: make a trained network forget, and say honestly what the edit did.

This list of names is the public API; plugins import from here and from `unlearnkit.testing`, and from nowhere else.
"""

from unlearnkit.data.mixing import Interleaved, Paired, reshuffled
from unlearnkit.evaluation.metric import EvaluationInputs, Measurement, Metric, MetricTraits, NotApplicable
from unlearnkit.importance.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.importance.fisher import (
    BatchedDiagonalFisher,
    DiagonalFisher,
    FisherStatistics,
    SketchedFisher,
    estimate_groups,
    fisher_statistics,
)
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role
from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.parameters import device_of, trainable
from unlearnkit.pipeline import Pipeline
from unlearnkit.plugins.hookspecs import Run, hookimpl
from unlearnkit.plugins.manager import PluginManager, default_manager
from unlearnkit.unlearning.distillation import (
    class_labels,
    class_logits,
    copy_state,
    divergence,
    fresh_model,
    teacher_of,
)
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.fine_tune import EpochConfig, Loss, OptimizerConfig, fine_tune
from unlearnkit.unlearning.inputs import Need, UnlearningInputs
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.unlearning.unlearner import Unlearner, UnlearnerTraits
from unlearnkit.utils.errors import (
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
from unlearnkit.utils.kernel_source import set_kernel_source
from unlearnkit.utils.options import Option, option, options_of
from unlearnkit.utils.progress import Progress

__version__ = "0.1.0"

set_kernel_source(lambda: default_manager().kernels())

__all__ = [
    "Accumulator",
    "BatchedDiagonalFisher",
    "BudgetError",
    "ConfigurationError",
    "CrossEntropy",
    "DataOrder",
    "DiagonalFisher",
    "DuplicateMethodError",
    "ElementwiseUnlearner",
    "EpochConfig",
    "EstimatorTraits",
    "EvaluationInputs",
    "Fingerprint",
    "FisherStatistics",
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
    "OptimizerConfig",
    "Option",
    "Paired",
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
    "UnlearningInputs",
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
