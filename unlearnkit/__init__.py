"""unlearnkit: make a trained network forget, and say honestly what the edit did.

The names that most users need are here; everything else that is public is in the folder it belongs to, such as
`unlearnkit.data` or `unlearnkit.models`. A name loads its module, and PyTorch, when it is first used.
"""

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from unlearnkit.utils import kernel_source as _kernel_source
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

__version__ = "0.1.0"

logging.getLogger("unlearnkit").addHandler(logging.NullHandler())  # messages are shown where the user asks for them

_kernel_source.set_kernel_source(
    lambda: importlib.import_module("unlearnkit.plugins.manager").default_manager().kernels()
)

_PUBLIC = {
    "evaluation": ("EvaluationInputs", "Metric", "MetricTraits"),
    "importance": (
        "BatchedDiagonalFisher",
        "DiagonalFisher",
        "EstimatorTraits",
        "Importance",
        "ImportanceEstimator",
        "SketchedFisher",
    ),
    "models": ("CrossEntropy", "Objective"),
    "pipeline": ("Pipeline", "unlearn"),
    "plugins.hookspecs": ("Run", "hookimpl"),
    "plugins.manager": ("PluginManager",),
    "unlearning": (
        "ElementwiseUnlearner",
        "Need",
        "Report",
        "TrainingUnlearner",
        "Unlearner",
        "UnlearnerTraits",
        "UnlearningInputs",
    ),
    "utils.options": ("option",),
}
_FOLDER = {name: folder for folder, names in _PUBLIC.items() for name in names}

__all__ = [
    "BatchedDiagonalFisher",
    "BudgetError",
    "ConfigurationError",
    "CrossEntropy",
    "DiagonalFisher",
    "DuplicateMethodError",
    "ElementwiseUnlearner",
    "EstimatorTraits",
    "EvaluationInputs",
    "Importance",
    "ImportanceEstimator",
    "Metric",
    "MetricTraits",
    "MismatchError",
    "Need",
    "NonFiniteError",
    "Objective",
    "Pipeline",
    "PluginLoadError",
    "PluginManager",
    "PluginWarning",
    "Report",
    "Run",
    "SketchedFisher",
    "StoreError",
    "TrainingUnlearner",
    "UnknownMethodError",
    "UnlearnKitError",
    "UnlearnKitWarning",
    "Unlearner",
    "UnlearnerTraits",
    "UnlearningInputs",
    "UnsupportedModelError",
    "hookimpl",
    "option",
    "unlearn",
]

if TYPE_CHECKING:
    from unlearnkit.evaluation import EvaluationInputs, Metric, MetricTraits
    from unlearnkit.importance import (
        BatchedDiagonalFisher,
        DiagonalFisher,
        EstimatorTraits,
        Importance,
        ImportanceEstimator,
        SketchedFisher,
    )
    from unlearnkit.models import CrossEntropy, Objective
    from unlearnkit.pipeline import Pipeline, unlearn
    from unlearnkit.plugins.hookspecs import Run, hookimpl
    from unlearnkit.plugins.manager import PluginManager
    from unlearnkit.unlearning import (
        ElementwiseUnlearner,
        Need,
        Report,
        TrainingUnlearner,
        Unlearner,
        UnlearnerTraits,
        UnlearningInputs,
    )
    from unlearnkit.utils.options import option
else:

    def __getattr__(name: str) -> Any:
        if name in _FOLDER:
            return _load(name, _FOLDER[name])
        if not name.startswith("_") and importlib.util.find_spec(f"unlearnkit.{name}"):
            return importlib.import_module(f"unlearnkit.{name}")
        raise AttributeError(f"module 'unlearnkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load(name: str, folder: str) -> Any:
    try:
        value = getattr(importlib.import_module(f"unlearnkit.{folder}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"unlearnkit.{name} needs PyTorch, which is not installed: pip install torch") from error
    globals()[name] = value
    return value
