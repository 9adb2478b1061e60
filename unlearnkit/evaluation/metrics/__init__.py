"""The metrics that unlearnkit ships, each registered as a plugin."""

from unlearnkit.evaluation.membership.attacks import ConfidenceAttack, EntropyAttack, LossAttack, RelativeMembership
from unlearnkit.evaluation.metrics.features import FeatureSimilarity, HeadSwap, LayerProbe, LinearProbe
from unlearnkit.evaluation.metrics.healed import Healed
from unlearnkit.evaluation.metrics.language import AnswerProbability, Completion, MinK, Perplexity, TruthRatio
from unlearnkit.evaluation.metrics.loss_and_accuracy import Scores
from unlearnkit.evaluation.metrics.proxies import ClassMeanDivergence, ZeroRetrainForgetting
from unlearnkit.evaluation.metrics.residual_knowledge import Quantised, Recovery, RelearnTime
from unlearnkit.evaluation.metrics.retrain_gap import (
    ActivationDistance,
    GapToRetrain,
    JensenShannonToRetrained,
    TugOfWar,
    WhereTheyGo,
)

__all__ = [
    "ActivationDistance",
    "AnswerProbability",
    "ClassMeanDivergence",
    "Completion",
    "ConfidenceAttack",
    "EntropyAttack",
    "FeatureSimilarity",
    "GapToRetrain",
    "HeadSwap",
    "Healed",
    "JensenShannonToRetrained",
    "LayerProbe",
    "LinearProbe",
    "LossAttack",
    "MinK",
    "Perplexity",
    "Quantised",
    "Recovery",
    "RelativeMembership",
    "RelearnTime",
    "Scores",
    "TruthRatio",
    "TugOfWar",
    "WhereTheyGo",
    "ZeroRetrainForgetting",
]
