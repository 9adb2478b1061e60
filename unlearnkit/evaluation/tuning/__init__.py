"""Search for the right edit: estimate importances once, try many edits, choose on validation data."""

from unlearnkit.evaluation.tuning.result import Tuning
from unlearnkit.evaluation.tuning.trial_tuner import TrialTuner
from unlearnkit.evaluation.tuning.tuner import Tuner, Validation

__all__ = ["TrialTuner", "Tuner", "Tuning", "Validation"]
