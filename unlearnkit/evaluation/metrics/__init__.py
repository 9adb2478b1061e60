"""The metrics that unlearnkit ships, each registered as a plugin."""

from unlearnkit.evaluation.membership.attacks import ConfidenceAttack, EntropyAttack, LossAttack, RelativeMembership
from unlearnkit.evaluation.metrics.healed import Healed
from unlearnkit.evaluation.metrics.loss_and_accuracy import Scores
from unlearnkit.evaluation.metrics.proxies import ClassMeanDivergence, ZeroRetrainForgetting
from unlearnkit.evaluation.metrics.residual_knowledge import LinearProbe, Quantised, RelearnTime
from unlearnkit.evaluation.metrics.retrain_gap import (
    ActivationDistance,
    GapToRetrain,
    JensenShannonToRetrained,
    TugOfWar,
    WhereTheyGo,
)

__all__ = [
    "ActivationDistance",
    "ClassMeanDivergence",
    "ConfidenceAttack",
    "EntropyAttack",
    "GapToRetrain",
    "Healed",
    "JensenShannonToRetrained",
    "LinearProbe",
    "LossAttack",
    "Quantised",
    "RelativeMembership",
    "RelearnTime",
    "Scores",
    "TugOfWar",
    "WhereTheyGo",
    "ZeroRetrainForgetting",
]
