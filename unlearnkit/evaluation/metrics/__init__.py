"""The metrics that unlearnkit itself offers, each a plugin like anybody's."""

from unlearnkit.evaluation.metrics.distance import ActivationDistance, JensenShannonToRetrained
from unlearnkit.evaluation.metrics.gaps import GapToRetrain, TugOfWar
from unlearnkit.evaluation.metrics.membership import ConfidenceAttack, EntropyAttack, LossAttack
from unlearnkit.evaluation.metrics.relative import RelativeMembership
from unlearnkit.evaluation.metrics.zero_retrain import ZeroRetrainForgetting

__all__ = [
    "ActivationDistance",
    "ConfidenceAttack",
    "EntropyAttack",
    "GapToRetrain",
    "JensenShannonToRetrained",
    "LossAttack",
    "RelativeMembership",
    "TugOfWar",
    "ZeroRetrainForgetting",
]
