"""Unlearning methods: their contracts, how an edit is applied, its report and its patch."""

from unlearnkit.unlearning.distillation import (
    class_labels,
    class_logits,
    copy_state,
    distillation_loss,
    divergence,
    fresh_model,
    other_labels,
    teacher_of,
    wrong_label_loss,
)
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.patch import Patch
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.unlearning.training_unlearner import EpochConfig, TrainingUnlearner, fine_tune
from unlearnkit.unlearning.unlearner import Need, Unlearner, UnlearnerTraits, UnlearningInputs

__all__ = [
    "ElementwiseUnlearner",
    "EpochConfig",
    "Need",
    "Patch",
    "Report",
    "TensorChange",
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
    "other_labels",
    "teacher_of",
    "wrong_label_loss",
]
