"""What plugin authors test their plugins with: laws, strategies, checks and oracles.

It needs hypothesis (``pip install 'unlearnkit[testing]'``), and pytest for `parametrize_with_checks` only.
"""

from unlearnkit.testing.cases import LawCase, RuleInputs, SmallNet, law_cases, models
from unlearnkit.testing.checks import (
    broken_laws,
    check_estimator,
    check_metric,
    check_unlearner,
    parametrize_with_checks,
)
from unlearnkit.testing.kernels import check_kernel
from unlearnkit.testing.law import Law, LawError, fail, holds, laws_for
from unlearnkit.testing.oracles import batched_squares, per_sample_squares
from unlearnkit.testing.snapshot import Snapshot, same
from unlearnkit.testing.strategies import from_unlearner, importances, rule_inputs, tensors

__all__ = [
    "Law",
    "LawCase",
    "LawError",
    "RuleInputs",
    "SmallNet",
    "Snapshot",
    "batched_squares",
    "broken_laws",
    "check_estimator",
    "check_kernel",
    "check_metric",
    "check_unlearner",
    "fail",
    "from_unlearner",
    "holds",
    "importances",
    "law_cases",
    "laws_for",
    "models",
    "parametrize_with_checks",
    "per_sample_squares",
    "rule_inputs",
    "same",
    "tensors",
]
