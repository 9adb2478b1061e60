"""Search for the right edit: estimate importances once, try many edits, choose on validation data."""

from unlearnkit.evaluation.tuning.batch_norm import has_batch_norm, reestimate_batch_norm
from unlearnkit.evaluation.tuning.curve import OperatingCurve
from unlearnkit.evaluation.tuning.result import Candidate, Setting, Tuning
from unlearnkit.evaluation.tuning.tuner import Tuner, Validation

__all__ = [
    "Candidate",
    "OperatingCurve",
    "Setting",
    "Tuner",
    "Tuning",
    "Validation",
    "has_batch_norm",
    "reestimate_batch_norm",
]
