"""What an edit did: measures of a model on data, none of which changes the model."""

from unlearnkit.evaluation.accuracy import LossAndAccuracy, loss_and_accuracy, undisturbed
from unlearnkit.evaluation.activation import activation_distance
from unlearnkit.evaluation.destinations import Destinations, destinations, total_variation
from unlearnkit.evaluation.divergence import jensen_shannon, kl_divergence
from unlearnkit.evaluation.epsilon import epsilon_scores, forgetting_quality
from unlearnkit.evaluation.gap import Gap, gap_to_retrain
from unlearnkit.evaluation.intervals import Interval, mean_interval, proportion_interval
from unlearnkit.evaluation.klom import klom
from unlearnkit.evaluation.membership import (
    AttackSuccess,
    PopulationAttack,
    Samples,
    attack_success,
    population_attack,
    rmia_scores,
    ulira,
)
from unlearnkit.evaluation.metric import EvaluationInputs, Measurement, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.outputs import Outputs, outputs_of
from unlearnkit.evaluation.probe import Features, Probe, features_of, linear_probe
from unlearnkit.evaluation.quantisation import quantised, round_trip
from unlearnkit.evaluation.relearning import Goal, Relearning
from unlearnkit.evaluation.tug_of_war import tug_of_war
from unlearnkit.evaluation.zrf import zero_retrain_forgetting

__all__ = [
    "AttackSuccess",
    "Destinations",
    "EvaluationInputs",
    "Features",
    "Gap",
    "Goal",
    "Interval",
    "LossAndAccuracy",
    "Measurement",
    "Metric",
    "MetricTraits",
    "NotApplicable",
    "Outputs",
    "PopulationAttack",
    "Probe",
    "Relearning",
    "Samples",
    "activation_distance",
    "attack_success",
    "destinations",
    "epsilon_scores",
    "features_of",
    "forgetting_quality",
    "gap_to_retrain",
    "jensen_shannon",
    "kl_divergence",
    "klom",
    "linear_probe",
    "loss_and_accuracy",
    "mean_interval",
    "outputs_of",
    "population_attack",
    "proportion_interval",
    "quantised",
    "rmia_scores",
    "round_trip",
    "total_variation",
    "tug_of_war",
    "ulira",
    "undisturbed",
    "zero_retrain_forgetting",
]
