"""Find the right edit: importances once, edits by the hundred, judged on validation data."""

from unlearnkit.evaluation.tuning.batch_norm import has_batch_norm, reestimate_batch_norm
from unlearnkit.evaluation.tuning.candidate import Candidate, Setting
from unlearnkit.evaluation.tuning.curve import OperatingCurve
from unlearnkit.evaluation.tuning.result import Tuning
from unlearnkit.evaluation.tuning.trials import Validation
from unlearnkit.evaluation.tuning.tuner import Tuner

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
