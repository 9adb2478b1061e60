"""Unlearning methods: their contracts, how an edit is applied, its report and its patch."""

from unlearnkit.models.training import Loss, OptimizerConfig
from unlearnkit.unlearning.distillation import (
    class_labels,
    class_logits,
    copy_state,
    distillation_loss,
    divergence,
    fresh_model,
    teacher_of,
)
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.fine_tune import EpochConfig, fine_tune
from unlearnkit.unlearning.patch import Patch, TensorPatch
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.unlearning.training_unlearner import TrainingUnlearner
from unlearnkit.unlearning.unlearner import Need, Unlearner, UnlearnerTraits, UnlearningInputs

__all__ = [
    "ElementwiseUnlearner",
    "EpochConfig",
    "Loss",
    "Need",
    "OptimizerConfig",
    "Patch",
    "Report",
    "TensorChange",
    "TensorPatch",
    "TrainingUnlearner",
    "Unlearner",
    "UnlearnerTraits",
    "UnlearningInputs",
    "class_labels",
    "class_logits",
    "copy_state",
    "distillation_loss",
    "divergence",
    "fine_tune",
    "fresh_model",
    "teacher_of",
]
