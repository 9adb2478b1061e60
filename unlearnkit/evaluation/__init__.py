"""Metrics of what an edit did; none changes the model that it measures."""

from unlearnkit.evaluation.accuracy import LossAndAccuracy, loss_and_accuracy, undisturbed
from unlearnkit.evaluation.membership import (
    AttackSuccess,
    PopulationAttack,
    Samples,
    attack_success,
    epsilon_scores,
    forgetting_quality,
    klom,
    population_attack,
    rmia_scores,
    ulira,
)
from unlearnkit.evaluation.metric import EvaluationInputs, Measurement, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.destinations import Destinations, destinations, total_variation
from unlearnkit.evaluation.metrics.distance import activation_distance
from unlearnkit.evaluation.metrics.loss_and_accuracy import Interval, mean_interval, proportion_interval
from unlearnkit.evaluation.metrics.probe import Features, Probe, features_of, linear_probe
from unlearnkit.evaluation.metrics.quantisation import quantised, round_trip
from unlearnkit.evaluation.metrics.relearning import Goal, Relearning
from unlearnkit.evaluation.metrics.retrain_gap import Gap, gap_to_retrain, tug_of_war
from unlearnkit.evaluation.metrics.zero_retrain import zero_retrain_forgetting
from unlearnkit.evaluation.model_outputs import Outputs, outputs_of
from unlearnkit.evaluation.per_sample import jensen_shannon, kl_divergence

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
