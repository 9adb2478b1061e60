"""The metrics that unlearnkit itself offers, each a plugin like anybody's."""

from unlearnkit.evaluation.metrics.class_mean import ClassMeanDivergence
from unlearnkit.evaluation.metrics.destinations import WhereTheyGo
from unlearnkit.evaluation.metrics.distance import ActivationDistance, JensenShannonToRetrained
from unlearnkit.evaluation.metrics.gaps import GapToRetrain, TugOfWar
from unlearnkit.evaluation.metrics.membership import ConfidenceAttack, EntropyAttack, LossAttack
from unlearnkit.evaluation.metrics.probe import LinearProbe
from unlearnkit.evaluation.metrics.quantised import Quantised
from unlearnkit.evaluation.metrics.relative import RelativeMembership
from unlearnkit.evaluation.metrics.relearn import RelearnTime
from unlearnkit.evaluation.metrics.scores import Scores
from unlearnkit.evaluation.metrics.zero_retrain import ZeroRetrainForgetting

__all__ = [
    "ActivationDistance",
    "ClassMeanDivergence",
    "ConfidenceAttack",
    "EntropyAttack",
    "GapToRetrain",
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
